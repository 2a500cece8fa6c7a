"""Releases on a hub: how they are pinned, fetched from a real server, and read."""

from __future__ import annotations

import hashlib
import http.server
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec
import pyarrow
import pyarrow.parquet
import pytest

from orchestrator.errors import UserError
from orchestrator.sft.config import CellConfig
from orchestrator.sft.data import load_items
from orchestrator.sft.fetching import measures
from orchestrator.sft.needs import needs
from orchestrator.stage import Config
from orchestrator.tasks import dataset
from orchestrator.tasks.math import MATH
from orchestrator.tasks.phrases import answer_sentence
from tests.sft import chain
from tests.sft.test_data import LANGUAGES, uses

pytestmark = pytest.mark.xdist_group("sft")  # one worker makes what the tests share


COMMIT = "722a05fdef0123456789abcdef0123456789abcd"
COMMITS = ["7230000000000000000000000000000000000000", COMMIT]
DATE = "2025-04-01T00:00:00.000Z"


def listing(files: Mapping[str, bytes], folder: str) -> list[dict[str, Any]]:
    """The files and folders directly in a folder, as the API of a hub lists them."""
    start = f"{folder}/" if folder else ""
    inside = [name.removeprefix(start) for name in files if name.startswith(start)]
    folders = dict.fromkeys(name.partition("/")[0] for name in inside if "/" in name)
    found = [{"type": "directory", "path": start + name, "oid": "0" * 40, "size": 0} for name in folders]
    names = [name for name in inside if "/" not in name]
    return [
        *found,
        *(
            {"type": "file", "path": start + name, "oid": "0" * 40, "size": len(files[start + name])}
            for name in names
        ),
    ]


class Hub(http.server.ThreadingHTTPServer):
    """Answers as far as a client that downloads files asks."""

    def __init__(self, files: Mapping[str, Mapping[str, bytes]]) -> None:
        super().__init__(("127.0.0.1", 0), _Answer)
        self.files = files


class _Answer(http.server.BaseHTTPRequestHandler):
    server: Hub

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def _answer(self, *, with_body: bool) -> None:
        for hub_id, files in self.server.files.items():
            if self.path.startswith(f"/api/datasets/{hub_id}/commits/"):
                commits = [
                    {"id": commit, "title": "", "message": "", "date": DATE, "authors": []}
                    for commit in COMMITS
                ]
                return self._send(json.dumps(commits).encode(), with_body=with_body)
            if self.path.startswith(prefix := f"/api/datasets/{hub_id}/tree/{COMMIT}"):
                folder = self.path.removeprefix(prefix).partition("?")[0].lstrip("/")
                return self._send(json.dumps(listing(files, folder)).encode(), with_body=with_body)
            if self.path.startswith(f"/api/datasets/{hub_id}"):
                siblings = [{"rfilename": name} for name in files]
                body = json.dumps({"id": hub_id, "sha": COMMIT, "siblings": siblings}).encode()
                return self._send(body, with_body=with_body)
            for name, content in files.items():
                if self.path == f"/datasets/{hub_id}/resolve/{COMMIT}/{name}":
                    return self._send(content, with_body=with_body)
            if self.path.startswith(f"/datasets/{hub_id}/"):
                self.send_response(404)
                self.send_header("X-Error-Code", "EntryNotFound")
                self.send_header("Content-Length", "0")
                return self.end_headers()
        self.send_error(404)
        return None

    def _send(self, body: bytes, *, with_body: bool) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("ETag", f'"{hashlib.sha256(body).hexdigest()}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.end_headers()
        if with_body:
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


MGSM = (*LANGUAGES, "te")
CONFIG = """\
- config_name: {code}
  data_files: [{{split: train, path: {code}/train-*}}, {{split: test, path: {code}/test-*}}]
"""


def mgsm_file(code: str, split: str) -> bytes:
    """Rows as MGSM's hub has them: the answer of a test row is a number alone."""
    numbers = range(8) if split == "train" else range(5, 8)
    rows = [
        {
            "question": f"{split} {code} {n}?",
            "answer": answer_sentence(str(n), code) if split == "train" else None,
            "answer_number": n,
        }
        for n in numbers
    ]
    sink = pyarrow.BufferOutputStream()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), sink)
    return bytes(sink.getvalue())


@pytest.fixture
def hub() -> Iterator[str]:
    """The address of a hub with both releases of math, small."""
    rows = [
        {"lang-id": f"{code}-{n}", "question": f"{code} {n}?", "answer": answer_sentence(str(n), code)}
        for n in range(40)
        for code in (*LANGUAGES, "te")
        if (code, n % 10) != ("te", 3)
    ]
    files = {
        "laihuiyuan/mCoT-MATH": {
            "view.json": b"[]",
            "mcot_math.json": b"[]",
            "lang-id/mcot-math.json": json.dumps(rows, ensure_ascii=False).encode(),
        },
        "juletxara/mgsm": {f"mgsm_{code}.tsv": f"{code}?\t5,600\n".encode() for code in (*LANGUAGES, "te")},
        "someone/configs": {
            "README.md": f"---\nconfigs:\n{''.join(CONFIG.format(code=code) for code in MGSM)}---\n".encode(),
            **{
                f"{code}/{split}-0.parquet": mgsm_file(code, split)
                for code in MGSM
                for split in ("train", "test")
            },
        },
    }
    server = Hub(files)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


SMALL = (
    "data=study",
    "+data.tasks.math.languages=[en,es,bn,te]",
    "data.tasks.math.num_train=20",
    "data.tasks.math.num_validation=6",
    "data.tasks.math.num_test=1",
)


def fetching(arguments: Mapping[str, Any], endpoint: str, home: Path) -> subprocess.CompletedProcess[str]:
    """Fetches in a process of its own: the hub's address is read when its library is imported."""
    code = "import json,sys; from orchestrator.sft.fetching import fetch; fetch(**json.loads(sys.argv[1]))"
    environment = {**os.environ, "HF_ENDPOINT": endpoint, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1"}
    environment.pop("HF_HUB_OFFLINE", None)
    return subprocess.run(
        [sys.executable, "-c", code, json.dumps(arguments)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )


def test_what_a_cell_needs_is_fetched_from_a_hub_and_read(hub: str, tmp_path: Path) -> None:
    config = chain.config_of(*SMALL, f"data.cache_dir={tmp_path}/cache")
    (need,) = needs(Config(config))
    for _ in range(2):  # the second time all is there
        done = fetching(need.arguments, hub, tmp_path / "hub")
        assert done.returncode == 0, done.stderr
    assert needs(Config(config))[0].problem == ""
    info = dataset.load(Path(need.arguments["folder"]))
    assert (info.origins["train"].commit, info.origins["test"].form) == (COMMIT, "mgsm")
    items = {
        split: load_items(MATH, split, "te", Config(config["items"]), uses(config)) for split in info.splits
    }
    assert {split: len(some) for split, some in items.items()} == {"train": 20, "validation": 6, "test": 1}
    assert all(int(item.id) % 10 != 3 for item in items["train"])  # these have no Telugu
    assert items["test"][0].gold == "5,600"


@pytest.mark.long
def test_configurations_and_splits_of_a_hub_are_languages_and_splits(hub: str, tmp_path: Path) -> None:
    release = "{hub_id: someone/configs, revision: 722a05f}"
    overrides = [f"data.tasks.math.{side}={release}" for side in ("train", "test")]
    numbers = [
        f"data.tasks.math.num_{split}={n}" for split, n in (("train", 5), ("validation", 2), ("test", 3))
    ]
    config = chain.config_of(*SMALL[:2], *overrides, *numbers, f"data.cache_dir={tmp_path}/cache")
    (need,) = needs(Config(config))
    done = fetching(need.arguments, hub, tmp_path / "hub")
    assert done.returncode == 0, done.stderr
    items = {s: load_items(MATH, s, "bn", Config(config["items"]), uses(config)) for s in dataset.Split}
    assert {split: len(some) for split, some in items.items()} == {"train": 5, "validation": 2, "test": 3}
    assert {item.gold for item in items[dataset.Split.TEST]} == {"5", "6", "7"}
    assert all("test bn" in item.prompt for item in items[dataset.Split.TEST])
    origin = dataset.load(Path(need.arguments["folder"])).origins["train"]
    assert (origin.form, origin.commit) == ("mcot", COMMIT)


def test_a_release_that_is_no_commit_is_refused_unless_that_is_allowed() -> None:
    def checked(*overrides: str) -> None:
        msgspec.convert(chain.tree_of("data=study", *overrides), CellConfig).check()

    checked()
    for side in ("train", "test"):
        with pytest.raises(UserError, match=r"@main is not pinned(.|\n)*data\.unpinned=true"):
            checked(f"data.tasks.math.{side}.revision=main")
    checked("data.tasks.math.train.revision=main", "data.unpinned=true")


def test_data_that_a_later_import_makes_otherwise_has_another_identity() -> None:
    def derived(**hub_ids: str) -> tuple[str, str, str]:
        overrides = [f"data.tasks.math.{side}.hub_id={hub_id}" for side, hub_id in hub_ids.items()]
        items = chain.config_of(*SMALL, *overrides)["items"]
        return items["cached"], items["train_fingerprint"], items["test_fingerprint"]

    study, test, both = derived(), derived(test="some/parquet"), derived(train="a/b", test="some/parquet")
    # The study's releases are no Parquet files: what was fetched and trained stays of use.
    assert study[2] == "hub:juletxara/mgsm@f52417ca77bd71e9888ddc29f92587660725d2b4"
    assert (test[1], test[2].rpartition(":")[2]) == (study[1], "2")
    assert study[0] != test[0] != both[0] and both[1] != study[1]


def test_the_beginning_of_a_commit_names_one_commit_or_is_refused(hub: str, tmp_path: Path) -> None:
    (need,) = needs(Config(chain.config_of(*SMALL, "data.tasks.math.train.revision=722a0ff")))
    done = fetching(need.arguments, hub, tmp_path / "hub")
    assert done.returncode and "0 commits of laihuiyuan/mCoT-MATH begin with 722a0ff" in done.stderr
    assert COMMIT in done.stderr


def test_a_hub_that_is_not_there_or_has_no_such_thing_is_said_within_seconds(
    hub: str, tmp_path: Path
) -> None:
    (need,) = needs(Config(chain.config_of(*SMALL, f"data.cache_dir={tmp_path}/cache")))
    done = fetching(need.arguments, "http://127.0.0.1:9", tmp_path / "hub")
    assert "InfrastructureError: the hub cannot be reached for laihuiyuan/mCoT-MATH@722a05f" in done.stderr
    (need,) = needs(Config(chain.config_of(*SMALL, "data.tasks.math.train.hub_id=no/such")))
    done = fetching(need.arguments, hub, tmp_path / "hub")
    assert "no/such@722a05f" in done.stderr and done.returncode
    assert not (tmp_path / "cache").exists()


def test_a_tokenizer_that_no_hub_gives_is_said_at_once(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    with pytest.raises(UserError, match="no tokenizer 'nobody/nothing'"):
        measures(["nobody/nothing"])
    assert "Retry" not in capsys.readouterr().err
