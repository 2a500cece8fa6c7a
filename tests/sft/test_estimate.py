"""The hooks of `train` and `evaluate`: exact steps, tokens from facts, measurements over guesses."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from orchestrator.core.settings import HardwareSettings
from orchestrator.costs import Estimate, Finished, Hardware, Measured
from orchestrator.errors import UserError
from orchestrator.sft.estimate import evaluate, rehearse, train
from orchestrator.sft.memory import Load, Recompute, decoder, widest_pack
from orchestrator.sft.speed import mfu, save_costs
from orchestrator.sft.workload import model_of
from orchestrator.stage import Config
from tests.sft import chain

CORE = ["en", "es", "ja", "bn", "sw"]
TEN = [*CORE, "fr", "de", "ru", "zh", "th"]
REAL = (
    "trainer=paper",
    "evaluation=study",
    "data.tasks.math.num_train=10000",
    "data.tasks.math.num_validation=200",
    "data.tasks.math.num_test=250",
    "data.tasks.api_calling.num_train=3024",
    "data.tasks.api_calling.num_validation=150",
    "data.tasks.api_calling.num_test=399",
    "costs.tasks.math.generated=null",
    "costs.tasks.api_calling.generated=null",
)
A100 = HardwareSettings(mfu=0.4).assumed


def cell(model: str = "qwen3-0.6b", task: str = "math", languages: int = 1, *more: str) -> dict[str, Any]:
    mixture = f"languages=[{','.join(TEN[:languages])}]"
    return chain.config_of(f"model={model}", f"task={task}", mixture, *REAL, *more)


def trained(config: dict[str, Any], hardware: Hardware = A100, **how: Any) -> Any:
    how = {"retention": "all", "measured": Measured(), **how}
    return train(Config(config), label="", hardware=hardware, **how)


@pytest.mark.parametrize(
    ("languages", "math", "api"),
    [
        (1, 120, 36),
        (2, 240, 72),
        (4, 474, 144),
        (5, 588, 180),
        (6, 708, 216),
        (9, 1056, 324),
        (10, 1176, 360),
    ],
)
def test_steps_are_exactly_those_of_the_study(languages: int, math: int, api: int) -> None:
    assert trained(cell(task="math", languages=languages)).num_steps == math
    assert trained(cell(task="api_calling", languages=languages)).num_steps == api


def test_flops_and_hours_follow_from_parameters_and_tokens() -> None:
    one = trained(cell("qwen3-8b", "api_calling", 1))
    assert one.num_tokens == 6 * 3024 * 525
    assert one.model_flops == 6 * 8_190_735_360 * one.num_tokens
    assert one.hardware_flops == one.model_flops and one.recomputes == "selective"
    assert "except for matrix products and attention" in " ".join(one.assumptions)
    full = trained(cell("qwen3-8b", "api_calling", 1, "trainer.gradient_checkpointing=true"))
    again = 2 * (8_190_735_360 - 151_936 * 4096) * one.num_tokens
    assert full.hardware_flops - full.model_flops == pytest.approx(again) and full.recomputes is True
    assert one.gpu_hours == pytest.approx(one.model_flops / (312e12 * 0.4 * 3600))
    assert one.wall_hours == pytest.approx(one.gpu_hours / 4)
    without = trained(cell("qwen3-0.6b", "math", 1, "trainer.gradient_checkpointing=false"))
    assert without.hardware_flops == without.model_flops and without.recomputes is False
    assert without.micro_batch_tokens and "keeps all activations" in " ".join(without.assumptions)


@pytest.mark.parametrize("model", ["qwen3-0.6b", "qwen3-8b", "gemma3-4b"])
def test_selective_recomputation_takes_the_time_of_none_and_a_memory_between_the_others(model: str) -> None:
    found = [
        trained(
            cell(
                model, "math", 2, f"trainer.gradient_checkpointing={how}", "trainer.micro_batch_tokens=2048"
            ),
            HardwareSettings(max_gpus=8).assumed,
        )
        for how in ("false", "selective", "true")
    ]
    hours, activations = (
        [one.gpu_hours for one in found],
        [one.memory_terms_gib["activations"] for one in found],
    )
    # Compiled layers repeat norms and activations within their kernels.
    assert hours[0] == hours[1] < hours[2]
    assert activations == sorted(activations, reverse=True) and len(set(activations)) == 3


@pytest.mark.long
def test_the_utilisation_follows_from_the_sizes_of_model_and_device_and_is_said() -> None:
    guesses = {}
    for model in ("gemma3-1b", "qwen3-1.7b", "gemma3-4b", "qwen3-8b"):
        one = trained(cell(model), HardwareSettings().assumed)
        assert 0.95 < one.useful_share < 1
        positions = one.gpu_hours * (1 - one.checkpoint_share) * one.useful_share
        guesses[model] = one.model_flops / (312e12 * 3600 * positions)
        said = f"MFU {guesses[model]:.0%} (ours, by model and device)"
        assert any(note.startswith(said) for note in one.assumptions)
    assert all(0.3 < guess < 0.56 for guess in guesses.values())


@pytest.mark.parametrize(
    ("layers", "recomputes", "is_compiled", "pack_tokens", "measured"),
    [
        (28, False, True, 10_496, 0.439),
        (28, "selective", True, 10_496, 0.435),
        (28, True, True, 10_496, 0.378),
        (28, True, True, 31_232, 0.410),
        (6, False, True, 10_496, 0.690),
        (6, "selective", True, 10_496, 0.695),
        (6, True, True, 10_496, 0.619),
        (6, True, True, 31_232, 0.659),
        (28, True, False, 30_848, 0.302),
        (6, True, False, 31_232, 0.549),
    ],
)
def test_the_model_of_speed_gives_what_was_measured(
    layers: int, recomputes: Recompute, is_compiled: bool, pack_tokens: int, measured: float
) -> None:
    """docs/gpu.md: Qwen3-1.7B, and the width of Qwen3-8B with 6 layers; MFU of computed positions."""
    model = cell("qwen3-1.7b" if layers == 28 else "qwen3-8b")["model"]
    sizes = decoder({**model["architecture"], "num_layers": layers}, model["family"])
    how: dict[str, Any] = {"recomputes": recomputes, "is_compiled": is_compiled, "pack_tokens": pack_tokens}
    assert mfu(sizes, "NVIDIA H100 80GB HBM3", **how) == pytest.approx(measured, rel=0.08)


def test_an_unknown_device_has_the_guess_by_size_alone() -> None:
    sizes = decoder(cell()["model"]["architecture"], "qwen3")
    assert mfu(sizes, "cpu", recomputes=True, is_compiled=True, pack_tokens=1) is None


def test_saving_waits_under_three_percent_of_the_time_of_each_of_the_studys_cells(
    study: list[dict[str, Any]],
) -> None:
    for config in study:
        one = trained(config, HardwareSettings().assumed)
        assert 0 < one.checkpoint_share < 0.03, config["model"]["name"]
        assert one.lost_s < 600


def test_a_state_that_is_not_copied_holds_the_training_up_for_one_part_in_34() -> None:
    """98 GB at 1 GB/s, each 33 times as long."""
    how = {"weight_bytes": 2, "num_gpus": 4, "step_s": 29.0, "num_steps": 10_000, "num_epochs": 1}
    at_once = save_costs(8_190_735_360, is_copied=False, **how)
    assert at_once.interval_s == pytest.approx(33 * 98.3, rel=0.001)
    assert at_once.share == pytest.approx(1 / 34, rel=0.02)
    assert at_once.stop_s == pytest.approx(29 + 98.3, rel=0.001)
    behind = save_costs(8_190_735_360, **how)
    assert behind.share < 0.005
    assert behind.lost_s < at_once.lost_s / 5
    assert save_costs(600_000, **how).interval_s == 60


def test_languages_cost_what_their_tokens_do() -> None:
    tokens = [trained(cell("qwen3-0.6b", "math", n)).num_tokens for n in (1, 2, 3, 4)]
    assert tokens[0] == pytest.approx(6 * 10_000 * 196 * 1.81)
    assert tokens[3] - tokens[2] == pytest.approx(6 * 10_000 * 632 * 1.81)  # bn


def test_answers_are_those_of_every_epoch_and_of_the_test() -> None:
    def number(config: dict[str, Any]) -> int:
        one = evaluate(Config(config), label="", hardware=A100, retention="all", measured=Measured())
        assert (one.model_flops, one.gpu_hours) == (0, 0)  # training's alone
        return one.num_generations

    assert number(cell(task="math", languages=5)) == 6 * 200 * 5 + 250 * 6
    assert number(cell(task="api_calling", languages=2)) == 6 * 150 * 2 + 399 * 6
    assert number(chain.config_of("model=qwen3-8b", "languages=[]", *REAL)) == 250 * 6


def test_what_retention_leaves_is_what_stays_on_disk() -> None:
    all_, best, none = (trained(cell("qwen3-8b"), retention=kept) for kept in ("all", "best", "none"))
    assert all_.disk_gib == pytest.approx(6 * best.disk_gib)
    assert best.disk_gib * 2**30 == 2 * 8_190_735_360
    assert none.disk_gib == 0
    assert all_.peak_disk_gib == best.peak_disk_gib == none.peak_disk_gib > all_.disk_gib


def test_what_cannot_fit_is_refused_with_what_takes_the_memory() -> None:
    with pytest.raises(UserError) as caught:
        trained(cell("qwen3-8b"), HardwareSettings(max_gpus=3).assumed)
    assert "qwen3-8b does not fit on 2 x a100" in str(caught.value)
    assert "state 61.0" in str(caught.value)
    with pytest.raises(UserError, match="does not fit") as caught:
        trained(cell("qwen3-8b", "math", 1, "trainer.micro_batch_size=64"))
    assert "trainer.micro_batch_size=null" in str(caught.value)
    laptop = Hardware(device="cpu", memory_gib=24, peak_tflops=0.1, max_gpus=1)
    with pytest.raises(UserError, match="does not fit on this host"):
        trained(cell("qwen3-8b"), laptop)
    small = Hardware(device="a10g", memory_gib=24, peak_tflops=125)
    how = {"label": "", "hardware": small, "retention": "all", "measured": Measured()}
    with pytest.raises(UserError, match="does not fit one device to generate"):
        evaluate(Config(cell("qwen3-8b", "math", 1, "evaluation.engine=transformers")), **how)
    evaluate(Config(cell("qwen3-8b")), **how)  # vLLM forms batches that fit


@pytest.mark.parametrize("model", ["qwen3-1.7b", "qwen3-8b", "gemma3-4b"])
@pytest.mark.parametrize(("device", "torch_bytes"), [("a100", 84_987_740_160), ("h200", 150_109_880_320)])
def test_what_is_planned_fits_what_cuda_says_there_is(model: str, device: str, torch_bytes: int) -> None:
    hardware = HardwareSettings(device=device).assumed
    planned = trained(cell(model), hardware)
    sizes = model_of(cell(model))
    assert sizes is not None and hardware.memory_gib <= torch_bytes / 2**30
    assert widest_pack(
        sizes,
        Load(row_tokens=2048, loss_chunk_tokens=1024),
        num_gpus=planned.num_gpus,
        memory_gib=torch_bytes / 2**30,
    )


def test_a_micro_batch_is_no_larger_than_a_devices_share_of_the_global_batch() -> None:
    overrides = ("trainer.global_batch_size=8", "trainer.micro_batch_size=8")
    one = trained(cell("qwen3-8b", "math", 1, *overrides), HardwareSettings(max_gpus=4).assumed)
    assert (one.num_gpus, one.micro_batch) == (4, 2)


def finished(config: dict[str, Any], **row: Any) -> Measured:
    rows = [{"split": "test", "num_items": 250, **row}]
    return Measured({"evaluate": [Finished(config, rows, 270.0)]})


def test_measurements_take_the_place_of_guesses_and_are_said() -> None:
    done = cell(languages=2)
    guessed = trained(done, HardwareSettings().assumed)
    measured = finished(
        done,
        train_tokens=2 * guessed.num_tokens,
        tokens_per_second=1000.0,
        peak_memory_gib=33.0,
        num_gpus=4,
    )
    same = trained(done, HardwareSettings().assumed, measured=measured)
    assert (same.num_tokens, same.memory_gib, same.measured) == (2 * guessed.num_tokens, 33.0, True)
    assert same.gpu_hours == pytest.approx(4 * same.num_tokens / 1000 / 3600)
    assert sum("measured on 1 cell of" in note for note in same.assumptions) == 3
    other = cell(languages=5)
    corrected = trained(other, HardwareSettings().assumed, measured=measured)
    assert corrected.num_tokens == pytest.approx(2 * trained(other).num_tokens, rel=1e-6)
    assert trained(cell("qwen3-8b"), measured=measured) == trained(cell("qwen3-8b"))
    assert trained(cell(task="api_calling"), measured=measured) == trained(cell(task="api_calling"))
    asked = trained(done, A100, measured=measured)  # an MFU that was asked for outranks the measured speed
    assert asked.gpu_hours == pytest.approx(asked.model_flops / (312e12 * 0.4 * 3600))
    answers = evaluate(Config(done), label="", hardware=A100, retention="all", measured=measured)
    assert answers.measured
    assert answers.generation_gpu_hours == pytest.approx(270.0 / 3600)


def test_a_config_sealed_before_there_were_costs_costs_nothing() -> None:
    config = {key: value for key, value in cell().items() if key != "costs"}
    assert trained(config).num_steps == 0


def test_the_sizes_of_a_local_model_are_read_from_its_folder(tmp_path: Any) -> None:
    (tmp_path / "config.json").write_text(
        '{"model_type": "qwen3", "num_hidden_layers": 28, "hidden_size": 1024, "intermediate_size": 3072,'
        ' "num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 151936}'
    )
    config = chain.config_of("model=custom", f"model.path={tmp_path}", *REAL)
    assert trained(config).model_flops == trained(cell()).model_flops
    unknown = trained(chain.config_of("model=custom", "model.path=some/hub-id", *REAL))
    assert (unknown.num_steps, unknown.model_flops) == (120, 0)
    assert "not known" in unknown.assumptions[0]


EXTRAS = ["fr", "de", "ru", "zh", "th"]
MIXTURES = [
    ["en"],
    *(["en", language] for language in CORE[1:]),
    *([other for other in CORE if other != language] + more
      for more in ([], ["fr", "th"], EXTRAS) for language in CORE),
    CORE,
    CORE + EXTRAS,
]  # fmt: skip
"""Study, section 1."""


@pytest.fixture(scope="module")
def study() -> list[dict[str, Any]]:
    """The study's 220 trained cells."""
    models = ("qwen3-0.6b", "qwen3-1.7b", "qwen3-8b", "gemma3-1b", "gemma3-4b")
    bases = [cell(model, task) for model in models for task in ("math", "api_calling")]
    return [{**base, "languages": mixture} for base in bases for mixture in MIXTURES]


def test_all_220_cells_come_to_what_the_study_says(study: list[dict[str, Any]]) -> None:
    assert len(study) == 220
    everything = [trained(config) for config in study]
    eflop = sum(one.model_flops for one in everything) / 1e18
    of_8b = sum(
        one.model_flops
        for one, config in zip(everything, study, strict=True)
        if config["model"]["name"] == "qwen3-8b"
    )
    assert eflop == pytest.approx(440, rel=0.01)
    again = [{**one, "trainer": {**one["trainer"], "gradient_checkpointing": True}} for one in study]
    flops = sum(trained(config).hardware_flops for config in again)
    assert flops / 1e18 == pytest.approx(567, rel=0.01)
    assert sum(one.gpu_hours for one in everything) == pytest.approx(980, rel=0.01)
    assert sum(one.num_tokens for one in everything) / 1e9 == pytest.approx(24, rel=0.03)
    assert of_8b / 1e18 / eflop == pytest.approx(0.54, abs=0.03)


def test_what_all_220_cells_leave_on_disk_is_what_the_study_says(study: list[dict[str, Any]]) -> None:
    def terabytes(retention: str) -> float:
        return sum(trained(config, retention=retention).disk_gib for config in study) * 2**30 / 1e12

    assert terabytes("best") == pytest.approx(1.35, rel=0.01)
    assert terabytes("all") == pytest.approx(8.1, rel=0.01)
    # The study's 10.8 TB count 16 bytes a parameter; a checkpoint holds 12, since no gradient is saved.
    resume = sum(trained(config).peak_disk_gib - trained(config).disk_gib for config in study) / 3
    assert resume * 2**30 / 1e12 == pytest.approx(10.8 * 12 / 16, rel=0.01)


def test_more_processes_than_a_cell_may_have_gpus_are_named() -> None:
    config = cell()
    config["trainer"]["num_processes"] = 16
    with pytest.raises(UserError, match=r"trainer.num_processes=16, but a cell may have 8 GPUs"):
        trained(config)


def test_cells_of_several_sizes_measure_what_a_doubling_keeps() -> None:
    done = cell(languages=2)

    def measured(**tokens_per_second: float) -> Measured:
        rows = [
            {"train_tokens": 1000, "tokens_per_second": speed, "num_gpus": int(number[1:])}
            for number, speed in tokens_per_second.items()
        ]
        return Measured({"evaluate": [Finished(done, [row], 270.0) for row in rows]})

    def on(number: int | None, measured: Measured) -> Estimate:
        hardware = msgspec.structs.replace(HardwareSettings().assumed, num_gpus=number)
        return trained(done, hardware, measured=measured)

    assert on(None, measured(x4=4000.0)).efficiency == 0  # one size tells nothing
    two = measured(x1=1000.0, x4=4 * 640.0)  # of the speed, 0.8 twice
    assert on(None, two).efficiency == pytest.approx(0.8)
    hours = {number: on(number, two).wall_hours for number in (1, 2, 4, 8)}
    assert [hours[1] / hours[number] for number in (2, 4, 8)] == pytest.approx([1.6, 2.56, 4.096])
    assert on(None, measured(x1=1000.0, x4=1000.0)).efficiency == 0.5  # never below: more would take longer
    assert on(8, two).host_memory_gib > on(1, two).host_memory_gib  # of all processes


@pytest.mark.parametrize(
    ("overrides", "most"),
    [((), 512), (("trainer.global_batch_size=12",), 8), (("trainer.num_processes=2",), 2)],
)
def test_training_uses_a_gpu_for_each_row_of_a_step_at_most(overrides: tuple[str, ...], most: int) -> None:
    assert trained(cell("qwen3-0.6b", "math", 1, *overrides)).most_gpus == most


def test_a_rehearsal_takes_longer_for_larger_models_and_a_minute_where_nothing_is_trained() -> None:
    def seconds(*words: Any) -> float:
        given = {"label": "", "hardware": A100, "retention": "all", "measured": Measured()}
        return 3600 * rehearse(Config(cell(*words)), **given).wall_hours

    untrained, small, large = seconds("qwen3-8b", "math", 0), seconds(), seconds("qwen3-8b")
    assert 30 < untrained < small < 100 < large < 400
