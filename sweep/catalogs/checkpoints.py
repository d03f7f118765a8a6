"""What a checkpoint stores beyond its module tree: buffers, duplicate heads, MTP layers, scales."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sweep.catalogs.architecture import count_parameters
from sweep.catalogs.parameters import LayerGroup, Linear

if TYPE_CHECKING:
    from sweep.catalogs.models import Model

EXTRAS = (
    "causal_mask",
    "dup_lm_head",
    "fp8_scales",
    "inv_freq",
    "inv_freq_once",
    "mtp_dense",
    "mtp_full",
    "mtp_no_embedding",
    "neox_buffers",
    "positions_minus_2",
    "router_correction",
)


def _multi_token_prediction(model: Model, own_embedding: bool) -> int:
    """Elements of one MTP layer as DeepSeek-V3 checkpoints store it (arXiv 2412.19437, 2.2).

    A routed layer with its router's correction, the 2h x h projection, three norms, and, with
    `own_embedding`, its own copy of embedding and head.
    """
    hidden = model.hidden_size
    layer = count_parameters(model).layers[-1].params
    extra = (model.num_experts or 0) if model.router_bias == "correction-buffer" else 0
    copies = 2 * model.vocab_size * hidden if own_embedding else 0
    return layer + extra + 2 * hidden * hidden + 3 * hidden + copies


def _fp8_scales(model: Model) -> int:
    """One scale per 128 x 128 block of every matrix stored in fp8, the MTP layer's too."""

    def blocks(linear: Linear) -> int:
        return linear.copies * -(-linear.in_features // 128) * -(-linear.out_features // 128)

    def of(group: LayerGroup) -> int:
        total = 0
        for linear in group.linears:
            if linear.role == "router":
                continue
            if linear.role == "expert" and linear.name == "gate_up_proj":
                # Stored as gate_proj and up_proj: two matrices of half the width.
                half = linear.out_features // 2
                total += 2 * blocks(Linear("", linear.in_features, half, "expert", linear.copies))
            else:
                total += blocks(linear)
        return total

    layers = count_parameters(model).layers
    stored = sum(group.count * of(group) for group in layers)
    return stored + (of(layers[-1]) if "mtp_full" in model.checkpoint_extras else 0)


def checkpoint_extras(model: Model) -> dict[str, int]:
    """Elements a checkpoint stores beyond (or short of) its module tree, by name.

    Published totals count them; training memory does not. Source: notes of the catalog's rows.
    """
    hidden, depth = model.hidden_size, model.num_hidden_layers
    head_dim, positions = model.head_dim or 0, model.max_position_embeddings or 0
    routed = sum(group.count for group in count_parameters(model).layers if group.experts_per_token)
    found: dict[str, int] = {}
    for name in model.checkpoint_extras:
        match name:
            case "inv_freq":
                found[name] = depth * head_dim // 2
            case "inv_freq_once":
                found[name] = head_dim // 4
            case "dup_lm_head":
                found[name] = model.vocab_size * hidden
            case "router_correction":
                found[name] = routed * (model.num_experts or 0)
            case "mtp_full":
                found[name] = _multi_token_prediction(model, own_embedding=True)
            case "mtp_no_embedding":
                found[name] = _multi_token_prediction(model, own_embedding=False)
            case "mtp_dense":
                dense = count_parameters(model).layers[0].params
                found[name] = dense + 2 * hidden * hidden + 2 * hidden
            case "fp8_scales":
                found[name] = _fp8_scales(model)
            case "causal_mask":
                found[name] = depth * positions * positions
            case "neox_buffers":
                found[name] = depth * (positions * positions + head_dim // 8)
            case "positions_minus_2":
                found[name] = -2 * hidden
            case _:
                raise AssertionError(f"unknown checkpoint extra {name}")
    return found
