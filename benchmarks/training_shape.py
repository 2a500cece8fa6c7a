"""How well the study's optimiser steps use their GPUs, as the training stage divides them; needs no GPU.

Row lengths are drawn around the counted tokens of each language (`costs`), or read from a file. Each step of
512 rows of an epoch is divided by the product's own code, for 1, 2, 4 and 8 GPUs. The useful share of a step
is its real tokens / (GPUs x positions that the slowest one computes, padding and masked packs included).
The checkpoint share of a model is the time in which its trainings wait for weights, states, hashing and
fsync, divided by their wall time, with the product's intervals and file sizes and a disk of the given speed.

    python benchmarks/training_shape.py [--lengths FILE.json] [--disk-gb-s 1.0] [--json]
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import yaml  # type: ignore[import-untyped]

from orchestrator.costs import DEVICES
from orchestrator.errors import UserError
from orchestrator.sft.memory import BUSY_TOKENS, MAX_PACK_TOKENS, Decoder, Fit, Load, decoder, widest_pack
from orchestrator.sft.packing import Packs, plan_widths, useful_share
from orchestrator.sft.shards import EpochOrder
from orchestrator.sft.speed import DISK_GB_S, decided, fit, mfu, save_costs
from orchestrator.sft.workload import CostsConfig

CONF = Path(__file__).resolve().parents[1] / "conf"
SWEEP = CONF.parent / "sweeps" / "multilingual_220.yaml"
GPUS = (1, 2, 4, 8)
DEVICE = "a100"
"""The study's device."""
LONGEST_TOKENS, GLOBAL_BATCH = 2048, 512
"""The longest row that is kept, and rows of a step."""
NUM_GPUS, NUM_EPOCHS = 8, 6
"""Devices and epochs of a training of the study."""
LEAST_SHARE = 0.95
"""Useful share with which seconds are computed, a little less than any that packing gives."""
VALIDATED = 0.02
"""Rows of validation for each row of training, the fewest of the study's tasks."""
EXTRAS = ("fr", "th")


def read(path: Path) -> Any:
    """Return a YAML file as plain values."""
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def models() -> dict[str, tuple[Decoder, str]]:
    """Return the sizes and the family of each model of the study."""
    names = read(SWEEP)["axes"]["model"]
    found = {name: read(CONF / "model" / f"{name}.yaml") for name in names}
    return {
        name: (decoder(one["architecture"], one["family"]), one["family"].partition("_")[0])
        for name, one in found.items()
    }


def mixtures() -> dict[str, tuple[str, ...]]:
    """Return the languages of each mixture of the study."""
    stand_in = dict(zip(("${extras.0}", "${extras.1}"), EXTRAS, strict=True))
    return {
        name: tuple(stand_in.get(language, language) for language in one["languages"])
        for name, one in read(SWEEP)["axes"]["mixture"].items()
        if one["languages"]
    }


def rows_of(costs: CostsConfig, task: str, family: str, languages: Sequence[str]) -> np.ndarray:
    """Return made-up row lengths of a mixture, with the counted mean of each language."""
    facts, random = costs.tasks[task], np.random.default_rng(0)
    means = [facts.of_languages([language], family) * facts.train_length_factor for language in languages]
    spread = facts.length_spread
    drawn = [random.lognormal(np.log(mean) - spread**2 / 2, spread, facts.num_train) for mean in means]
    return np.clip(np.concatenate(drawn), 16, LONGEST_TOKENS).astype(np.int64)


def limit(models: Sequence[Decoder], longest: int, num_gpus: int) -> int:
    """Return the tokens of a pack that fits the GPUs with any of the models that they hold at all."""
    memory: dict[str, Any] = {"num_gpus": num_gpus, "memory_gib": DEVICES[DEVICE].memory_gib}
    load = Load(row_tokens=longest, checkpointing=None, loss_chunk_tokens=1024)
    found = (
        widest_pack(model, decided(model, load, most_tokens=MAX_PACK_TOKENS, **memory), **memory)
        for model in models
    )
    return min((tokens for tokens in found if tokens is not None), default=BUSY_TOKENS)


def shape(lengths: np.ndarray, models: Sequence[Decoder]) -> dict[int, tuple[float, tuple[int, ...]]]:
    """Return the useful share and the widths of packs by number of GPUs."""
    steps = EpochOrder(lengths, global_batch_size=GLOBAL_BATCH, seed=0).steps(0)
    found = {}
    for num_gpus in GPUS:
        tokens = limit(models, int(lengths.max()), num_gpus)
        widths = plan_widths(lengths, steps, num_processes=num_gpus, max_tokens=tokens)
        computed = Packs(lengths, widths=widths).computed(steps, num_processes=num_gpus)
        found[num_gpus] = useful_share(lengths, steps, computed), widths
    return found


def read_lengths(path: Path) -> np.ndarray:
    """Return the row lengths of a file.

    Raises:
        UserError: it is no list of positive whole numbers, or an empty one.
    """
    allowed = "a JSON list of row lengths in tokens, such as [196, 235, 632]"
    try:
        given = msgspec.json.decode(path.read_bytes())
    except (OSError, msgspec.DecodeError) as error:
        raise UserError(f"{path}: {error}", where="--lengths", allowed=allowed) from error
    if not isinstance(given, list) or not given:
        raise UserError(f"{path} holds no rows", where="--lengths", allowed=allowed)
    if wrong := [one for one in given if not isinstance(one, int) or isinstance(one, bool) or one < 1]:
        raise UserError(f"{path}: {wrong[0]!r} is no row length", where="--lengths", allowed=allowed)
    return np.array(given, dtype=np.int64)


def step_seconds(models: Mapping[str, tuple[Decoder, str]], tokens: Mapping[str, float]) -> dict[str, float]:
    """Return the seconds of a step on 8 devices of the study, at the utilisation that plans assume."""
    return {
        name: round(seconds(model, placed(model, NUM_GPUS), tokens[family]), 2)
        for name, (model, family) in models.items()
    }


def placed(model: Decoder, num_gpus: int | None) -> Fit:
    """Return how a model is trained on some devices of the study; None for the fewest, as plans take."""
    found = fit(
        model,
        Load(row_tokens=LONGEST_TOKENS, checkpointing=None, loss_chunk_tokens=1024),
        max_gpus=NUM_GPUS,
        memory_gib=DEVICES[DEVICE].memory_gib,
        global_batch=GLOBAL_BATCH,
        micro_batch=None,
        num_gpus=num_gpus,
    )
    assert found is not None, "the study fits its devices"
    return found


def seconds(model: Decoder, how: Fit, num_tokens: float) -> float:
    """Return the seconds of a step of so many tokens on devices of the study."""
    used = mfu(model, DEVICE, recomputes=how.checkpointing, is_compiled=True, pack_tokens=how.tokens)
    assert used is not None, "a GPU"
    rate = how.num_gpus * DEVICES[DEVICE].peak_tflops * 1e12 * used * LEAST_SHARE
    return 6 * model.num_parameters * num_tokens / rate


def checkpoint_shares(
    models: Mapping[str, tuple[Decoder, str]],
    cells: Mapping[str, Sequence[np.ndarray]],
    disk_gb_s: float,
    num_gpus: int | None,
) -> dict[str, dict[str, float]]:
    """Return the checkpoint share of each model: of all its trainings together, and of the worst one.

    Args:
        models: sizes and family by name.
        cells: family to the row lengths of each training.
        disk_gb_s: bandwidth of the disk, in GB/s.
        num_gpus: devices of each training; None for the fewest, as plans take.
    """
    found = {}
    for name, (model, family) in models.items():
        held_s, wall_s, worst, how = 0.0, 0.0, 0.0, placed(model, num_gpus)
        for lengths in cells[family]:
            num_steps = NUM_EPOCHS * -(-len(lengths) // GLOBAL_BATCH)
            step_s = seconds(model, how, NUM_EPOCHS * float(lengths.sum()) / num_steps)
            one = save_costs(
                model.num_parameters,
                weight_bytes=2,
                num_gpus=how.num_gpus,
                step_s=step_s,
                num_steps=num_steps,
                num_epochs=NUM_EPOCHS,
                disk_gb_s=disk_gb_s,
                # A forward pass takes a third of the time.
                validation_s=num_steps / NUM_EPOCHS * step_s * VALIDATED / 3,
            )
            held_s += one.held_s
            wall_s += num_steps * step_s + one.held_s
            worst = max(worst, one.share)
        found[name] = {"all": round(held_s / wall_s, 4), "worst": round(worst, 4)}
    return found


def measure(given: np.ndarray | None, disk_gb_s: float = DISK_GB_S) -> dict[str, Any]:
    """Return what the benchmark prints.

    Args:
        given: row lengths in place of the study's.
        disk_gb_s: bandwidth of the disk of checkpoints, in GB/s.
    """
    costs, sizes = msgspec.convert(read(CONF / "costs" / "study.yaml"), CostsConfig), models()
    families = sorted({family for _, family in sizes.values()})
    shapes: dict[str, dict[int, tuple[float, tuple[int, ...]]]] = {}
    tokens: dict[str, list[float]] = {family: [] for family in families}
    cells: dict[str, list[np.ndarray]] = {family: [] for family in families}
    known: dict[bytes, dict[int, tuple[float, tuple[int, ...]]]] = {}
    for family in families:
        of_family = [model for model, its_family in sizes.values() if its_family == family]
        for name, languages in {"given": ()}.items() if given is not None else mixtures().items():
            for task in ("rows",) if given is not None else costs.tasks:
                lengths = given if given is not None else rows_of(costs, task, family, languages)
                # Mixtures of languages with equal counts have equal rows.
                key = lengths.tobytes() + family.encode()
                if key not in known:
                    known[key] = shape(lengths, of_family)
                label = f"{task} {name} {family}" if given is None else f"{task} {family}"
                shapes[label] = known[key]
                cells[family].append(lengths)
                tokens[family].append(float(lengths.mean()) * min(GLOBAL_BATCH, len(lengths)))
    waits = checkpoint_shares(sizes, cells, disk_gb_s, NUM_GPUS)
    planned = checkpoint_shares(sizes, cells, disk_gb_s, None)
    shares = {
        label: {str(n): round(share, 4) for n, (share, _) in one.items()} for label, one in shapes.items()
    }
    return {
        "useful_share": {str(n): min(one[str(n)] for one in shares.values()) for n in GPUS},
        "by_mixture": shares,
        "distinct_shapes": max(len(widths) for one in shapes.values() for _, widths in one.values()),
        "checkpoint_share": {name: share["all"] for name, share in waits.items()},
        "worst_checkpoint_share": {name: share["worst"] for name, share in waits.items()},
        "worst_planned_checkpoint_share": {name: share["worst"] for name, share in planned.items()},
        "disk_gb_s": disk_gb_s,
        "step_seconds": step_seconds(sizes, {name: float(np.mean(n)) for name, n in tokens.items()}),
        "device": DEVICE,
    }


def main() -> int:
    """Print the shares as a table or as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--lengths", type=Path, help="JSON list of row lengths in place of the study's")
    parser.add_argument(
        "--disk-gb-s", type=float, default=DISK_GB_S, help="bandwidth of the disk of checkpoints"
    )
    parser.add_argument("--json", action="store_true", help="print one line of JSON")
    args = parser.parse_args()
    try:
        if not args.disk_gb_s > 0:
            raise UserError(f"{args.disk_gb_s} is no bandwidth", where="--disk-gb-s", allowed="more than 0")
        given = read_lengths(args.lengths) if args.lengths is not None else None
        found = measure(given, args.disk_gb_s)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if args.json:
        print(json.dumps(found))
        return 0
    print(f"{'useful share, GPUs':34}" + "".join(f"{n:>8}" for n in GPUS))
    for label, one in found["by_mixture"].items():
        print(f"{label:34}" + "".join(f"{one[str(n)]:8.3f}" for n in GPUS))
    print(f"{'least':34}" + "".join(f"{found['useful_share'][str(n)]:8.3f}" for n in GPUS))
    print(f"at most {found['distinct_shapes']} widths a training")
    print(f"waits for checkpoints on a disk of {found['disk_gb_s']:g} GB/s: {found['checkpoint_share']}")
    print(f"at most in one training: {found['worst_checkpoint_share']}")
    print(f"at most on as many GPUs as the plan gives: {found['worst_planned_checkpoint_share']}")
    print(f"seconds of a step on 8 x {DEVICE}: {found['step_seconds']}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
