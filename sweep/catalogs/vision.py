"""Vision towers and their projectors: blocks, mergers, patch and position embeddings.

Each tower follows its Transformers 5.23 class, read from the module tree; `VISION` names them by
the catalog's `vision_type`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from sweep.catalogs.parameters import Linear, VisionCounts

if TYPE_CHECKING:
    from sweep.catalogs.models import Model

_CHANNELS = 3


def _given(model: Model, column: str) -> int:
    """A vision fact the tower cannot do without; load_models checks that it is there."""
    value = getattr(model, column)
    assert isinstance(value, int), f"{model.key}: {column} is missing"
    return value


def _separate(width: int, hidden: int, bias: bool, out_bias: bool, out: str) -> tuple[Linear, ...]:
    """Attention with apart projections and a two-matrix MLP with biases."""
    return (
        Linear("q_proj", hidden, hidden, "vision", bias=bias),
        Linear("k_proj", hidden, hidden, "vision", bias=bias),
        Linear("v_proj", hidden, hidden, "vision", bias=bias),
        Linear(out, hidden, hidden, "vision", bias=out_bias),
        Linear("fc1", hidden, width, "vision", bias=True),
        Linear("fc2", width, hidden, "vision", bias=True),
    )


def _assemble(
    model: Model,
    block: tuple[Linear, ...],
    block_norms: int,
    projector: tuple[Linear, ...],
    merger_rest: int,
    other: int,
    merge: int,
) -> VisionCounts:
    """Totals from the parts; `merge` is patches per decoder token."""
    depth = _given(model, "vision_depth") + (model.vision_global_layers or 0)
    per_block = sum(linear.params for linear in block) + block_norms
    merger = sum(linear.params for linear in projector) + merger_rest
    return VisionCounts(
        total=depth * per_block + merger + other,
        block=block,
        depth=depth,
        per_block_params=per_block,
        projector=projector,
        merger_params=merger,
        other_params=other,
        merge=merge,
        patch=_given(model, "vision_patch"),
    )


def _merge_tokens(model: Model) -> int:
    return _given(model, "vision_merge") ** 2


def _patch_elements(model: Model) -> int:
    """Elements one output channel of the patch embedding reads: colours x time x patch area."""
    edge = _given(model, "vision_patch")
    return _CHANNELS * (model.vision_temporal_patch or 1) * edge * edge


def _grid(model: Model) -> int:
    """Patches of the full image the position table was made for."""
    return (_given(model, "vision_image_size") // _given(model, "vision_patch")) ** 2


def _qwen2_5_vl(model: Model) -> VisionCounts:
    hidden, width = _given(model, "vision_hidden"), _given(model, "vision_intermediate")
    merged = hidden * _merge_tokens(model)
    block = (
        Linear("qkv", hidden, 3 * hidden, "vision", bias=True),
        Linear("proj", hidden, hidden, "vision", bias=True),
        Linear("gate_proj", hidden, width, "vision", bias=True),
        Linear("up_proj", hidden, width, "vision", bias=True),
        Linear("down_proj", width, hidden, "vision", bias=True),
    )
    projector = (
        Linear("merger.mlp.0", merged, merged, "projector", bias=True),
        Linear("merger.mlp.2", merged, _given(model, "vision_out_hidden"), "projector", bias=True),
    )
    patches = _patch_elements(model) * hidden
    return _assemble(model, block, 2 * hidden, projector, hidden, patches, _merge_tokens(model))


def _qwen3_vl(model: Model) -> VisionCounts:
    hidden, width = _given(model, "vision_hidden"), _given(model, "vision_intermediate")
    merged = hidden * _merge_tokens(model)
    deepstack = model.vision_deepstack or 0
    block = (
        Linear("qkv", hidden, 3 * hidden, "vision", bias=True),
        Linear("proj", hidden, hidden, "vision", bias=True),
        Linear("linear_fc1", hidden, width, "vision", bias=True),
        Linear("linear_fc2", width, hidden, "vision", bias=True),
    )
    # One merger for the last block, and one more for each block that feeds the decoder directly
    # (deepstack); those normalise the merged patches, the last one normalises before merging.
    out = _given(model, "vision_out_hidden")
    projector = (
        Linear("linear_fc1", merged, merged, "projector", 1 + deepstack, bias=True),
        Linear("linear_fc2", merged, out, "projector", 1 + deepstack, bias=True),
    )
    norms = 2 * hidden + deepstack * 2 * merged
    patches = (_patch_elements(model) + 1) * hidden
    other = patches + _given(model, "vision_positions") * hidden
    return _assemble(model, block, 4 * hidden, projector, norms, other, _merge_tokens(model))


def _siglip_gemma3(model: Model) -> VisionCounts:
    hidden, width = _given(model, "vision_hidden"), _given(model, "vision_intermediate")
    out = _given(model, "vision_out_hidden")
    # The projector is a bare tensor, mm_input_projection_weight, behind an RMSNorm.
    projector = (
        Linear("mm_input_projection_weight", hidden, out, "projector", module="parameter"),
    )
    patches = (_patch_elements(model) + 1) * hidden
    other = patches + _grid(model) * hidden + 2 * hidden
    block = _separate(width, hidden, True, True, "out_proj")
    return _assemble(model, block, 4 * hidden, projector, hidden, other, _merge_tokens(model))


def _llama4(model: Model) -> VisionCounts:
    hidden, width = _given(model, "vision_hidden"), _given(model, "vision_intermediate")
    inner, out = _given(model, "vision_projector_in"), _given(model, "vision_out_hidden")
    # Pixel shuffle merges patches before the adapter's first matrix.
    projector = (
        Linear("patch_embedding.linear", _patch_elements(model), hidden, "vision"),
        Linear("vision_adapter.mlp.fc1", hidden * _merge_tokens(model), inner, "projector"),
        Linear("vision_adapter.mlp.fc2", inner, out, "projector"),
        Linear("multi_modal_projector.linear_1", out, model.hidden_size, "projector"),
    )
    positions = (_grid(model) + 1) * hidden
    other = hidden + positions + 4 * hidden
    block = _separate(width, hidden, True, True, "o_proj")
    return _assemble(model, block, 4 * hidden, projector, 0, other, _merge_tokens(model))


def _mllama(model: Model) -> VisionCounts:
    hidden, width = _given(model, "vision_hidden"), _given(model, "vision_intermediate")
    tiles, tokens = _given(model, "vision_max_tiles"), _grid(model) + 1
    ratios = _given(model, "vision_aspect_ratios") + 1
    out = _given(model, "vision_out_hidden")
    projector = (Linear("multi_modal_projector", out, model.hidden_size, "projector", bias=True),)
    tile_tables = ratios * tiles * tokens * hidden + 2 * ratios * tiles * hidden
    # Three gates of the position tables, two of each global block.
    gates = 3 + 2 * (model.vision_global_layers or 0)
    other = (
        hidden  # class embedding
        + _patch_elements(model) * hidden
        + tokens * hidden
        + tile_tables
        + gates
        + 4 * hidden  # norms before and after the blocks
    )
    block = _separate(width, hidden, False, False, "o_proj")
    return _assemble(model, block, 4 * hidden, projector, 0, other, 1)


def _internvit(model: Model) -> VisionCounts:
    hidden, width = _given(model, "vision_hidden"), _given(model, "vision_intermediate")
    merged, out = hidden * _merge_tokens(model), model.hidden_size
    projector = (
        Linear("multi_modal_projector.linear_1", merged, out, "projector", bias=True),
        Linear("multi_modal_projector.linear_2", out, out, "projector", bias=True),
    )
    other = hidden + (_grid(model) + 1) * hidden + (_patch_elements(model) + 1) * hidden
    block = _separate(width, hidden, True, True, "projection_layer")
    # Two layer-scale vectors stand beside the two norms.
    norms = 4 * hidden + 2 * hidden
    return _assemble(model, block, norms, projector, 2 * merged, other, _merge_tokens(model))


def _pixtral(model: Model) -> VisionCounts:
    hidden, width = _given(model, "vision_hidden"), _given(model, "vision_intermediate")
    out = model.hidden_size
    block = (
        Linear("q_proj", hidden, hidden, "vision"),
        Linear("k_proj", hidden, hidden, "vision"),
        Linear("v_proj", hidden, hidden, "vision"),
        Linear("o_proj", hidden, hidden, "vision"),
        Linear("gate_proj", hidden, width, "vision"),
        Linear("up_proj", hidden, width, "vision"),
        Linear("down_proj", width, hidden, "vision"),
    )
    projector = (
        Linear("patch_merger.merging_layer", hidden * _merge_tokens(model), hidden, "projector"),
        Linear("multi_modal_projector.linear_1", hidden, out, "projector"),
        Linear("multi_modal_projector.linear_2", out, out, "projector"),
    )
    other = _patch_elements(model) * hidden + hidden
    return _assemble(model, block, 2 * hidden, projector, hidden, other, _merge_tokens(model))


VISION: dict[str, Callable[[Model], VisionCounts]] = {
    "internvit": _internvit,
    "llama4": _llama4,
    "mllama": _mllama,
    "pixtral": _pixtral,
    "qwen2_5_vl": _qwen2_5_vl,
    "qwen3_vl": _qwen3_vl,
    "siglip_gemma3": _siglip_gemma3,
}
VISION_TYPES = tuple(VISION)

_ALWAYS = ("vision_depth", "vision_hidden", "vision_heads", "vision_intermediate", "vision_patch")
# What each tower needs beside _ALWAYS.
VISION_NEEDS: dict[str, tuple[str, ...]] = {
    "internvit": (*_ALWAYS, "vision_merge", "vision_image_size"),
    "llama4": (
        *_ALWAYS,
        "vision_merge",
        "vision_image_size",
        "vision_projector_in",
        "vision_out_hidden",
    ),
    "mllama": (
        *_ALWAYS,
        "vision_image_size",
        "vision_global_layers",
        "vision_max_tiles",
        "vision_aspect_ratios",
        "vision_out_hidden",
    ),
    "pixtral": (*_ALWAYS, "vision_merge"),
    "qwen2_5_vl": (*_ALWAYS, "vision_merge", "vision_temporal_patch", "vision_out_hidden"),
    "qwen3_vl": (
        *_ALWAYS,
        "vision_merge",
        "vision_temporal_patch",
        "vision_out_hidden",
        "vision_positions",
    ),
    "siglip_gemma3": (*_ALWAYS, "vision_merge", "vision_image_size", "vision_out_hidden"),
}


def count_vision(model: Model) -> VisionCounts | None:
    """The vision tower's parameters, or None for a model that reads text alone."""
    return VISION[model.vision_type](model) if model.vision_type else None
