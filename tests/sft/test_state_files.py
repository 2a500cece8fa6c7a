"""Training state holds no code: it moves between numbers of processes, and hostile files are refused."""

from __future__ import annotations

import builtins
import io
import json
import os
import pickle
import shutil
import tarfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch.distributed.checkpoint.filesystem import FileSystemWriter
from torch.distributed.checkpoint.state_dict import get_state_dict
from torch.distributed.checkpoint.state_dict_saver import save as save_distributed

from orchestrator.errors import StageFailure, StopRequested
from orchestrator.manifest import REMEMBERED, file_digest
from orchestrator.saving import MANIFEST, write_checkpoint_manifest
from orchestrator.sft import runtime, state_before, state_files
from orchestrator.sft.checkpoints import load_state, sizes_of_state, state_of, write_state
from orchestrator.sft.distributed import launcher
from orchestrator.sft.distributed.parallel import group_of_one
from orchestrator.stage import Checkpoint, Config, Context, Inputs, StopSignal
from tests.sft import chain, sharded
from tests.sft.chain import Log
from tests.sft.conftest import ByTwo, Ground
from tests.sft.test_training import adopt, history, stop_after, train, weights

pytestmark = pytest.mark.xdist_group("sft")  # one worker makes what the tests share


def stopped(ground: Ground, folder: Path) -> Checkpoint:
    """Return the checkpoint of a training that was stopped."""
    asked = StopSignal()
    log = Log(lambda step: asked.ask("preempted") if step == 6 else None)
    with pytest.raises(StopRequested):
        train(ground, folder, stop=asked, trackers=[log])
    checkpoint = chain.newest(folder)
    assert checkpoint
    return checkpoint


def assembled(folder: Path) -> dict[str, torch.Tensor]:
    """Return the whole tensors of a state, by a reader that knows safetensors alone."""
    found: dict[str, torch.Tensor] = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            offsets = json.loads(file.metadata()["offsets"])
            for name in sorted(file.keys(), key=lambda name: offsets[name]):
                part = file.get_tensor(name)
                found[name] = torch.cat([found[name], part]) if offsets[name][:1] > [0] else part
    return found


@pytest.mark.long
def test_a_state_goes_from_two_processes_to_one_and_back_bit_for_bit(
    ground: Ground, by_two: ByTwo, tmp_path: Path
) -> None:
    first = by_two("fsdp").checkpoint.folder
    inputs = {"base": ground.inputs["base"]}
    sharded.resave(Config({"folder": str(first)}), Inputs(inputs), Context(tmp_path / "one"))
    launcher.run(
        "tests.sft.sharded:resave",
        Config({"folder": str(tmp_path / "one/output")}),
        Inputs(inputs),
        Context(tmp_path / "two"),
        num_processes=2,
        device="cpu",
    )
    states = [first / "state", tmp_path / "one/output/state", tmp_path / "two/output/state"]
    assert [len(list(state.iterdir())) for state in states] == [2, 1, 2]
    whole, *others = [assembled(state) for state in states]
    assert {name.rpartition(".")[2] for name in whole} == {"weight", "step", "exp_avg", "exp_avg_sq"}
    for other in others:
        assert set(other) == set(whole)
        assert all(torch.equal(other[name], whole[name]) for name in whole)
    for one, other in zip(sorted(states[0].iterdir()), sorted(states[2].iterdir()), strict=True):
        assert one.read_bytes() == other.read_bytes()


def test_a_checkpoint_holds_json_and_safetensors_alone(ground: Ground, tmp_path: Path) -> None:
    checkpoint = stopped(ground, tmp_path)
    assert {path.suffix for path in checkpoint.folder.rglob("*") if path.is_file()} == {
        ".json",
        ".safetensors",
    }
    for path in (checkpoint.folder / "state").iterdir():
        assert load_file(path)  # a stock reader takes it


def as_before(base: Path, checkpoint: Checkpoint) -> None:
    """Rewrite the state of a checkpoint as the version before wrote it."""
    placed, optimizer = sharded.placed_with_optimizer(base, sharding="auto")
    load_state(placed, optimizer, checkpoint.folder)
    shutil.rmtree(checkpoint.folder / "state")
    model, moments = get_state_dict(placed.model, optimizer)
    with warnings.catch_warnings(action="ignore"):
        save_distributed(
            {"model": model, "moments": moments["state"]},
            storage_writer=FileSystemWriter(checkpoint.folder / "state", sync_files=False),
            no_dist=True,
        )
    (checkpoint.folder / MANIFEST).unlink()
    write_checkpoint_manifest(checkpoint.folder, step=checkpoint.step, attempt=1)


@pytest.fixture(scope="module")
def before(ground: Ground, tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """A checkpoint of the version before, after 8 of 18 steps."""
    folder = tmp_path_factory.mktemp("before")
    stop_after(ground, folder, 8)
    checkpoint = chain.newest(folder)
    assert checkpoint
    as_before(ground.inputs["base"][""], checkpoint)
    return checkpoint


def test_a_state_of_the_version_before_goes_on_to_the_same_numbers(
    ground: Ground, before: Checkpoint, tmp_path: Path
) -> None:
    assert (before.folder / "state/.metadata").exists()
    whole = train(ground, tmp_path / "whole")
    again = adopt(before, tmp_path / "resumed")
    resumed = train(ground, tmp_path / "resumed", resume=again, interval_s=0.0)
    assert weights(resumed) == weights(whole)
    assert history(resumed) == history(whole)
    newest = chain.newest(tmp_path / "resumed")
    assert newest and newest.step == 17 and not list(newest.folder.rglob(".metadata"))


class Calls:
    """Unpickles to a call of a function."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return self.call


def refused(base: Path, checkpoint: Checkpoint, folder: Path, change: Callable[[Path], Any]) -> str:
    """Return why a changed copy of a state is refused; its manifest agrees with the change."""
    attacked = folder / checkpoint.folder.name
    shutil.copytree(checkpoint.folder, attacked)
    change(attacked / "state")
    (attacked / MANIFEST).unlink()
    write_checkpoint_manifest(attacked, step=checkpoint.step, attempt=1)
    placed, optimizer = sharded.placed_with_optimizer(base, sharding="auto")
    with pytest.raises(StageFailure) as failure:
        load_state(placed, optimizer, attacked)
    assert failure.value.cause in ("data", "storage")
    return str(failure.value)


def in_index(state: Path, change: Callable[[Any], Any]) -> None:
    index = pickle.loads((state / ".metadata").read_bytes())
    (state / ".metadata").write_bytes(pickle.dumps(change(index)))


def nested(index: Any, call: Calls) -> Any:
    index.storage_data = {**index.storage_data, "more": [{"deep": (call,)}]}
    return index


def elsewhere(index: Any) -> Any:
    for info in index.storage_data.values():
        info.relative_path = "../../secret"
    return index


def test_an_index_that_calls_a_function_is_refused_and_calls_nothing(
    ground: Ground, before: Checkpoint, tmp_path: Path
) -> None:
    base, ran = ground.inputs["base"][""], tmp_path / "ran"
    system = Calls(os.system, f"touch {ran}")
    (tmp_path / "hostile.pt").write_bytes(pickle.dumps(system))
    changes: list[tuple[Callable[[Any], Any], str]] = [
        (lambda index: system, "it names posix.system"),
        (lambda index: Calls(builtins.eval, f"open({str(ran)!r}, 'w')"), "it names builtins.eval"),
        (lambda index: nested(index, system), "it names posix.system"),
        (lambda index: Calls(torch.load, str(tmp_path / "hostile.pt")), "it names torch.serialization.load"),
        (elsewhere, "is in '../../secret'"),
    ]
    for number, (change, says) in enumerate(changes):
        folder = tmp_path / str(number)
        assert says in refused(base, before, folder, lambda state, change=change: in_index(state, change))
    assert not ran.exists()


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"cos\nsystem\n(Vtouch RAN\ntR.", "it names os.system"),
        (b"\x80\x04cbuiltins\ngetattr\n(cos\n__dict__\nVsystem\ntR.", "it names builtins.getattr"),
        (b"\x80\x04\x8c\x05torch\x8c\x09os.system\x93(VRAN\ntR.", "it names torch.os.system"),
        (b"(Vtouch RAN\nios\nsystem\n.", "it names os.system"),
        (b"\x82\x01.", "extension"),
        (b"Vno index\n.", "no index"),
        (b"", "EOFError"),
    ],
)
def test_an_index_that_is_forged_byte_by_byte_is_refused(
    ground: Ground, before: Checkpoint, tmp_path: Path, data: bytes, says: str
) -> None:
    forged = data.replace(b"RAN", str(tmp_path / "ran").encode())
    base = ground.inputs["base"][""]
    why = refused(base, before, tmp_path, lambda state: (state / ".metadata").write_bytes(forged))
    assert says in why and not (tmp_path / "ran").exists()


def payload(state: Path, data: bytes) -> None:
    """Put other bytes in the place of every tensor."""

    def change(index: Any) -> Any:
        for info in index.storage_data.values():
            info.offset, info.length = 0, len(data)
        return index

    in_index(state, change)
    (state / "__0_0.distcp").write_bytes(data)


def legacy_tar(call: Calls) -> bytes:
    """Return what `torch.load` once read: a tar file of pickles."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as tar:
        for name in ("sys_info", "pickle", "storages", "tensors"):
            data = pickle.dumps(call)
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return stream.getvalue()


def zipped(call: Calls) -> bytes:
    stream = io.BytesIO()
    torch.save(call, stream)
    return stream.getvalue()


def legacy(call: Calls) -> bytes:
    stream = io.BytesIO()
    torch.save(call, stream, _use_new_zipfile_serialization=False)
    return stream.getvalue()


@pytest.mark.parametrize("form", [zipped, legacy, legacy_tar, pickle.dumps])
def test_a_tensor_that_is_code_is_refused_in_every_form_that_torch_knows(
    ground: Ground, before: Checkpoint, tmp_path: Path, form: Callable[[Calls], bytes]
) -> None:
    ran = tmp_path / "ran"
    data = form(Calls(os.system, f"touch {ran}"))
    refused(ground.inputs["base"][""], before, tmp_path, lambda state: payload(state, data))
    assert not ran.exists()


def test_a_state_that_lacks_a_part_or_is_damaged_is_named(ground: Ground, tmp_path: Path) -> None:
    placed, optimizer = sharded.placed_with_optimizer(ground.inputs["base"][""], sharding="auto")
    write_state(state_of(placed, optimizer), tmp_path)
    (file,) = (tmp_path / "state").iterdir()
    whole = file.read_bytes()
    with safe_open(file, framework="pt") as opened:
        metadata = opened.metadata()
    less = load_file(file)
    del less["moments.model.norm.weight.exp_avg"]
    save_file(less, file, metadata=metadata)
    with pytest.raises(StageFailure, match="state"):
        load_state(placed, optimizer, tmp_path)
    file.write_bytes(whole[:-8])
    with pytest.raises(StageFailure, match="holds no state") as failure:
        load_state(placed, optimizer, tmp_path)
    assert failure.value.cause == "storage"
    file.unlink()
    with pytest.raises(StageFailure, match=r"elements of model\.model\.embed_tokens\.weight are not in"):
        load_state(placed, optimizer, tmp_path)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64, torch.int64, torch.bool])
def test_tensors_of_any_size_and_type_come_back_bit_for_bit(tmp_path: Path, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    saved = {
        "many.blocks": (torch.randn(2**12, 2**12 + 1) * 9).to(dtype),
        "scalar": torch.tensor(3).to(dtype),
        "transposed": torch.randn(5, 7).to(dtype).T,
        "mixed": torch.randn(3),
    }
    tied = {**saved, "tied": saved["many.blocks"]}
    state_files.write_pieces(state_files.own_pieces(tied), tmp_path / "state")
    read = {name: torch.zeros_like(tensor) for name, tensor in saved.items()}
    state_files.read(read, tmp_path / "state")
    for name, tensor in saved.items():
        assert torch.equal(read[name], tensor)
    assert not state_before.is_before(tmp_path / "state")


@pytest.mark.parametrize("sharding", ["ddp", "fsdp"])
def test_the_sizes_of_a_state_are_known_before_there_are_moments(ground: Ground, sharding: str) -> None:
    with group_of_one(sharding, torch.device("cpu")):
        placed, optimizer = sharded.placed_with_optimizer(ground.inputs["base"][""], sharding=sharding)
        expected = sizes_of_state(placed)
        for parameter in placed.parameters:
            parameter.grad = torch.zeros_like(parameter)
        optimizer.step()
        found = [tensor.nbytes for _, tensor in state_of(placed, optimizer).values() if tensor.ndim]
    assert sorted(found) == sorted(expected)


def test_weights_in_several_files_are_the_model_and_are_remembered_by_their_digests(
    ground: Ground, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(state_files, "FILE_BYTES", 1000)
    placed, _ = sharded.placed_with_optimizer(ground.inputs["base"][""], sharding="ddp")
    sharded.save_weights(placed, tmp_path / "weights", dtype=torch.float32)
    files = sorted((tmp_path / "weights").glob("*.safetensors"))
    assert len(files) > 1
    loaded = dict(runtime.load_weights(tmp_path / "weights").named_parameters())
    assert all(torch.equal(loaded[name], own) for name, own in placed.model.named_parameters())
    remembered = REMEMBERED.of(files)
    assert {str(path): file_digest(path) for path in files} == {
        str(path): digest for path, (_, digest) in remembered.items()
    }
