"""What the config.json of models with routed experts says, class defaults filled in."""

from __future__ import annotations

from collections.abc import Callable

from sweep.catalogs.config_families import (
    Facts,
    alternating_windows,
    common_facts,
    one_window,
    qwen3,
)
from sweep.catalogs.config_reader import ConfigReader


def _experts(
    config: ConfigReader, count: str, width: str, *, per_token: str = "num_experts_per_tok"
) -> Facts:
    """How many experts, how wide, how many a token goes to: the keys differ by family."""
    return {
        "num_experts": config.size("num_experts", count),
        "experts_per_token": config.size("experts_per_token", per_token),
        "moe_intermediate_size": config.size("moe_intermediate_size", width),
        "num_shared_experts": 0,
        "first_k_dense": 0,
    }


def _shared(config: ConfigReader, facts: Facts, key: str) -> Facts:
    """Shared experts, stored as one MLP as wide as all of them."""
    count = config.size("num_shared_experts", key, default=0)
    width = count * facts["moe_intermediate_size"]
    return {"num_shared_experts": count, "shared_intermediate_size": width or None}


def _dense_layers(config: ConfigReader) -> Facts:
    """Qwen's mlp_only_layers: leading layers without experts, and no other rule."""
    config.refuse("decoder_sparse_step", 1, "layers that route in steps are not described")
    only = config.numbers("mlp_only_layers") or ()
    if only != tuple(range(len(only))):
        config.fault("mlp_only_layers", list(only), "leading layers")
    return {"first_k_dense": len(only), "dense_intermediate_size": None}


def mixtral(config: ConfigReader) -> Facts:
    """Mixtral: Mistral attention, experts as wide as its MLP."""
    facts = common_facts(config, tied=False) | one_window(config)
    return facts | _experts(config, "num_local_experts", "intermediate_size")


def qwen2_moe(config: ConfigReader) -> Facts:
    """Qwen1.5-MoE and Qwen2-MoE: a gated shared expert."""
    facts = common_facts(config, tied=False) | {"qkv_bias": config.flag("qkv_bias", True)}
    facts |= _experts(config, "num_experts", "moe_intermediate_size") | _dense_layers(config)
    width = config.size("shared_intermediate_size", "shared_expert_intermediate_size")
    return facts | {
        "num_shared_experts": 1,
        "shared_intermediate_size": width,
        "shared_expert_gate": True,
    }


def qwen3_moe(config: ConfigReader) -> Facts:
    """Qwen3-MoE: Qwen3 attention, no shared expert."""
    # Qwen3-MoE's class has no head_dim default of its own; hidden / heads stands in for it.
    facts = qwen3(config)
    if not config.has("head_dim"):
        facts["head_dim"] = facts["hidden_size"] // facts["num_attention_heads"]
    return facts | _experts(config, "num_experts", "moe_intermediate_size") | _dense_layers(config)


def _latent(config: ConfigReader) -> Facts:
    bias = config.flag("attention_bias", False)
    return {
        "head_dim": None,
        "q_lora_rank": config.optional("q_lora_rank"),
        "kv_lora_rank": config.size("kv_lora_rank"),
        "qk_nope_head_dim": config.size("qk_nope_head_dim"),
        "qk_rope_head_dim": config.size("qk_rope_head_dim"),
        "v_head_dim": config.size("v_head_dim"),
        "qkv_bias": bias,
        "o_bias": bias,
    }


def deepseek_v2(config: ConfigReader) -> Facts:
    """DeepSeek-V2: latent attention, shared and routed experts, leading dense layers."""
    config.refuse("moe_layer_freq", 1, "layers that route in steps are not described")
    facts = common_facts(config, tied=False) | _latent(config)
    facts |= _experts(config, "n_routed_experts", "moe_intermediate_size")
    return (
        facts
        | _shared(config, facts, "n_shared_experts")
        | {
            "first_k_dense": config.size("first_k_dense", "first_k_dense_replace", default=0),
            "dense_intermediate_size": facts["intermediate_size"],
        }
    )


def deepseek_v3(config: ConfigReader) -> Facts:
    """DeepSeek-V3, R1, Kimi-K2: V2 with a corrected sigmoid router and MTP layers."""
    return deepseek_v2(config) | {
        "router_bias": "correction-buffer",
        "mtp_layers": config.size("mtp_layers", "num_nextn_predict_layers", default=0),
    }


def minicpm3(config: ConfigReader) -> Facts:
    """MiniCPM3: latent attention with dense MLPs, tied."""
    return common_facts(config, tied=True) | _latent(config)


def gpt_oss(config: ConfigReader) -> Facts:
    """gpt-oss: sinks, biases everywhere, every other layer windowed."""
    bias = config.flag("attention_bias", True)
    facts = common_facts(config, tied=False, head_dim=64) | alternating_windows(config, 128, 2)
    key = "num_experts_per_tok" if config.has("num_experts_per_tok") else "experts_per_token"
    facts |= _experts(config, "num_local_experts", "intermediate_size", per_token=key)
    return facts | {
        "qkv_bias": bias,
        "o_bias": bias,
        "mlp_bias": True,
        "attention_sinks": True,
        "router_bias": "bias",
        "expert_bias": True,
    }


def glm4_moe(config: ConfigReader) -> Facts:
    """GLM-4.5: biases on query, key, value; optional norms of heads; corrected router."""
    facts = common_facts(config, tied=False)
    facts |= _experts(config, "n_routed_experts", "moe_intermediate_size")
    normed = config.flag("use_qk_norm", False)
    return (
        facts
        | _shared(config, facts, "n_shared_experts")
        | {
            "qkv_bias": config.flag("attention_bias", False),
            "qk_norm": "head-rmsnorm" if normed else "none",
            "first_k_dense": config.size("first_k_dense", "first_k_dense_replace", default=1),
            "dense_intermediate_size": facts["intermediate_size"],
            "router_bias": "correction-buffer",
            "position_embedding": "rope-partial",
            "mtp_layers": config.size("mtp_layers", "num_nextn_predict_layers", default=0),
        }
    )


def llama4_text(config: ConfigReader) -> Facts:
    """Llama-4: one routed and one shared expert a token; dense layers between, by the step."""
    bias = config.flag("attention_bias", False)
    facts = common_facts(config, tied=False, head_dim=128)
    facts |= _experts(config, "num_local_experts", "intermediate_size")
    step = config.size("moe_layer_step", "interleave_moe_layer_step", default=1)
    expected = tuple(range(step - 1, facts["num_hidden_layers"], step))
    listed = config.numbers("moe_layers")
    if listed is not None and listed != expected:
        config.fault("moe_layers", list(listed), f"every {step}. layer")
    dense = config.size("dense_intermediate_size", "intermediate_size_mlp")
    return facts | {
        "num_shared_experts": 1,
        "shared_intermediate_size": facts["intermediate_size"],
        "moe_layer_step": step if step > 1 else None,
        "dense_intermediate_size": dense,
        "qkv_bias": bias,
        "o_bias": bias,
        "qk_norm": "head-l2" if config.flag("use_qk_norm", True) else "none",
    }


def granitemoe(config: ConfigReader) -> Facts:
    """Granite-MoE: Granite attention, experts as wide as its MLP."""
    bias = config.flag("attention_bias", False)
    facts = common_facts(config, tied=False) | {"qkv_bias": bias, "o_bias": bias}
    return facts | _experts(config, "num_local_experts", "intermediate_size")


EXPERTS: dict[str, tuple[str, Callable[[ConfigReader], Facts]]] = {
    "deepseek_v2": ("deepseek_v2", deepseek_v2),
    "deepseek_v3": ("deepseek_v3", deepseek_v3),
    "glm4_moe": ("glm4_moe", glm4_moe),
    "gpt_oss": ("gpt_oss", gpt_oss),
    "granitemoe": ("granitemoe", granitemoe),
    "kimi_k2": ("deepseek_v3", deepseek_v3),
    "llama4_text": ("llama4_text", llama4_text),
    "minicpm3": ("minicpm3", minicpm3),
    "mixtral": ("mixtral", mixtral),
    "qwen2_moe": ("qwen2_moe", qwen2_moe),
    "qwen3_moe": ("qwen3_moe", qwen3_moe),
}
