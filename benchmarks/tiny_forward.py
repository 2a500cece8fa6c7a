"""The stage of the launcher benchmark: builds a tiny Qwen3 and generates, as a small evaluation would."""

from __future__ import annotations

from orchestrator.stage import Config, Context, Inputs, Row


def main(config: Config, inputs: Inputs, context: Context) -> list[Row]:
    """Generates `config.num_tokens` tokens greedily from a model built with `config.seed`."""
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

    torch.set_num_threads(context.num_threads)
    torch.manual_seed(config.seed)
    model = Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=512,
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=16,
        )
    ).eval()
    prompt = torch.arange(8).unsqueeze(0)
    with torch.inference_mode():
        tokens = model.generate(
            prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=config.num_tokens, do_sample=False
        )
    (context.output / "tokens.txt").write_text(" ".join(map(str, tokens[0].tolist())))
    return [{"last_token": int(tokens[0, -1])}]
