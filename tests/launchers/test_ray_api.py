"""The Jobs API over real HTTP: proxies, logins, redirects, certificates, and answers of any form and size."""

from __future__ import annotations

import contextlib
import gzip
import json
import ssl
import subprocess
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from orchestrator.errors import AccessDenied, InfrastructureError, SchedulerUnavailable, UserError
from orchestrator.jobs.judgement import Asker, Phase, SubmissionState, judge
from orchestrator.jobs.records import Accepted
from orchestrator.launchers.base import Verdict
from orchestrator.launchers.ray.api import MAX_BYTES, Api, Redirected, Unanswered
from orchestrator.launchers.ray.launcher import RayLauncher
from orchestrator.launchers.ray.scheduler import RayScheduler
from orchestrator.provenance import now
from orchestrator.translation.endpoint import access
from tests.store.builders import submission_of

VARIABLES = (
    "RAY_API_SERVER_ADDRESS",
    "RAY_JOB_HEADERS",
    "RAY_AUTH_TOKEN",
    "REQUESTS_CA_BUNDLE",
    "CURL_CA_BUNDLE",
    "RAY_TLS_CA_CERT",
    "http_proxy",
    "HTTP_PROXY",
)
Answer = tuple[int, dict[str, str], bytes]


class Server:
    """An HTTP server on loopback; it keeps what it was asked. A rest that it announced comes late."""

    def __init__(self, answer: Callable[[str, str], Answer], context: ssl.SSLContext | None = None) -> None:
        self.asked: list[tuple[str, str, dict[str, str]]] = []
        self.may_end = threading.Event()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def any(self) -> None:
                self.rfile.read(int(self.headers.get("Content-Length", 0)))
                outer.asked.append((self.command, self.path, dict(self.headers)))
                status, headers, body = answer(self.command, self.path)
                self.send_response(status)
                for name, value in {"Content-Length": str(len(body)), **headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(body)
                if (rest := int(headers.get("Content-Length", 0)) - len(body)) > 0:
                    outer.may_end.wait(60)
                    with contextlib.suppress(OSError):
                        self.wfile.write(b"x" * rest)

            do_GET = do_POST = do_DELETE = any

            def log_message(self, *_: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        if context is not None:
            self.server.socket = context.wrap_socket(self.server.socket, server_side=True)
        self.address = f"http{'s' if context else ''}://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Callable[..., Server]]:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "none"))
    servers: list[Server] = []

    def start(answer: Callable[[str, str], Answer], context: ssl.SSLContext | None = None) -> Server:
        servers.append(Server(answer, context))
        return servers[-1]

    yield start
    for server in servers:
        server.server.shutdown()
        server.server.server_close()


def dashboard(command: str, path: str) -> Answer:
    """Answers as Ray's dashboard does, which knows one job that runs."""
    if path.endswith("/api/version"):
        return 200, {}, b'{"ray_version": "2.60.0"}'
    if path.endswith("/api/jobs/") and command == "POST":
        return 200, {}, b'{"job_id": "s.1", "submission_id": "s.1"}'
    if path.endswith("/api/jobs/s.1"):
        return 200, {}, b'{"type": "SUBMISSION", "submission_id": "s.1", "status": "RUNNING"}'
    if "/api/jobs/" in path and len(path) > path.index("/api/jobs/") + 10:
        return 404, {}, f"Job {path.rpartition('/')[2]} does not exist".encode()
    return 500, {}, b"a list of all jobs was asked for"


SUBMISSION = submission_of(launcher="ray", cluster="")


def submit(address: str) -> Any:
    launcher = RayLauncher({"name": "ray", "address": address}, 1)
    return launcher.submit(SUBMISSION, json.dumps({"submission_id": "s.1", "entrypoint": "x"}))


def test_headers_of_the_environment_go_with_every_request_and_outrank_a_token(
    serve: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = serve(dashboard)
    monkeypatch.setenv("RAY_AUTH_TOKEN", "mine")
    assert Api(server.address).version() == "2.60.0"
    assert server.asked[-1][2]["Authorization"] == "Bearer mine"
    monkeypatch.setenv("RAY_JOB_HEADERS", '{"authorization": "Basic eA==", "X-Team": "a"}')
    assert submit(server.address).verdict is Verdict.ACCEPTED
    assert RayScheduler(server.address).jobs(["s.1"]).complete
    for _, _, headers in server.asked[1:]:
        told = {name.lower(): value for name, value in headers.items()}
        assert (told["authorization"], told["x-team"]) == ("Basic eA==", "a")


@pytest.mark.parametrize("text", ["{", "[1]", '{"a": 1}', "Bearer hunter2"])
def test_headers_that_are_no_json_object_of_texts_are_refused_and_not_shown(
    serve: Any, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    monkeypatch.setenv("RAY_JOB_HEADERS", text)
    with pytest.raises(UserError, match="RAY_JOB_HEADERS is no JSON") as refused:
        Api("http://127.0.0.1:1")
    assert "hunter2" not in str(refused.value)
    assert "RAY_JOB_HEADERS" in RayScheduler("http://127.0.0.1:1").jobs(["a"]).problem


@pytest.mark.parametrize(
    "header",
    [("a b", "c"), ("a", "hunter2\n"), ("a", "hunter2é"), ("Content-Length", "hunter2"), ("", "hunter2")],
)
def test_headers_and_tokens_that_no_request_can_have_are_mistakes_and_not_shown(
    monkeypatch: pytest.MonkeyPatch, header: tuple[str, str]
) -> None:
    monkeypatch.setenv("RAY_JOB_HEADERS", json.dumps(dict([header])))
    with pytest.raises(UserError, match="header") as refused:
        Api("http://127.0.0.1:1")
    assert "hunter2" not in str(refused.value)
    monkeypatch.delenv("RAY_JOB_HEADERS")
    monkeypatch.setenv("RAY_AUTH_TOKEN", "hunter2\nx")
    with pytest.raises(UserError, match="RAY_AUTH_TOKEN") as refused:
        Api("http://127.0.0.1:1")
    assert "hunter2" not in str(refused.value)


@pytest.mark.parametrize(
    "proxy", ["socks4://127.0.0.1:9", "foo://x:1", "http://[::1:1", "http://x:port", "//"]
)
@pytest.mark.parametrize("name", ["ALL_PROXY", "http_proxy", "HTTPS_PROXY"])
def test_a_proxy_that_cannot_be_used_is_named_with_a_way_out(
    monkeypatch: pytest.MonkeyPatch, name: str, proxy: str
) -> None:
    """The library would raise an ImportError, or what is no error of a request."""
    monkeypatch.setenv(name, proxy)
    with pytest.raises(UserError, match=name.lower()) as refused:
        Api("http://127.0.0.1:1")
    assert name.lower() in refused.value.fix
    with pytest.raises(UserError, match=name.lower()):
        monkeypatch.setenv("ENDPOINT", "http://127.0.0.1:1")
        access("ENDPOINT", "ENDPOINT")
    assert "http" in str(refused.value.allowed)


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
@pytest.mark.parametrize("prefix", ["", "/ray"])
def test_a_redirect_is_refused_with_the_address_to_use_and_nothing_is_submitted(
    serve: Any, status: int, prefix: str
) -> None:
    real = serve(dashboard)
    server = serve(lambda _, path: (status, {"Location": f"{real.address}{prefix}{path}"}, b""))
    with pytest.raises(Redirected) as refused:
        Api(server.address).version()
    assert f"redirects to {real.address}{prefix}: use that" in refused.value.what
    assert refused.value.fix == f"launcher.address={real.address}{prefix}"
    outcome = submit(server.address)
    assert outcome.verdict is Verdict.REFUSED and f"{real.address}{prefix}: use that" in outcome.message
    told = RayScheduler(server.address).jobs(["s.1"])
    assert f"redirects to {real.address}{prefix}: use that" in told.problem and not told.complete
    assert not real.asked  # nor was a token sent there
    assert submit(f"{real.address}{prefix}").verdict is Verdict.ACCEPTED


def test_a_redirect_to_a_login_says_what_proxies_are_told(serve: Any) -> None:
    server = serve(lambda _, path: (302, {"Location": f"/login?next={path}&token=abc123def456"}, b""))
    with pytest.raises(Redirected) as refused:
        Api(server.address).version()
    assert "/login" in refused.value.what and "use that" not in refused.value.what
    assert "RAY_JOB_HEADERS" in refused.value.fix and "abc123def456" not in str(refused.value)


@pytest.mark.parametrize(
    ("status", "body", "said"),
    [
        (200, b"<html><form>Sign in</form></html>", "RAY_JOB_HEADERS"),
        (401, b"Unauthorized: Missing authentication token", "RAY_AUTH_TOKEN"),
        (403, b"<html>Forbidden</html>", "RAY_JOB_HEADERS"),
        (404, b"404: Not Found", "is no Ray dashboard for us: 404"),
        (502, b"Bad gateway", "is no Ray dashboard for us: 502"),
        (200, b"{", "is no Ray dashboard for us"),
        (200, b"[" * 100_000, "is no Ray dashboard for us"),
    ],
)
def test_what_is_no_answer_of_ray_submits_nothing_and_proves_nothing(
    serve: Any, status: int, body: bytes, said: str
) -> None:
    server = serve(lambda *_: (status, {}, body))
    with pytest.raises(InfrastructureError) as failed:
        Api(server.address).version()
    assert said in str(failed.value)
    assert isinstance(failed.value, SchedulerUnavailable) is (status >= 500)  # who waits asks again
    assert isinstance(failed.value, AccessDenied) is (status in (401, 403))  # who waits ends
    assert submit(server.address).verdict is not Verdict.ACCEPTED
    told = RayScheduler(server.address).jobs(["s.1"])
    assert "is no Ray dashboard" in told.problem and not told.complete and not told.seen
    with pytest.raises(InfrastructureError):
        RayScheduler(server.address).cancel(SUBMISSION, ["s.2_0"]) if status != 404 else Api(
            server.address
        ).job("s.2")


def test_jobs_are_asked_for_by_their_names_and_one_that_is_not_known_is_not_there(serve: Any) -> None:
    server = serve(dashboard)
    told = RayScheduler(f"{server.address}/").jobs(["s.1", "s.2", "s.1"])
    assert told.complete and not told.problem
    assert {job: seen.phase for job, seen in told.seen.items()} == {("s.1", 0): Phase.RUNNING}
    assert [path for _, path, _ in server.asked] == ["/api/jobs/s.1", "/api/jobs/s.2"]


def test_an_answer_in_gzip_is_read_and_one_without_end_or_measure_is_not(serve: Any) -> None:
    packed = gzip.compress(b'{"ray_version": "2.60.0"}')
    assert Api(serve(lambda *_: (200, {"Content-Encoding": "gzip"}, packed)).address).version() == "2.60.0"
    bomb = gzip.compress(b"[" * (MAX_BYTES + 2))
    for headers, body in (({"Content-Encoding": "gzip"}, bomb), ({"Content-Encoding": "gzip"}, b"no gzip")):
        with pytest.raises(Unanswered):
            Api(serve(lambda *_, h=headers, b=body: (200, h, b)).address).send("GET", "/")
    with pytest.raises(Unanswered, match="more than 64 MiB"):
        Api(serve(lambda *_: (200, {}, b"x" * (MAX_BYTES + 2))).address).send("GET", "/")
    slow = serve(lambda *_: (200, {"Content-Length": "10"}, b"x"))
    with pytest.raises(Unanswered):
        Api(slow.address, timeout_s=0.5).send("GET", "/")
    slow.may_end.set()


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("head:8265", "is no address of a Ray dashboard"),
        ("http://[::1:8265", "is no address of a Ray dashboard"),
        ("http://head:abc", "is no address of a Ray dashboard"),
        ("http://head:99999", "is no address of a Ray dashboard"),
        ("http://head:8265/#/jobs", "is no address of a Ray dashboard"),
        ("http://head:8265/?token=hunter2", "is no address of a Ray dashboard"),
        ("http://head:8265\n", "is no address of a Ray dashboard"),
        ("http://me:hunter2@head:8265", "holds a user or a password"),
        ("https://token@head", "holds a user or a password"),
    ],
)
def test_an_address_that_could_not_be_used_or_kept_is_refused(
    serve: Any, monkeypatch: pytest.MonkeyPatch, address: str, said: str
) -> None:
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", address)
    with pytest.raises(UserError, match=said) as refused:
        RayLauncher({"name": "ray"}, 1).limits()
    assert "hunter2" not in str(refused.value)


def test_absence_from_the_cluster_that_the_environment_names_is_no_end_of_another_clusters_job(
    serve: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    empty = serve(lambda *_: (404, {}, b"Job s.1 does not exist"))
    given = replace(SUBMISSION, cluster="http://head:8265", controller="http://head:8265")
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", empty.address)
    listing = RayScheduler(given.cluster).jobs([given.name])
    filed = SubmissionState(given, Accepted(nonce="n", job=given.name, at=now()))
    found = judge(filed, 0, listing, Asker())
    assert (found.phase, found.absence) == (Phase.UNKNOWN, "") and empty.address in found.reason
    with pytest.raises(InfrastructureError, match="may be another cluster"):
        RayLauncher({"name": "ray"}, 1).find(given)
    with pytest.raises(InfrastructureError, match="may be another cluster"):
        RayScheduler(given.cluster).cancel(given, [f"{given.name}_0"])
    same = replace(given, controller=empty.address)
    RayScheduler(given.cluster).cancel(same, [f"{given.name}_0"])  # launched there, where it has ended
    assert judge(filed._replace(submission=same), 0, listing, Asker()).absence
    assert RayLauncher({"name": "ray"}, 1).find(same) is None


def test_a_server_whose_certificate_is_trusted_by_a_variable_alone_is_reached(
    serve: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    key, certificate = tmp_path / "key.pem", tmp_path / "ca.pem"
    words = [
        "openssl",
        "req",
        "-x509",
        "-newkey",
        "rsa:2048",
        "-nodes",
        "-days",
        "2",
        "-subj",
        "/CN=127.0.0.1",
    ]
    words += ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(key), "-out", str(certificate)]
    subprocess.run(words, check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    server = serve(dashboard, context)
    assert "certificate is not trusted here" in RayScheduler(server.address).jobs(["a"]).problem
    with pytest.raises(AccessDenied, match="set REQUESTS_CA_BUNDLE"):  # it is no outage: nobody waits
        Api(server.address).version()
    assert submit(server.address).verdict is Verdict.REFUSED
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(certificate))
    assert Api(server.address).version() == "2.60.0"
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(tmp_path / "nowhere"))
    with pytest.raises(UserError, match="REQUESTS_CA_BUNDLE"):
        Api(server.address)
