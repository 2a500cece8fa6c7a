"""Data sets as cells see them: their identities, what must be fetched, the fetching, reading in a stage."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import pytest

from orchestrator.errors import StageFailure, UserError
from orchestrator.sft import data, stages
from orchestrator.sft.config import CellConfig
from orchestrator.sft.data import load_items
from orchestrator.sft.fetching import data_files, import_data
from orchestrator.sft.needs import needs
from orchestrator.stage import Config
from orchestrator.tasks import dataset
from orchestrator.tasks.api_calling import API_CALLING
from orchestrator.tasks.math import MATH
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


def test_files_with_fewer_items_than_are_wanted_are_a_need_that_nothing_fetches(tmp_path: Path) -> None:
    made(tmp_path)
    files = [f"data.train_dir={tmp_path}/raw/train", f"data.test_dir={tmp_path}/raw/test"]
    given = ("data=files", *files, "data.num_validation=3", "languages=[en]", "evaluation.languages=[en,es]")
    assert needs(Config(chain.config_of(*given, "data.tasks.math.num_train=9"))) == []
    (need,) = needs(Config(chain.config_of(*given, "data.tasks.math.num_train=10")))
    assert need.what == f"train data in {tmp_path}/raw/train" and need.fetch == ""
    assert "10 train items" in need.problem and "12 ids are usable" in need.problem
    assert needs(Config(chain.config_of(*given, "data.tasks.math.num_train=10", "languages=[]"))) == []
    (need,) = needs(
        Config(chain.config_of(*given, "evaluation.languages=[en,ja]", "data.tasks.math.num_train=9"))
    )
    assert (
        need.what == f"test data in {tmp_path}/raw/test" and "ja" in need.problem
    )  # each language is looked at


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
