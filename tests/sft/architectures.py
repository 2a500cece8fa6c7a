"""Tiny models of the architectures that the installed transformers knows, with random weights."""

from __future__ import annotations

import contextlib
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

SIZES = {
    **{"vocab_size": 160, "max_position_embeddings": 64, "n_positions": 64, "max_seq_len": 64},
    **{"hidden_size": 32, "n_embd": 32, "d_model": 32, "word_embed_proj_dim": 32},
    **{"intermediate_size": 48, "ffn_dim": 48, "moe_intermediate_size": 16, "intermediate_size_mlp": 48},
    **{"num_hidden_layers": 2, "n_layer": 2, "n_layers": 2, "num_layers": 2, "sliding_window": 16},
    **{"num_attention_heads": 4, "n_head": 4, "n_heads": 4, "num_key_value_heads": 2, "head_dim": 8},
    **{"num_experts": 4, "num_local_experts": 4, "n_routed_experts": 4, "num_experts_per_tok": 2},
    **{"mamba_d_ssm": 32, "mamba_n_heads": 4, "mamba_d_head": 8, "mamba_d_state": 8, "mamba_n_groups": 1},
    **{"mamba_expand": 1, "state_size": 8},
    **{"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2},
}
OWN = {
    "minicpm3": {
        **{"qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 8, "kv_lora_rank": 8},
        "num_key_value_heads": 4,
    }
}
"""Sizes that an architecture has besides, or needs instead."""

DIFFERING = ("granite", "cohere2", "falcon_h1", "gemma2", "nemotron", "gpt2")
"""Models that scale, multiply or cap their logits, that have other norms, or none of the usual names."""
CAUSAL = (
    *("afmoe", "apertus", "arcee", "bamba", "bloom", "cohere", "diffllama", "ernie4_5", "ernie4_5_moe"),
    *("exaone4", "falcon_mamba", "flex_olmo", "gemma", "gemma3", "gemma3_text", "glm", "glm4", "gpt_bigcode"),
    *("gpt_neox", "gpt_oss", "granitemoe", "granitemoeshared", "helium", "hunyuan_v1_dense", "hyperclovax"),
    *("llama", "llama4_text", "mamba", "minicpm3", "ministral", "mistral", "mixtral", "modernbert-decoder"),
    *("mpt", "olmo", "olmo2", "olmo3", "olmoe", "opt", "persimmon", "phi", "phi3", "phimoe", "qwen2"),
    *("qwen2_moe", "qwen3", "qwen3_moe", "qwen3_next", "seed_oss", "smollm3", "stablelm", "starcoder2"),
    *("vaultgemma", "xglm"),
)
BIDIRECTIONAL = ("bert", "roberta", "electra", "xlm")
"""Not causal unless their config says so."""


def tiny(model_type: str) -> PreTrainedModel:
    """Return a model whose every factor or cap of its logits has an effect."""
    default = AutoConfig.for_model(model_type)
    text = default.get_text_config()
    sizes: dict[str, Any] = {
        **{name: size for name, size in SIZES.items() if hasattr(text, name)},
        **OWN.get(model_type, {}),
    }
    if text is not default:
        section = next(name for name, value in vars(default).items() if value is text)
        sizes = {section: sizes}
    config = AutoConfig.for_model(model_type, **sizes)
    text = config.get_text_config()
    for name in ("logits_scaling", "logit_scale", "lm_head_multiplier", "final_logit_softcapping"):
        if hasattr(text, name):
            with contextlib.suppress(AttributeError):  # it follows from other sizes
                setattr(text, name, 1.7)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, 0.15)
    return model
