"""What config.json says of dense models with plain MLPs and LayerNorm, class defaults filled in."""

from __future__ import annotations

from collections.abc import Callable

from sweep.catalogs.config_families import Facts, common_facts, one_window
from sweep.catalogs.config_reader import ConfigReader


def _plain_biased(norms: int) -> Facts:
    return {
        "qkv_bias": True,
        "o_bias": True,
        "mlp_bias": True,
        "mlp_type": "gelu",
        "norm_type": "layernorm",
        "norms_per_layer": norms,
    }


def phi(config: ConfigReader) -> Facts:
    """Phi-1.5 and Phi-2: LayerNorm, biases everywhere, attention and MLP in parallel."""
    config.refuse("qk_layernorm", False, "norms of queries and keys are not described")
    return (
        common_facts(config, tied=False)
        | _plain_biased(1)
        | {
            "position_embedding": "rope-partial",
            "lm_head_bias": True,
        }
    )


def gpt2(config: ConfigReader) -> Facts:
    """GPT-2: learned positions, tied."""
    config.refuse("add_cross_attention", False, "cross attention is not described")
    hidden = config.size("hidden_size", "n_embd", "hidden_size")
    heads = config.size("num_attention_heads", "n_head", "num_attention_heads")
    positions = config.size("max_position_embeddings", "n_positions", "max_position_embeddings")
    return _plain_biased(2) | {
        "hidden_size": hidden,
        "num_hidden_layers": config.size("num_hidden_layers", "n_layer", "num_hidden_layers"),
        "num_attention_heads": heads,
        "num_key_value_heads": heads,
        "head_dim": hidden // heads,
        "intermediate_size": config.size("intermediate_size", "n_inner", default=4 * hidden),
        "vocab_size": config.size("vocab_size", default=50257),
        "max_position_embeddings": positions,
        "position_embedding": "learned",
        "position_rows": positions,
        "tie_word_embeddings": config.flag("tie_word_embeddings", True),
    }


def gpt_neox(config: ConfigReader) -> Facts:
    """GPT-NeoX and Pythia: LayerNorm, a quarter of the head rotary."""
    bias = config.flag("attention_bias", True)
    return (
        common_facts(config, tied=False)
        | _plain_biased(2)
        | {
            "qkv_bias": bias,
            "o_bias": bias,
            "position_embedding": "rope-partial",
        }
    )


def opt(config: ConfigReader) -> Facts:
    """OPT: learned positions with two rows to spare, ReLU; the 350m one norms after the block."""
    config.refuse("layer_norm_elementwise_affine", True, "norms without weights are not described")
    bias = config.flag("enable_bias", True)
    hidden = config.size("hidden_size")
    heads = config.size("num_attention_heads")
    positions = config.size("max_position_embeddings")
    width = config.optional("hidden_size", "word_embed_proj_dim") or hidden
    before = config.flag("do_layer_norm_before", True)
    return _plain_biased(2) | {
        "hidden_size": hidden,
        "num_hidden_layers": config.size("num_hidden_layers"),
        "num_attention_heads": heads,
        "num_key_value_heads": heads,
        "head_dim": hidden // heads,
        "intermediate_size": config.size("intermediate_size", "ffn_dim"),
        "vocab_size": config.size("vocab_size"),
        "max_position_embeddings": positions,
        "position_embedding": "learned",
        "position_rows": positions + 2,
        "tie_word_embeddings": config.flag("tie_word_embeddings", True),
        "embedding_projection": width if width != hidden else None,
        "final_norm": before and not config.flag("_remove_final_layer_norm", False),
        "mlp_type": "relu",
        "qkv_bias": bias,
        "o_bias": bias,
        "mlp_bias": bias,
    }


def bloom(config: ConfigReader) -> Facts:
    """BLOOM: ALiBi, a norm after the embedding."""
    hidden = config.size("hidden_size", "hidden_size", "n_embed")
    heads = config.size("num_attention_heads", "n_head", "num_attention_heads")
    return _plain_biased(2) | {
        "hidden_size": hidden,
        "num_hidden_layers": config.size("num_hidden_layers", "n_layer", "num_hidden_layers"),
        "num_attention_heads": heads,
        "num_key_value_heads": heads,
        "head_dim": hidden // heads,
        "intermediate_size": 4 * hidden,
        "vocab_size": config.size("vocab_size"),
        "position_embedding": "alibi",
        "embedding_norm": True,
        "tie_word_embeddings": config.flag("tie_word_embeddings", True),
    }


def falcon(config: ConfigReader) -> Facts:
    """Falcon: one key-value head, or groups of them in the new decoder; parallel residual."""
    hidden = config.size("hidden_size", "hidden_size", "n_embed")
    heads = config.size("num_attention_heads", "num_attention_heads", "n_head")
    new = config.flag("new_decoder_architecture", False)
    bias = config.flag("bias", False)
    if new:
        kv_heads = config.size("num_key_value_heads", "num_kv_heads", "n_head_kv", default=heads)
        norms = config.size("norms_per_layer", "num_ln_in_parallel_attn", default=2)
    else:
        kv_heads = 1 if config.flag("multi_query", True) else heads
        norms = 1 if config.flag("parallel_attn", True) else 2
    return _plain_biased(norms) | {
        "hidden_size": hidden,
        "num_hidden_layers": config.size("num_hidden_layers", "num_hidden_layers", "n_layer"),
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": hidden // heads,
        "intermediate_size": config.size(
            "intermediate_size", "ffn_hidden_size", default=4 * hidden
        ),
        "vocab_size": config.size("vocab_size"),
        "max_position_embeddings": config.optional("max_position_embeddings"),
        "position_embedding": "alibi" if config.flag("alibi", False) else "rope",
        "tie_word_embeddings": config.flag("tie_word_embeddings", True),
        "qkv_bias": bias,
        "o_bias": bias,
        "mlp_bias": bias,
    }


def starcoder2(config: ConfigReader) -> Facts:
    """StarCoder2: LayerNorm, biases unless use_bias is false."""
    bias = config.flag("use_bias", True)
    return (
        common_facts(config, tied=True)
        | _plain_biased(2)
        | one_window(config)
        | {
            "qkv_bias": bias,
            "o_bias": bias,
            "mlp_bias": bias,
        }
    )


PLAIN_FAMILIES: dict[str, tuple[str, Callable[[ConfigReader], Facts]]] = {
    "bloom": ("bloom", bloom),
    "falcon": ("falcon", falcon),
    "gpt2": ("gpt2", gpt2),
    "gpt_neox": ("gpt_neox", gpt_neox),
    "opt": ("opt", opt),
    "phi": ("phi", phi),
    "starcoder2": ("starcoder2", starcoder2),
}
