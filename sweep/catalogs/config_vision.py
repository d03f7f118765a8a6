"""What the config.json of models that see says: their text part, their tower, their projector."""

from __future__ import annotations

from collections.abc import Callable

from sweep.catalogs.config_experts import llama4_text, qwen3_moe
from sweep.catalogs.config_families import Facts, gemma3_text, llama, mistral, qwen2, qwen3
from sweep.catalogs.config_reader import ConfigReader


def _parts(config: ConfigReader, flat: bool = False) -> tuple[ConfigReader, ConfigReader]:
    """The text and the vision section; the text part may stand at the top where `flat`."""
    text, vision = config.section("text_config"), config.section("vision_config")
    if text is None and not flat:
        config.findings.missing.append("text_config")
    if vision is None:
        config.findings.missing.append("vision_config")
    nothing = ConfigReader({}, "vision_config.", config.findings)
    return text or config, vision or nothing


def _tower(vision: ConfigReader, depth: str, heads: str) -> Facts:
    """Sizes every tower names, by the keys of its family."""
    return {
        "vision_depth": vision.size("vision_depth", depth),
        "vision_hidden": vision.size("vision_hidden", "hidden_size"),
        "vision_heads": vision.size("vision_heads", heads),
        "vision_intermediate": vision.size("vision_intermediate", "intermediate_size"),
        "vision_patch": vision.square("vision_patch", "patch_size"),
    }


def _tied(config: ConfigReader, facts: Facts, default: bool) -> Facts:
    """The top level's tie_word_embeddings goes before the text section's."""
    text = config.section("text_config")
    inner = default if text is None else text.flag("tie_word_embeddings", default)
    return facts | {"tie_word_embeddings": config.flag("tie_word_embeddings", inner)}


def qwen2_5_vl(config: ConfigReader) -> Facts:
    """Qwen2.5-VL: windowed blocks, text sizes at the top or in text_config."""
    text, vision = _parts(config, flat=True)
    facts = _tied(config, qwen2(text), False) | _tower(vision, "depth", "num_heads")
    return facts | {
        "position_embedding": "mrope",
        "vision_merge": vision.size("vision_merge", "spatial_merge_size", default=2),
        "vision_temporal_patch": vision.size(
            "vision_temporal_patch", "temporal_patch_size", default=2
        ),
        "vision_out_hidden": vision.size("vision_out_hidden", "out_hidden_size"),
        "vision_window": vision.size("vision_window", "window_size", default=112),
        "vision_full_attention_layers": vision.numbers("fullatt_block_indexes") or (7, 15, 23, 31),
    }


def _qwen3_vl(config: ConfigReader, text_facts: Callable[[ConfigReader], Facts]) -> Facts:
    text, vision = _parts(config)
    facts = _tied(config, text_facts(text), False) | _tower(vision, "depth", "num_heads")
    return facts | {
        "position_embedding": "mrope",
        "vision_merge": vision.size("vision_merge", "spatial_merge_size", default=2),
        "vision_temporal_patch": vision.size(
            "vision_temporal_patch", "temporal_patch_size", default=2
        ),
        "vision_out_hidden": vision.size("vision_out_hidden", "out_hidden_size"),
        "vision_positions": vision.size(
            "vision_positions", "num_position_embeddings", default=2304
        ),
        "vision_deepstack": vision.length("vision_deepstack", "deepstack_visual_indexes", 3),
    }


def qwen3_vl(config: ConfigReader) -> Facts:
    """Qwen3-VL: learned positions, deepstack mergers, Qwen3 text."""
    return _qwen3_vl(config, qwen3)


def qwen3_vl_moe(config: ConfigReader) -> Facts:
    """Qwen3-VL with routed experts."""
    return _qwen3_vl(config, qwen3_moe)


def gemma3(config: ConfigReader) -> Facts:
    """Gemma-3 with its SigLIP tower; the image becomes mm_tokens_per_image tokens."""
    text, vision = _parts(config)
    facts = _tied(config, gemma3_text(text), True)
    facts |= _tower(vision, "num_hidden_layers", "num_attention_heads")
    image = vision.size("vision_image_size", "image_size")
    tokens = config.size("vision_positions", "mm_tokens_per_image", default=256)
    edge = round(tokens**0.5)
    patches = image // facts["vision_patch"]
    if edge * edge != tokens or patches % edge:
        config.fault("mm_tokens_per_image", tokens, f"a square that divides {patches}^2 patches")
        edge = patches
    return facts | {
        "vision_image_size": image,
        "vision_merge": patches // edge if edge else 1,
        "vision_out_hidden": facts["hidden_size"],
    }


def llama4(config: ConfigReader) -> Facts:
    """Llama-4 with its tower, adapter and projector."""
    text, vision = _parts(config)
    facts = _tied(config, llama4_text(text), False)
    facts |= _tower(vision, "num_hidden_layers", "num_attention_heads")
    vision.refuse("pixel_shuffle_ratio", 0.5, "only halving each edge is described")
    vision.refuse("multi_modal_projector_bias", False, "a projector bias is not described")
    return facts | {
        "vision_merge": 2,
        "vision_image_size": vision.size("vision_image_size", "image_size"),
        "vision_projector_in": vision.size("vision_projector_in", "projector_input_dim"),
        "vision_out_hidden": vision.size("vision_out_hidden", "projector_output_dim"),
    }


def mllama(config: ConfigReader) -> Facts:
    """Llama-3.2-Vision: cross-attention layers in the decoder."""
    text, vision = _parts(config)
    facts = _tied(config, llama(text), False)
    facts |= _tower(vision, "num_hidden_layers", "attention_heads")
    return facts | {
        "embedding_extra_rows": 8,
        "cross_attention_layers": text.numbers("cross_attention_layers") or (),
        "vision_image_size": vision.size("vision_image_size", "image_size"),
        "vision_global_layers": vision.size("vision_global_layers", "num_global_layers", default=8),
        "vision_max_tiles": vision.size("vision_max_tiles", "max_num_tiles", default=4),
        "vision_aspect_ratios": vision.length("vision_aspect_ratios", "supported_aspect_ratios", 8),
        "vision_out_hidden": vision.size("vision_out_hidden", "vision_output_dim"),
    }


def mistral3(config: ConfigReader) -> Facts:
    """Mistral-Small-3.1: a Pixtral tower before Mistral."""
    text, vision = _parts(config)
    # The class's own default is a tied head, yet the published checkpoints store one.
    facts = _tied(config, mistral(text), False)
    facts |= _tower(vision, "num_hidden_layers", "num_attention_heads")
    config.refuse("multimodal_projector_bias", False, "a projector bias is not described")
    return facts | {
        "vision_image_size": vision.optional("vision_image_size", "image_size"),
        "vision_merge": config.size("vision_merge", "spatial_merge_size", default=2),
        "vision_out_hidden": facts["hidden_size"],
    }


SEEING: dict[str, tuple[str, str, Callable[[ConfigReader], Facts]]] = {
    "gemma3": ("gemma3_text", "siglip_gemma3", gemma3),
    "llama4": ("llama4_text", "llama4", llama4),
    "mistral3": ("mistral", "pixtral", mistral3),
    "mllama": ("mllama_text", "mllama", mllama),
    "qwen2_5_vl": ("qwen2", "qwen2_5_vl", qwen2_5_vl),
    "qwen3_vl": ("qwen3", "qwen3_vl", qwen3_vl),
    "qwen3_vl_moe": ("qwen3_vl_moe_text", "qwen3_vl", qwen3_vl_moe),
}
