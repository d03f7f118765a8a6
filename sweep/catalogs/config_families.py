"""What config.json says of dense models with gated MLPs, class defaults filled in.

Defaults and flags follow the configuration and modelling classes of Transformers 5.23. Each
function returns the Model fields of the text model it describes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sweep.catalogs.config_reader import ConfigReader

Facts = dict[str, Any]


def common_facts(config: ConfigReader, *, tied: bool, head_dim: int | None = None) -> Facts:
    """Sizes nearly every family names alike. `head_dim` is the class's default, if it has one."""
    hidden = config.size("hidden_size")
    heads = config.size("num_attention_heads")
    if head_dim is None:
        head_dim = hidden // heads
    return {
        "hidden_size": hidden,
        "num_hidden_layers": config.size("num_hidden_layers"),
        "num_attention_heads": heads,
        "num_key_value_heads": config.size("num_key_value_heads", default=heads),
        "head_dim": config.optional("head_dim") or head_dim,
        "intermediate_size": config.size("intermediate_size"),
        "vocab_size": config.size("vocab_size"),
        "max_position_embeddings": config.optional("max_position_embeddings"),
        "tie_word_embeddings": config.flag("tie_word_embeddings", tied),
    }


def one_window(config: ConfigReader, default: int | None = None) -> Facts:
    """One window for all layers, where there is one."""
    window = config.optional("sliding_window")
    if window is None and default is not None and not config.has("sliding_window"):
        window = default
    return {"sliding_window": window, "sliding_pattern": "all" if window else None}


def alternating_windows(config: ConfigReader, window: int, period: int) -> Facts:
    """`period - 1` windowed layers, then a full one, unless layer_types says otherwise."""
    width = config.optional("sliding_window") or window
    kinds = config.words("layer_types")
    if kinds is not None:
        depth = config.size("num_hidden_layers")
        period = 1 + (kinds.index("full_attention") if "full_attention" in kinds else depth)
        expected = tuple(
            "sliding_attention" if (layer + 1) % period else "full_attention"
            for layer in range(depth)
        )
        if kinds != expected:
            allowed = f"{depth} names: windowed layers, then a full one, and again"
            config.fault("layer_types", f"{len(kinds)} names in another order", allowed)
            return {}
        if period > depth:
            return {"sliding_window": width, "sliding_pattern": "all"}
    if period == 1:
        return {}
    return {"sliding_window": width, "sliding_pattern": f"{period - 1}:1"}


def llama(config: ConfigReader) -> Facts:
    """Llama, and what shares its layout."""
    bias = config.flag("attention_bias", False)
    mlp_bias = config.flag("mlp_bias", False)
    return common_facts(config, tied=False) | {
        "qkv_bias": bias,
        "o_bias": bias,
        "mlp_bias": mlp_bias,
    }


def mistral(config: ConfigReader) -> Facts:
    """Mistral: a window on every layer unless it is null."""
    null = config.is_null("sliding_window")
    return common_facts(config, tied=False) | one_window(config, None if null else 4096)


def qwen2(config: ConfigReader) -> Facts:
    """Qwen2 and Qwen2.5: biases on query, key and value; their window is off in practice."""
    return common_facts(config, tied=False) | {"qkv_bias": True} | _qwen_window(config)


def _qwen_window(config: ConfigReader) -> Facts:
    if not config.flag("use_sliding_window", False):
        return {}
    first = config.optional("first_k_dense", "max_window_layers") or 0
    if first >= config.size("num_hidden_layers"):
        return {}
    if first:
        config.fault(
            "max_window_layers", first, "0 or every layer where use_sliding_window is true"
        )
    return one_window(config)


def qwen3(config: ConfigReader) -> Facts:
    """Qwen3: a norm on each query and key head."""
    bias = config.flag("attention_bias", False)
    facts = common_facts(config, tied=False, head_dim=128) | _qwen_window(config)
    return facts | {"qk_norm": "head-rmsnorm", "qkv_bias": bias, "o_bias": bias}


def gemma(config: ConfigReader) -> Facts:
    """Gemma: GeGLU, tied, wide heads."""
    bias = config.flag("attention_bias", False)
    facts = common_facts(config, tied=True, head_dim=256)
    return facts | {"mlp_type": "geglu", "qkv_bias": bias, "o_bias": bias}


def gemma2(config: ConfigReader) -> Facts:
    """Gemma-2: four norms a layer, every other layer windowed."""
    return gemma(config) | {"norms_per_layer": 4} | alternating_windows(config, 4096, 2)


# Nested text configs are saved without the values that equal the class's defaults.
_GEMMA3_TEXT = {
    "vocab_size": 262208,
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "num_hidden_layers": 26,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "max_position_embeddings": 131072,
}


def gemma3_text(config: ConfigReader) -> Facts:
    """Gemma-3: four norms, a norm on each query and key head, five windowed layers to one full."""
    config = config.with_defaults(_GEMMA3_TEXT)
    period = config.optional("moe_layer_step", "sliding_window_pattern", "_sliding_window_pattern")
    return (
        gemma(config)
        | {"norms_per_layer": 4, "qk_norm": "head-rmsnorm"}
        | alternating_windows(config, 4096, period or 6)
    )


def phi3(config: ConfigReader) -> Facts:
    """Phi-3 and Phi-4: fused projections."""
    return common_facts(config, tied=False) | one_window(config)


def glm(config: ConfigReader) -> Facts:
    """GLM-4: fused gate and up, half the head rotary."""
    return common_facts(config, tied=False, head_dim=128) | {
        "qkv_bias": config.flag("attention_bias", True),
        "position_embedding": "rope-partial",
    }


def glm4(config: ConfigReader) -> Facts:
    """GLM-4-0414: GLM with norms after attention and MLP."""
    return glm(config) | {"norms_per_layer": 4}


def olmo2(config: ConfigReader) -> Facts:
    """OLMo-2: norms after attention and MLP, full-width norms of queries and keys."""
    bias = config.flag("attention_bias", False)
    facts = common_facts(config, tied=False)
    return facts | {"qk_norm": "width-rmsnorm", "qkv_bias": bias, "o_bias": bias}


def cohere(config: ConfigReader) -> Facts:
    """Command-R: one LayerNorm without bias, attention and MLP in parallel, tied."""
    bias = config.flag("attention_bias", False)
    own = config.flag("use_qk_norm", False)
    return common_facts(config, tied=True) | {
        "norm_type": "layernorm-no-bias",
        "norms_per_layer": 1,
        "qk_norm": "own-head-layernorm" if own else "none",
        "qkv_bias": bias,
        "o_bias": bias,
    }


def smollm3(config: ConfigReader) -> Facts:
    """SmolLM3: Llama, tied, some layers without rotary positions."""
    return llama(config) | {"tie_word_embeddings": config.flag("tie_word_embeddings", True)}


GATED_FAMILIES: dict[str, tuple[str, Callable[[ConfigReader], Facts]]] = {
    "cohere": ("cohere", cohere),
    "gemma": ("gemma", gemma),
    "gemma2": ("gemma2", gemma2),
    "gemma3_text": ("gemma3_text", gemma3_text),
    "glm": ("glm", glm),
    "glm4": ("glm4", glm4),
    "granite": ("granite", llama),
    "llama": ("llama", llama),
    "mistral": ("mistral", mistral),
    "olmo2": ("olmo2", olmo2),
    "phi3": ("phi3", phi3),
    "qwen2": ("qwen2", qwen2),
    "qwen3": ("qwen3", qwen3),
    "smollm3": ("smollm3", smollm3),
}
