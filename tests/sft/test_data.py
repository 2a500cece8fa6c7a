"""Data sets as cells see them: their identities, what must be fetched, the fetching, reading in a stage."""

from __future__ import annotations

import hashlib
import http.server
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec
import pyarrow
import pyarrow.parquet
import pytest

from orchestrator.errors import StageFailure, UserError
from orchestrator.sft import data, stages
from orchestrator.sft.config import CellConfig
from orchestrator.sft.data import load_items
from orchestrator.sft.fetching import data_files, import_data, measures
from orchestrator.sft.needs import needs
from orchestrator.stage import Config
from orchestrator.tasks import dataset
from orchestrator.tasks.api_calling import API_CALLING
from orchestrator.tasks.math import MATH
from orchestrator.tasks.phrases import answer_sentence
from tests.sft import chain

pytestmark = pytest.mark.xdist_group("sft")  # one worker makes what the tests share

LANGUAGES = ("en", "es", "bn")


def raw(folder: Path, *, num: int = 12, test: str = "test") -> Path:
    for split in ("train", "test"):
        (folder / split).mkdir(parents=True)
        for language in LANGUAGES:
            rows = [
                {
                    "id": f"{split}{n}",
                    "question": f"{test if split == 'test' else split} {language} {n}?",
                    "answer": f"#### {n}",
                }
                for n in range(num)
            ]
            text = "".join(json.dumps(row) + "\n" for row in rows)
            (folder / split / f"{language}.jsonl").write_text(text)
    return folder


def made(folder: Path, **more: Any) -> Path:
    import_data("math", str(raw(folder / "raw", **more)), None, folder / "set", num_validation=3)
    return folder / "set"


def slices(*overrides: str) -> dict[str, dict[str, Any]]:
    config = chain.config_of(*overrides)
    return {spec.name or "": chain.cut(config, spec.reads) for spec in (stages.PREPARE, stages.EVALUATE)}


def test_numbers_that_are_not_said_are_those_of_the_data_set(tmp_path: Path) -> None:
    items = chain.config_of("data=parallel", f"data.math_dir={made(tmp_path)}")["items"]
    assert (items["num_train"], items["num_validation"], items["num_test"]) == (9, 3, 12)
    items = chain.config_of("data=parallel", f"data.math_dir={tmp_path}/set", "data.num_train=4")["items"]
    assert (items["num_train"], items["num_validation"]) == (4, 3)


def test_a_changed_test_file_changes_what_is_evaluated_and_nothing_that_is_trained(tmp_path: Path) -> None:
    first, other = made(tmp_path / "a"), made(tmp_path / "b", test="changed")
    one, two = (slices("data=parallel", f"data.math_dir={path}") for path in (first, other))
    assert one["prepare"] == two["prepare"]
    assert one["evaluate"] != two["evaluate"]
    larger = slices("data=parallel", f"data.math_dir={made(tmp_path / 'c', num=13)}")
    assert larger["prepare"] != one["prepare"]


def test_the_place_of_a_data_set_is_no_part_of_any_identity(tmp_path: Path) -> None:
    first = made(tmp_path / "a")
    shutil.copytree(first, tmp_path / "moved")
    one, two = (slices("data=parallel", f"data.math_dir={path}") for path in (first, tmp_path / "moved"))
    assert one == two
    assert str(tmp_path) not in json.dumps(one)
    study, elsewhere = (slices("data=study", f"data.cache_dir={path}") for path in ("/a", "/b"))
    assert study == elsewhere


@pytest.mark.parametrize(
    ("override", "prepare", "evaluate"),
    [
        ("data.tasks.math.train.revision=abc", True, True),  # validation selects what is tested
        ("data.tasks.math.test.revision=abc", False, True),
        ("data.tasks.math.num_train=9", True, False),
        ("data.tasks.math.num_test=9", False, True),
        ("data.seed=1", True, True),
        ("+data.tasks.math.languages=[en,es]", True, True),
    ],
)
def test_the_identity_of_a_release_is_known_without_it(override: str, prepare: bool, evaluate: bool) -> None:
    before, after = slices("data=study"), slices("data=study", override)
    assert (before["prepare"] != after["prepare"], before["evaluate"] != after["evaluate"]) == (
        prepare,
        evaluate,
    )
    cached = [chain.config_of("data=study", *more)["items"]["cached"] for more in ((), (override,))]
    assert cached[0] != cached[1]


def test_the_studys_numbers_are_in_its_config() -> None:
    math = chain.config_of("data=study")["items"]
    api = chain.config_of("data=study", "task=api_calling")["items"]
    numbers = [
        tuple(items[f"num_{split}"] for split in ("train", "validation", "test")) for items in (math, api)
    ]
    assert numbers == [(10_000, 200, 250), (3_024, 150, 399)]


def refused(*overrides: str) -> str:
    with pytest.raises(UserError) as caught:
        msgspec.convert(chain.tree_of("data=parallel", *overrides), CellConfig).check()
    return str(caught.value)


def test_a_local_folder_that_cannot_serve_is_an_error_before_anything_runs(tmp_path: Path) -> None:
    path = made(tmp_path)
    only = "evaluation.languages=[en]"
    msgspec.convert(chain.tree_of("data=parallel", f"data.math_dir={path}", only), CellConfig).check()
    assert "data.math_dir=/nowhere: no folder /nowhere" in refused("data.math_dir=/nowhere")
    assert "is no data set: it has no dataset.json" in refused(f"data.math_dir={tmp_path}")
    api = refused(f"data.api_calling_dir={path}", "task=api_calling")
    assert "is a data set of math, not of api_calling" in api
    assert "no test data of math in language 'te'" in refused(
        f"data.math_dir={path}", "evaluation.languages=[te]"
    )
    assert "no train data of math in language 'sw'" in refused(
        f"data.math_dir={path}", only, "languages=[sw]"
    )
    assert "there are 9" in refused(f"data.math_dir={path}", only, "data.num_train=10")
    import_data("math", str(tmp_path / "raw"), None, tmp_path / "whole")
    assert "has no validation split" in refused(f"data.math_dir={tmp_path}/whole", only)
    assert "there are 12" in refused(f"data.math_dir={tmp_path}/whole", only, "data.num_validation=13")


def uses(config: Mapping[str, Any]) -> Config:
    return Config(chain.cut(config, stages.EVALUATE.uses), declared="uses")


def test_a_stage_reads_a_data_set_where_it_lies(tmp_path: Path) -> None:
    config = chain.config_of("data=parallel", f"data.math_dir={made(tmp_path)}")
    items = [load_items(MATH, split, "bn", Config(config["items"]), uses(config)) for split in dataset.Split]
    info = dataset.load(tmp_path / "set")
    assert [tuple(item.id for item in some) for some in items] == [info.splits[s].ids for s in dataset.Split]


@pytest.mark.parametrize("source", ["parallel", "files"])
def test_each_stage_reads_its_splits_with_no_more_than_it_declares(source: str, tmp_path: Path) -> None:
    folder = made(tmp_path)
    raw_ = tmp_path / "raw"
    overrides = {
        "parallel": [f"data.math_dir={folder}"],
        "files": [f"data.train_dir={raw_}/train", f"data.test_dir={raw_}/test", "data.num_validation=3"],
    }[source]
    config = chain.config_of(f"data={source}", *overrides)
    for spec, splits in ((stages.PREPARE, ["train"]), (stages.EVALUATE, ["validation", "test"])):
        reads, given = (chain.cut(config, keys) for keys in (spec.reads, spec.uses))
        for split in splits:
            assert load_items(MATH, split, "en", Config(reads["items"]), Config(given, declared="uses"))


def test_a_stage_without_its_data_fails_as_data(tmp_path: Path) -> None:
    config = chain.config_of("data=study", f"data.cache_dir={tmp_path}")
    with pytest.raises(StageFailure, match="the math data is not there") as caught:
        load_items(MATH, "train", "en", Config(config["items"]), uses(config))
    assert caught.value.cause == "data"
    config = chain.config_of("data=study", "task=api_calling")
    with pytest.raises(StageFailure, match=r"data\.api_calling_dir is not set"):
        load_items(API_CALLING, "test", "en", Config(config["items"]), uses(config))


def test_only_data_that_can_be_missing_is_a_need(tmp_path: Path) -> None:
    assert needs(Config(chain.config_of())) == []
    assert needs(Config(chain.config_of("data=files", "data.train_dir=a", "data.test_dir=b"))) == []
    assert needs(Config(chain.config_of("data=parallel", f"data.math_dir={made(tmp_path)}"))) == []
    (need,) = needs(Config(chain.config_of("data=study", "task=api_calling")))
    assert (need.fetch, need.arguments) == ("", {}) and "sweep data describe api_calling" in need.advice
    (need,) = needs(Config(chain.config_of("data=study", f"data.cache_dir={tmp_path}")))
    assert need.problem.startswith(f"not fetched into {tmp_path}/mCoT-MATH-")
    assert json.loads(json.dumps(need.arguments)) == need.arguments
    shutil.copytree(tmp_path / "set", need.arguments["folder"])
    assert needs(Config(chain.config_of("data=study", f"data.cache_dir={tmp_path}")))[0].problem == ""


def test_the_cache_is_where_the_settings_or_the_environment_say(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.delenv(data.VARIABLE, raising=False)
    assert data.root(None) == Path.home() / ".cache" / "polysweep" / "data"
    monkeypatch.setenv("XDG_CACHE_HOME", "/caches")
    assert data.root(None) == Path("/caches/polysweep/data")
    monkeypatch.setenv(data.VARIABLE, "~/d")
    assert data.root(None) == Path.home() / "d"
    assert data.root("/e") == Path("/e")


def test_the_files_that_hold_rows_are_told_from_their_names() -> None:
    names = [".gitattributes", "README.md", "mcot_math.json", "view.json"]
    assert data_files(names) == ["mcot_math.json"]
    assert data_files([*names, "lang-id/mcot-math.json"]) == ["lang-id/mcot-math.json"]
    assert data_files(["mgsm.py", "mgsm_te.tsv", "mgsm_en.tsv"]) == ["mgsm_en.tsv", "mgsm_te.tsv"]
    assert data_files(["data/a.parquet", "dataset_infos.json"]) == ["data/a.parquet"]
    assert data_files(["README.md"]) == []


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
    assert (origin.form, origin.commit) == ("parquet", COMMIT)


def test_a_release_that_is_no_commit_is_refused_unless_that_is_allowed() -> None:
    def checked(*overrides: str) -> None:
        msgspec.convert(chain.tree_of("data=study", *overrides), CellConfig).check()

    checked()
    for side in ("train", "test"):
        with pytest.raises(UserError, match=r"@main is not pinned(.|\n)*data\.unpinned=true"):
            checked(f"data.tasks.math.{side}.revision=main")
    checked("data.tasks.math.train.revision=main", "data.unpinned=true")


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
    begun = time.monotonic()
    with pytest.raises(UserError, match="no tokenizer 'nobody/nothing'"):
        measures(["nobody/nothing"])
    assert time.monotonic() - begun < 15
    assert "Retry" not in capsys.readouterr().err
