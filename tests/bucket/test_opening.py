"""What is no store is refused within seconds, with a line that says what to do; what is damaged is mended."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import unquote

import pytest

from orchestrator.errors import InfrastructureError
from orchestrator.store import code as snapshots
from orchestrator.store import layout
from orchestrator.store.bucket import RemoteStore
from orchestrator.store.opening import open_objects
from orchestrator.testing import COUNT
from tests.bucket.buckets import Bucket, BucketSweep
from tests.store.projects import repository


@pytest.fixture
def on(bucket: Bucket, tmp_path: Path) -> BucketSweep:
    folder = tmp_path / "project"
    folder.mkdir()
    (folder / "jobs.yaml").write_text(COUNT)
    return BucketSweep(folder, bucket)


def other(url: str) -> Callable[[BucketSweep], str]:
    return lambda on: url


def denied(on: BucketSweep) -> str:
    on.bucket.proxy.denies = True
    return on.bucket.url


def unreachable(on: BucketSweep) -> str:
    assert on.env is not None
    on.env["AWS_ENDPOINT_URL"] = "http://127.0.0.1:1"
    return on.bucket.url


def without_credentials(on: BucketSweep) -> str:
    assert on.env is not None
    del on.env["AWS_ACCESS_KEY_ID"], on.env["AWS_SECRET_ACCESS_KEY"]
    # where a machine of a cloud would ask who it is: nobody is there
    on.env["AWS_METADATA_ENDPOINT"] = "http://127.0.0.1:1"
    return on.bucket.url


@pytest.mark.parametrize("verb", ["launch", "status"])
@pytest.mark.parametrize(
    ("place", "code", "what", "fix"),
    [
        (other("s3://"), 2, "names no place in a bucket", "fix|s3://my-bucket"),
        (other("s3://Not A Bucket/x"), 2, "names no place in a bucket", "s3://my-bucket"),
        (other("s3://bucket/a//b"), 2, "names no place in a bucket", "s3://my-bucket"),
        (other("ftp://bucket/x"), 2, "unknown store scheme 'ftp'", "gs://BUCKET/PREFIX"),
        (other("s3://there-is-none/x"), 2, "there is no such bucket", "make the bucket first"),
        (denied, 2, "does not let us in: the store answered 403", "AWS_SECRET_ACCESS_KEY"),
        (without_credentials, 2, "does not let us in: no credentials", "AWS_SECRET_ACCESS_KEY"),
        (unreachable, 3, "the store does not answer", "AWS_ENDPOINT_URL"),
    ],
    ids=[
        "no bucket",
        "bad name",
        "empty part",
        "scheme",
        "missing",
        "denied",
        "no credentials",
        "unreachable",
    ],
)
def test_what_is_no_store_is_refused(
    on: BucketSweep, verb: str, place: Callable[[BucketSweep], str], code: int, what: str, fix: str
) -> None:
    said = on(verb, "jobs.yaml" if verb == "launch" else "jobs", f"store.url={place(on)}", code=code)
    assert said.startswith("error: ") and what in said and re.search(fix, said), said
    assert "Traceback" not in said


def test_a_launch_over_a_server_that_ignores_the_condition_is_refused(on: BucketSweep) -> None:
    on.bucket.proxy.ignores_conditions = True
    said = on("launch", "jobs.yaml", code=3)
    assert "lets a second writer create the same key" in said and "If-None-Match" in said
    assert not list(on.store.glob("records/**/*.json"))


@pytest.mark.long
def test_doctor_tries_the_bucket_itself(on: BucketSweep) -> None:
    said = on("doctor", code=None)
    assert "create is exclusive among 8 writers" in said and on.bucket.url in said
    assert set(on.bucket.open().trees([""])[""]) == set()
    on.bucket.proxy.ignores_conditions = True
    assert "two writers created one key" in on("doctor", code=None)


# Code


def test_code_is_stored_once_fetched_and_mended(bucket: Bucket, tmp_path: Path) -> None:
    folder = repository(tmp_path / "mine", tracked="1")
    (folder / "run.sh").write_text("#!/bin/sh\n")
    (folder / "run.sh").chmod(0o755)
    (folder / "link").symlink_to("run.sh")
    here, there = bucket.open("here"), bucket.open("there")
    code = snapshots.store(here, snapshots.plan(here, [str(folder)]))
    bucket.proxy.seen.clear()
    assert snapshots.store(here, snapshots.plan(here, [str(folder)])) == code
    assert not bucket.proxy.has_seen("PUT", "")
    assert snapshots.damage(there, code.digest) == ""
    root = snapshots.folder(there, code.digest) / "project-0"
    assert root.is_relative_to(bucket.folder / "there")
    assert (root / "link").is_symlink() and (root / "run.sh").stat().st_mode & 0o700 == 0o500
    (root / "run.sh").unlink()  # a copy that somebody harmed, and one that gained a module
    (root / "stray.py").write_text("")
    assert snapshots.damage(there, code.digest) == "" and not (root / "stray.py").exists()


@pytest.mark.parametrize("harm", ["archive gone", "archive changed", "record gone"])
def test_code_that_is_damaged_in_the_bucket_is_named_and_the_next_launch_mends_it(
    bucket: Bucket, tmp_path: Path, harm: str
) -> None:
    folder = repository(tmp_path / "mine", tracked="1")
    here = bucket.open("here")
    code = snapshots.store(here, snapshots.plan(here, [str(folder)]))
    archive = f"{layout.code_archive(code.digest)}/files.tar"
    match harm:
        case "archive gone":
            here.delete(archive)
        case "archive changed":
            here.put(archive, bytes(len(here.get(archive) or b"")))
        case "record gone":
            here.delete(layout.code_record(code.digest))
    assert snapshots.damage(bucket.open("there"), code.digest) != ""
    assert snapshots.store(here, snapshots.plan(here, [str(folder)])) == code
    assert snapshots.damage(bucket.open("there"), code.digest) == ""


def test_a_store_that_does_not_answer_keeps_no_code(bucket: Bucket, tmp_path: Path) -> None:
    folder = repository(tmp_path / "mine", tracked="1")
    bucket.proxy.is_down = True
    with pytest.raises(InfrastructureError, match="cannot store the code"):
        snapshots.store(bucket.open(), snapshots.plan(bucket.open(), [str(folder)]))


# GCS: no server that speaks its protocol runs here; this shows what is sent, and how refusals are read


class Gcs(BaseHTTPRequestHandler):
    """Keeps objects, and knows the one condition."""

    kept: ClassVar[dict[str, bytes]] = {}
    conditions: ClassVar[list[str | None]] = []

    def do_PUT(self) -> None:
        data = self.rfile.read(int(self.headers["Content-Length"]))
        condition = self.headers.get("x-goog-if-generation-match")
        self.conditions.append(condition)
        path = unquote(self.path)
        refused = condition == "0" and path in self.kept
        if not refused:
            self.kept[path] = data
        self.send_response(412 if refused else 200)
        for name, value in {"ETag": '"1"', "x-goog-generation": "1", "Content-Length": "0"}.items():
            self.send_header(name, value)
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        pass


def test_a_create_in_gcs_asks_for_generation_0(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Gcs)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    account = tmp_path / "account.json"
    account.write_text(
        json.dumps(
            {
                "gcs_base_url": f"http://127.0.0.1:{server.server_address[1]}",
                "disable_oauth": True,
                "client_email": "",
                "private_key": "",
                "private_key_id": "",
            }
        )
    )
    monkeypatch.setenv("GOOGLE_SERVICE_ACCOUNT", str(account))
    monkeypatch.setenv("AWS_ALLOW_HTTP", "true")
    monkeypatch.setenv("SWEEP_CACHE", str(tmp_path / "cache"))
    objects = open_objects("gs://bucket/some/prefix")
    assert isinstance(objects, RemoteStore)
    try:
        assert objects.create("a.json", b"1") and not objects.create("a.json", b"2")
        objects.put("a.json", b"3")
    finally:
        objects.close()
        server.shutdown()
        server.server_close()
    assert Gcs.kept == {"/bucket/some/prefix/a.json": b"3"} and Gcs.conditions == ["0", "0", None]
