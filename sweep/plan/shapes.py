"""What the kernels need to know of a model: widths, layer groups and the values of layer features."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sweep.catalogs.architecture import count_parameters
from sweep.catalogs.decoder import GATED
from sweep.catalogs.layer_forms import FEATURES, TOKEN_FEATURES
from sweep.catalogs.models import Model
from sweep.catalogs.parameters import LayerGroup, Linear, ParameterCounts
from sweep.kernels.tables import (
    EXPERT_ONLY,
    EXPERT_SPLIT,
    EXPERT_TOKENS,
    FIXED,
    KV_SPLIT,
    REPLICATED,
    SPLIT,
    Models,
)

_SPLIT_NAMES = {"hq", "f", "fs", "nq"}
_KV_NAMES = {"hkv", "nkv"}
_FLOAT = np.float64


def _split_of(feature: str) -> int:
    """How a feature divides over ranks: docs/physics.md section 1."""
    names = feature.split("*")
    if feature == "T*k*hw":
        return EXPERT_TOKENS
    if feature == "1" or "hw" in names:
        return FIXED
    if "E" in names and names[0] != "T":
        return EXPERT_SPLIT if "fe" in names else EXPERT_ONLY
    if any(name in _SPLIT_NAMES or name == "fe" for name in names):
        return SPLIT
    if any(name in _KV_NAMES for name in names):
        return KV_SPLIT
    return REPLICATED


# A soft-cap on the logits (Gemma-2) makes one more 16-bit copy of them live: traced 12 and 14 bytes a
# logit in forward and backward where a head without has 10 and 12 (hf-trace-2026).
SOFTCAP_BYTES = 2.0

FEATURE_SPLIT = np.array([_split_of(feature) for feature in FEATURES], np.int64)
FEATURE_TOKEN = np.array(TOKEN_FEATURES, np.int64)
FEATURE_BY_SEQ = np.array(["s" in feature.split("*") for feature in FEATURES], np.int64)
FEATURE_ROUTED = np.array(
    [feature in ("T*k*fe", "T*k*h", "T*k*hw") for feature in FEATURES], np.int64
)
FEATURE_BY_RANK = np.array(["r" in feature.split("*") for feature in FEATURES], np.int64)


def _width_of(linears: Sequence[Linear], role: str) -> int:
    """Inner width of the MLP of a role: what its last matrix takes in; 0 without such a role."""
    found = [one for one in linears if one.role == role and one.out_features > 1]
    return found[-1].in_features if found else 0


@dataclass(frozen=True)
class GroupShape:
    """One group of equal layers in the terms of the forms and of the time model [elements]."""

    group: LayerGroup
    values: dict[str, float]
    linear_active: float
    expert_active: float
    attention_width: float
    io_width: float
    window: float
    mlp_width: float


def group_shape(model: Model, group: LayerGroup) -> GroupShape:
    """The widths of one layer group; Source: the model's matrices (docs/physics.md section 1)."""
    nq, nkv = float(model.num_attention_heads), float(model.num_key_value_heads)
    latent = model.kv_lora_rank is not None
    head_dim = float(model.head_dim or model.hidden_size / nq)
    nope, rope = float(model.qk_nope_head_dim or 0), float(model.qk_rope_head_dim or 0)
    value_dim = float(model.v_head_dim or 0)
    k = float(group.experts_per_token or 0)
    values = {
        "T": 1.0,
        "s": 1.0,
        "r": 1.0,
        "1": 1.0,
        "h": float(model.hidden_size),
        "hw": float(model.hidden_size),
        "nq": nq,
        "nkv": nkv,
        "d": head_dim,
        "hq": nq * (value_dim if latent else head_dim),
        "hkv": float(model.kv_lora_rank or 0) + rope if latent else nkv * head_dim,
        "f": float(_width_of(group.linears, "mlp")),
        "fs": float(_width_of(group.linears, "shared_expert")),
        "fe": float(_width_of(group.linears, "expert")),
        "k": k,
        "E": float(model.num_experts or 0) if k else 0.0,
        "rq": float(model.q_lora_rank or 0),
        "rkv": float(model.kv_lora_rank or 0),
        "dn": nope,
        "dr": rope,
        "dv": value_dim,
    }
    dense = [linear for linear in group.linears if linear.role != "expert"]
    experts = [linear for linear in group.linears if linear.role == "expert"]
    query_dim = nope + rope if latent else head_dim
    return GroupShape(
        group=group,
        values=values,
        linear_active=float(sum(linear.weight_elements for linear in dense)),
        expert_active=sum(linear.weight_elements / linear.copies * k for linear in experts),
        attention_width=nq * (query_dim + (value_dim if latent else head_dim)),
        io_width=sum((one.in_features + one.out_features) * float(one.copies) for one in dense)
        + sum((one.in_features + one.out_features) * k for one in experts),
        window=float(group.window) if group.window else math.inf,
        mlp_width=values["f"] + values["fs"] + k * values["fe"],
    )


def feature_values(values: dict[str, float]) -> np.ndarray:
    """Each feature's value with one token, one sequence position and rank 1 [F]."""
    found = np.empty(len(FEATURES))
    for index, feature in enumerate(FEATURES):
        found[index] = math.prod(values[name] for name in feature.split("*"))
    return found


@dataclass(frozen=True)
class ModelShape:
    """A model with its counts and at most two distinct layer groups."""

    model: Model
    counts: ParameterCounts
    groups: tuple[GroupShape, ...]


def model_shape(model: Model) -> ModelShape:
    """The shape of a model; layer groups of one kind and shape are joined, two kinds kept apart."""
    counts = count_parameters(model)
    return ModelShape(model, counts, tuple(group_shape(model, g) for g in counts.layers))


def model_table(shapes: Sequence[ModelShape]) -> tuple[Models, np.ndarray]:
    """The kernels' model table, one row a shape, and its feature values [M, 2, F]."""
    rows = len(shapes)
    pair = (rows, 2)
    table = Models(
        layers=np.zeros(rows, np.int64),
        hidden=np.zeros(rows, np.int64),
        vocab=np.zeros(rows, np.int64),
        tied=np.zeros(rows, np.int64),
        rotary_dim=np.zeros(rows),
        kv_heads=np.zeros(rows, np.int64),
        softcap_bytes=np.zeros(rows),
        experts_per_token=np.zeros(rows),
        moe_layers=np.zeros(rows),
        gated=np.zeros(rows, np.int64),
        interleaved=np.zeros(rows, np.int64),
        group_count=np.zeros(pair, np.int64),
        linear_active=np.zeros(pair),
        expert_active=np.zeros(pair),
        attention_width=np.zeros(pair),
        io_width=np.zeros(pair),
        window=np.full(pair, np.inf),
        mlp_width=np.zeros(pair),
        qkv_width=np.zeros(pair),
        kv_width=np.zeros(pair),
        heads=np.zeros(pair),
    )
    features = np.zeros((rows, 2, len(FEATURES)))
    for row, shape in enumerate(shapes):
        model = shape.model
        table.layers[row] = model.num_hidden_layers
        table.hidden[row] = model.hidden_size
        table.vocab[row] = model.vocab_size
        table.tied[row] = model.tie_word_embeddings
        rotary = "rope" in model.position_embedding
        latent_dim = model.qk_rope_head_dim
        table.rotary_dim[row] = (latent_dim or model.head_dim or 0) if rotary else 0
        table.kv_heads[row] = model.num_key_value_heads
        table.softcap_bytes[row] = SOFTCAP_BYTES if model.model_type == "gemma2" else 0.0
        table.experts_per_token[row] = model.experts_per_token or 0
        table.moe_layers[row] = sum(
            g.group.count for g in shape.groups if g.group.experts_per_token
        )
        table.gated[row] = model.mlp_type in GATED
        table.interleaved[row] = shape.counts.interleaved
        for g, group in enumerate(shape.groups):
            table.group_count[row, g] = group.group.count
            table.linear_active[row, g] = group.linear_active
            table.expert_active[row, g] = group.expert_active
            table.attention_width[row, g] = group.attention_width
            table.io_width[row, g] = group.io_width
            table.window[row, g] = group.window
            table.mlp_width[row, g] = group.mlp_width
            table.qkv_width[row, g] = group.values["hq"] + group.values["hkv"]
            table.kv_width[row, g] = group.values["hkv"]
            table.heads[row, g] = group.values["nq"]
            features[row, g] = feature_values(group.values)
    return table, features
