"""Replies from weights on this machine: a tiny model whose reply never ends by itself."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from orchestrator.sft import stages
from orchestrator.stage import Config, Context, Inputs
from orchestrator.translation.local import LocalModel
from orchestrator.translation.rows import Conversation, ReplyCache, row_digest
from tests.sft import chain
from tests.translation.rows import english


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of a tiny model with its tokenizer."""
    folder = tmp_path_factory.mktemp("model")
    config = chain.small("languages=[en]")
    tokenizer, _ = chain.run(stages.TOKENIZER, config, folder / "tokenizer")
    base, _ = chain.run(stages.BASE, config, folder / "base", {"tokenizer": {"": tokenizer}})
    for part in (tokenizer, base):
        shutil.copytree(part, folder / "both", dirs_exist_ok=True)
    return folder / "both"


@pytest.mark.parametrize(
    ("max_tokens", "free", "reply"), [(5, 60, 5), (60, 5, 5), (5, None, 5), (1, 1, 1), (5, 0, 0)]
)
def test_a_reply_ends_at_its_limit_and_at_the_end_of_the_models_positions(
    weights: Path, tmp_path: Path, max_tokens: int, free: int | None, reply: int
) -> None:
    folder = shutil.copytree(weights, tmp_path / "model")
    uses = Config({"device": "cpu", "model": {"path": str(folder), "revision": ""}}, declared="uses")
    reads = Config({"max_tokens": max_tokens, "batch_size": 2, "precision": "fp32", "engine": "transformers"})
    context = Context(tmp_path / "work", uses=uses)

    def made() -> LocalModel:
        return LocalModel(reads, Inputs({}), context)

    row = english("fever")
    line = {
        "id": "1",
        "instruction": row["instruction"],
        "input": row["input"],
        "output": row["expected_output"],
    }
    cache = ReplyCache(tmp_path / "cache", "es", {})
    asked = Conversation(line, row_digest(line), "es", cache, 1)
    messages = asked.messages()
    assert messages is not None
    num_tokens = len(made()._encoded(messages))
    settings = json.loads((folder / "config.json").read_text())
    settings["max_position_embeddings"] = num_tokens + free if free is not None else None
    if free is None:
        del settings["max_position_embeddings"]
    (folder / "config.json").write_text(json.dumps(settings))
    made().run([asked], context)
    if not reply:
        assert (asked.problem, asked.replies) == ("cut-off", [])
        return
    (got,) = asked.replies
    assert (got.finish, got.prompt_tokens, got.completion_tokens) == ("length", num_tokens, reply)
