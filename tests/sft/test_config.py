"""The schema of a cell: what it accepts, coerces and refuses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest

from orchestrator.errors import UserError
from orchestrator.sft import stages
from orchestrator.sft.config import CellConfig
from tests.sft import chain

pytestmark = pytest.mark.xdist_group("sft")  # one worker makes what the tests share

FILES = Path(__file__).parent


def refused(*overrides: str) -> str:
    with pytest.raises(msgspec.ValidationError) as caught:
        chain.config_of(*overrides)
    return str(caught.value)


def checked(*overrides: str) -> str:
    with pytest.raises(UserError) as caught:
        msgspec.convert(chain.tree_of(*overrides), CellConfig).check()
    return str(caught.value)


def test_the_primary_config_composes_as_it_stands() -> None:
    config = chain.config_of()
    assert {"seed", "languages", "model", "task", "trainer", "data", "evaluation"} <= set(config)
    assert config["model"]["path"] is None
    assert config["items"] == config["data"]["tasks"]["math"]


@pytest.mark.parametrize("model", ["qwen3-0.6b", "qwen3-1.7b", "qwen3-8b", "gemma3-1b", "gemma3-4b"])
def test_the_studys_models_and_trainer_compose(model: str) -> None:
    config = chain.config_of(f"model={model}", "trainer=paper", "evaluation=study", "task=api_calling")
    assert config["model"]["path"].count("/") == 1
    assert (config["trainer"]["global_batch_size"], config["trainer"]["num_epochs"]) == (512, 6)


def test_equal_mixtures_are_equal_whatever_their_order() -> None:
    assert chain.config_of("languages=[sw,te,en]")["languages"] == ("en", "sw", "te")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["languages=[en,xx]"], "unknown language 'xx'"),
        (["languages=[en,sw,en]"], "'en' is twice"),
        (["evaluation.languages=[en,EN]"], "unknown language 'EN'"),
        (["evaluation.languages=[]"], "evaluation.languages is empty"),
        (["trainer.micro_batch_size=3"], "not divisible by trainer.micro_batch_size=3"),
        (["trainer.micro_batch_size=16"], "not divisible by trainer.micro_batch_size=16"),
        (["trainer.learning_rate=fast"], "Expected `float`"),
        (["trainer.num_epochs=0"], "num_epochs"),
        (["trainer.precision=fp8"], "precision"),
        (["trainer.sharding=tp"], "sharding"),
        (["task.name=maths", "items=${data.tasks.math}"], "unknown task 'maths'; did you mean math?"),
        (["model.architecture=null"], "architecture"),
        (["model.family=llama"], "family"),
        (["+trainer.learnin_rate=1"], "learnin_rate"),
        (["data.num_train=0"], "num_train"),
    ],
)
def test_bad_values_are_refused_with_the_key_and_the_value(overrides: list[str], message: str) -> None:
    assert message in refused(*overrides)


def test_a_missing_model_path_is_named() -> None:
    assert "model.path=/nowhere/at/all is no folder" in checked("model=custom", "model.path=/nowhere/at/all")
    assert "has no config.json" in checked("model=custom", f"model.path={FILES}")


def test_a_hub_id_is_not_looked_for_on_disk() -> None:
    config: Any = msgspec.convert(
        chain.tree_of("model=custom", "model.path=Qwen/Qwen3-0.6B-Base"), CellConfig
    )
    config.check()
    assert config.model.name == "Qwen3-0.6B-Base"


def test_a_language_without_data_is_named_with_its_folder(tmp_path: Path) -> None:
    (tmp_path / "en.jsonl").write_text("")
    (tmp_path / "mgsm_en.tsv").write_text("")
    files = ("data=files", f"data.train_dir={tmp_path}", f"data.test_dir={tmp_path}")
    msgspec.convert(chain.tree_of(*files, "evaluation.languages=[en]"), CellConfig).check()
    assert "no test data of math in language 'es'" in checked(*files, "evaluation.languages=[en,es]")
    assert "no train data of math in language 'sw'" in checked(
        *files, "evaluation.languages=[en]", "languages=[sw]"
    )


def test_with_files_for_math_the_stages_of_api_calling_read_what_they_read_before() -> None:
    files = ("data=files", "data.train_dir=/a", "data.test_dir=/b")
    for spec in (stages.TOKENIZER, stages.BASE, stages.PREPARE, stages.TRAIN, stages.EVALUATE):
        slices = [chain.cut(chain.config_of("task=api_calling", *more), spec.reads) for more in ((), files)]
        assert slices[0] == slices[1], spec.name


@pytest.mark.long
def test_each_setting_is_read_by_the_stages_that_it_changes_and_no_other() -> None:
    specs = (stages.TOKENIZER, stages.BASE, stages.PREPARE, stages.TRAIN, stages.EVALUATE)

    def changed(*overrides: str) -> set[str | None]:
        one, other = chain.config_of(), chain.config_of(*overrides)
        return {spec.name for spec in specs if chain.cut(one, spec.reads) != chain.cut(other, spec.reads)}

    assert changed("evaluation.max_new_tokens=7") == {"evaluate"}
    assert changed("evaluation.batch_size=7") == {"evaluate"}  # in reduced precision it changes texts
    assert changed("evaluation.num_processes=2") == set()
    assert changed("trainer.learning_rate=0.5") == {"train"}
    assert changed("trainer.micro_batch_size=1", "device=cpu") == set()
    assert changed("trainer.micro_batch_size=null", "trainer.num_processes=2") == set()
    assert changed("trainer.sharding=fsdp", "trainer.loss_chunk_tokens=7") == set()
    assert changed("trainer.deterministic=true", "trainer.gradient_checkpointing=selective") == set()
    assert changed("data.num_test=7") == {"evaluate"}
    assert changed("data.num_train=7") == {"prepare"}
    assert changed("data.seed=7") == {"prepare", "evaluate"}
    assert changed("model=tiny-gemma3") >= {"tokenizer", "base", "evaluate"}
