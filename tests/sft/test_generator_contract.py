"""The engine that always ships passes the suite of all generators."""

from __future__ import annotations

import pytest
from transformers import PreTrainedTokenizerBase

from orchestrator.sft.prepare import encode_prompt
from orchestrator.testing import GeneratorCase, GeneratorContract
from tests.sft.conftest import Ground

pytestmark = pytest.mark.xdist_group("sft")  # one worker makes what the tests share


class TestTransformers(GeneratorContract):
    name = "transformers"

    @pytest.fixture
    def case(self, ground: Ground, tokenizer: PreTrainedTokenizerBase) -> GeneratorCase:
        prompts = ("Question:\n1\n", "A", "Bb\n" * 9)
        rows = [encode_prompt(tokenizer, prompt) for prompt in prompts]
        return GeneratorCase(ground.inputs["base"][""], rows, tokenizer.eos_token_id, tokenizer.pad_token_id)
