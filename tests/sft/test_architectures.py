"""The loss is that of a model's own logits, whatever its architecture does to them; else it is refused."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional
from transformers import PreTrainedModel

from orchestrator.errors import StageFailure
from orchestrator.sft.distributed.parallel import layers_of
from orchestrator.sft.loss import ResponseLoss
from orchestrator.sft.shards import Rows
from tests.sft.architectures import BIDIRECTIONAL, CAUSAL, DIFFERING, tiny
from tests.sft.test_order_and_loss import ROWS, gradients

SMALL = [row._replace(input_ids=[token % 150 for token in row.input_ids]) for row in ROWS]
"""With tokens that the models have."""
EACH = [*DIFFERING, *(pytest.param(name, marks=pytest.mark.long) for name in CAUSAL)]


def own_loss(model: PreTrainedModel, rows: Rows) -> torch.Tensor:
    """Return the loss of the model's own logits, each row alone and without padding."""
    losses = []
    for row in range(len(rows)):
        batch = rows.batch([row])
        logits = model(input_ids=batch.input_ids, use_cache=False).logits
        losses.append(
            functional.cross_entropy(logits[0, batch.positions].float(), batch.targets, reduction="sum")
        )
    return torch.stack(losses).sum()


@pytest.mark.parametrize("model_type", EACH)
def test_loss_and_gradients_of_an_architecture_are_those_of_its_own_logits(model_type: str) -> None:
    model, rows = tiny(model_type).eval(), Rows(SMALL, pad_token_id=0)
    own = own_loss(model, rows)
    own.backward()
    expected = gradients(model)
    loss = ResponseLoss(model, chunk_tokens=7)(rows.batch(range(len(rows))))
    assert loss.item() == pytest.approx(own.item(), rel=1e-5)
    loss.backward()
    found = gradients(model)
    assert set(found) == set(expected)
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize(
    "model_type", [BIDIRECTIONAL[0], *(pytest.param(m, marks=pytest.mark.long) for m in BIDIRECTIONAL[1:])]
)
def test_a_model_whose_tokens_see_later_ones_is_refused(model_type: str) -> None:
    with pytest.raises(StageFailure, match="is not causal") as refused:
        ResponseLoss(tiny(model_type), chunk_tokens=8)(Rows(SMALL[:1], pad_token_id=0).batch([0]))
    assert refused.value.cause == "config"


def test_a_model_whose_logits_need_more_than_hidden_states_is_refused_by_name() -> None:
    class Biased(type(tiny("llama"))):  # type: ignore[misc]
        def forward(self, input_ids: torch.Tensor | None = None, **kwargs: object) -> object:
            output = super().forward(input_ids=input_ids, **kwargs)
            if input_ids is not None:
                output.logits[..., 3] += input_ids
            return output

    model = tiny("llama")
    model.__class__ = Biased
    with pytest.raises(StageFailure, match="the loss of Biased would not be that of its own logits"):
        ResponseLoss(model, chunk_tokens=8)(Rows(SMALL[:1], pad_token_id=0).batch([0]))


def test_verifying_leaves_training_as_it_was() -> None:
    model = tiny("gpt2").train()
    model.transformer.drop.eval()
    before = [module.training for module in model.modules()]
    state = torch.get_rng_state()
    loss = ResponseLoss(model, chunk_tokens=8)
    loss._verify(torch.arange(3, 20))
    assert [module.training for module in model.modules()] == before
    assert torch.equal(torch.get_rng_state(), state)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_the_layers_to_shard_are_found_by_what_they_hold() -> None:
    for model_type, path in (
        ("qwen3", "model.layers"),
        ("gpt2", "transformer.h"),
        ("mixtral", "model.layers"),
    ):
        model = tiny(model_type)
        assert layers_of(model) is model.get_submodule(path)
        assert isinstance(layers_of(model), nn.ModuleList)
