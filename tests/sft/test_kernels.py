"""Fused norms and compiled layers compute what the model's own code computes."""

from __future__ import annotations

import copy

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from orchestrator.sft import kernels
from orchestrator.sft.distributed.parallel import Placed, group_of_one, whole
from orchestrator.sft.memory import Recompute
from tests.sft.architectures import tiny
from tests.sft.test_packing import rows_of


@pytest.mark.parametrize(
    ("model_type", "number"),
    [("qwen3", 9), ("llama", 5), ("gemma3_text", 13), ("olmo2", 9), ("gpt2", 0), ("stablelm", 0)],
)
def test_norms_are_found_by_what_they_compute(model_type: str, number: int) -> None:
    model = tiny(model_type).eval()
    fused = copy.deepcopy(model)
    ids = torch.arange(3, 40)[None]
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:  # weights that matter
                parameter.add_(torch.linspace(-0.5, 0.5, len(parameter)))
        fused.load_state_dict(model.state_dict())
        assert kernels.fuse_norms(fused) == number
        assert kernels.fuse_norms(fused) == number
        own, ours = (one(input_ids=ids).logits for one in (model, fused))
    torch.testing.assert_close(ours, own, rtol=1e-4, atol=1e-5)
    assert [name for name, _ in fused.named_parameters()] == [name for name, _ in model.named_parameters()]


@pytest.mark.long
@pytest.mark.parametrize("model_type", ["qwen3", "gemma3_text"])
@pytest.mark.parametrize(("sharding", "recompute"), [("ddp", True), ("fsdp", True), ("fsdp", "selective")])
def test_compiled_layers_share_their_code_and_give_the_same_gradients(
    model_type: str, sharding: str, recompute: Recompute
) -> None:
    torch._dynamo.reset()
    rows, device = rows_of([12, 9, 40, 21]), torch.device("cpu")
    with group_of_one(sharding, device):
        placed = Placed(
            lambda: tiny(model_type),
            device=device,
            sharding=sharding,
            bf16=sharding == "fsdp",
            gradient_checkpointing=recompute,
            chunk_tokens=16,
        )
        assert placed.is_sharded == (sharding == "fsdp")
        assert kernels.fuse_norms(placed.model) > 0
        kernels.enable(placed.decoder)
        found = []
        for compiled in (False, True):
            if compiled:
                torch._dynamo.utils.counters.clear()
                placed.compile(backend="aot_eager")
            loss = placed.losses(rows.pack([0, 1, 2], width=64))
            loss.backward()  # type: ignore[no-untyped-call]
            norm = torch.nn.utils.get_total_norm([p.grad for p in placed.parameters if p.grad is not None])
            found.append((loss.item(), float(norm)))
            placed.model.zero_grad()
    assert found[1] == pytest.approx(found[0], rel=1e-5)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 2  # a layer, and the cross entropy
    assert not torch._dynamo.utils.counters["graph_break"]


@pytest.mark.parametrize("model_type", ["qwen3", "gemma3_text"])
@pytest.mark.parametrize("sharding", ["ddp", "fsdp"])
def test_selective_recomputation_repeats_no_matrix_product_and_gives_the_same_gradients(
    model_type: str, sharding: str
) -> None:
    rows, device = rows_of([12, 9, 40, 21]), torch.device("cpu")
    hows: tuple[Recompute, ...] = (False, "selective", True)
    found = {}
    with group_of_one(sharding, device):
        for how in hows:
            torch.manual_seed(0)
            placed = Placed(
                lambda: tiny(model_type),
                device=device,
                sharding=sharding,
                bf16=False,
                gradient_checkpointing=how,
                chunk_tokens=1024,
            )
            kernels.enable(placed.decoder)
            pack = rows.pack([0, 1, 2, 3], width=96)
            placed.losses(pack)  # the first batch is compared with the model's own logits
            with FlopCounterMode(display=False) as counter:
                loss = placed.losses(pack)
                loss.backward()  # type: ignore[no-untyped-call]
            gradients = [whole(p.grad) for p in placed.parameters if p.grad is not None]
            found[how] = counter.get_total_flops(), loss.item(), gradients
    assert found[False][0] == found["selective"][0] < found[True][0]
    for how in ("selective", True):
        assert found[how][1] == found[False][1]
        assert all(map(torch.equal, found[how][2], found[False][2]))
