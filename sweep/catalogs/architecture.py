"""A model's exact parameter counts, and what follows from them: adapters, quantised elements.

The counts reproduce published checkpoint totals to the element (tests/test_models.py); what a
checkpoint stores beyond its module tree is in checkpoints.py.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import TYPE_CHECKING

from sweep.catalogs.decoder import MODEL_TYPES, decoder_layers
from sweep.catalogs.parameters import LayerGroup, Linear, ParameterCounts, VisionCounts
from sweep.catalogs.vision import count_vision

if TYPE_CHECKING:
    from sweep.catalogs.models import Model

__all__ = [
    "MODEL_TYPES",
    "LayerGroup",
    "Linear",
    "ParameterCounts",
    "VisionCounts",
    "count_parameters",
    "lora_parameters",
    "quantizable_elements",
]

# Model types whose experts PEFT's all-linear reaches: on Transformers 5 it rewrites the names of
# the old per-expert modules to the fused tensors, for these and no others (PEFT 0.21.2).
_EXPERTS_ADAPTED = (
    "deepseek_v2",
    "deepseek_v3",
    "ernie4_5_moe",
    "glm4_moe",
    "hunyuan_v1_moe",
    "minimax_m2",
    "mixtral",
    "qwen3_moe",
)


@functools.lru_cache(maxsize=4096)
def count_parameters(model: Model) -> ParameterCounts:
    """Where a model's parameters live, in elements.

    Source: the module tree of the Transformers 5.23 class named in the catalog; multi-token
    prediction layers are not part of it (see checkpoints.py).
    """
    hidden = model.hidden_size
    width = model.embedding_projection or hidden
    embedding = (model.vocab_size + (model.embedding_extra_rows or 0)) * width
    norm_width = hidden * (2 if model.norm_type == "layernorm" else 1)
    lm_head = 0
    if not model.tie_word_embeddings:
        lm_head = model.vocab_size * width
    if model.lm_head_bias:
        lm_head += model.vocab_size
    positions = (model.position_rows or 0) * hidden
    root_linears: tuple[Linear, ...] = ()
    if model.embedding_projection:
        root_linears = (
            Linear("project_in", width, hidden, "projector"),
            Linear("project_out", hidden, width, "projector"),
        )
    root_other = positions + sum(linear.params for linear in root_linears)
    if model.embedding_norm:
        root_other += norm_width
    final_norm = norm_width if model.final_norm else 0
    layers, interleaved = decoder_layers(model)
    vision = count_vision(model)
    body = sum(group.count * group.params for group in layers)
    total = embedding + lm_head + final_norm + root_other + body + (vision.total if vision else 0)
    # The head's matrix is multiplied once, tied or not; embedding rows and positions are looked up.
    active = model.vocab_size * width + final_norm
    active += sum(linear.params for linear in root_linears)
    active += sum(group.count * group.active_params for group in layers)
    return ParameterCounts(
        total=total,
        embedding=embedding,
        lm_head=lm_head,
        final_norm=final_norm,
        root_other=root_other,
        root_linears=root_linears,
        layers=layers,
        interleaved=interleaved,
        vision=vision,
        active_per_token=active,
        experts_adapted=model.model_type in _EXPERTS_ADAPTED,
    )


def _all_linears(counts: ParameterCounts) -> list[tuple[int, Linear]]:
    """Every matrix of the model with how many layers hold it; head and embedding left out."""
    found = [(1, linear) for linear in counts.root_linears]
    for group in counts.layers:
        found += [(group.count, linear) for linear in group.linears]
    if counts.vision:
        found += [(counts.vision.depth, linear) for linear in counts.vision.block]
        found += [(1, linear) for linear in counts.vision.projector]
    return found


_QUERY_VALUE = (
    "q_proj",
    "v_proj",
    "qkv_proj",
    "query_key_value",
    "c_attn",
    "Wqkv",
    "q_b_proj",
    "kv_b_proj",
)


# Projections by the short names that a list of targets joins with "+", and the matrices they are.
_PROJECTIONS: Mapping[tuple[str, str], frozenset[str]] = {
    ("attention", "q"): frozenset({"q_proj", "q_b_proj", "q_a_proj"}),
    ("attention", "k"): frozenset({"k_proj", "kv_a_proj_with_mqa"}),
    ("attention", "v"): frozenset({"v_proj", "kv_b_proj"}),
    ("attention", "o"): frozenset({"o_proj", "dense", "out_proj", "c_proj"}),
    ("mlp", "gate"): frozenset({"gate_proj"}),
    ("mlp", "up"): frozenset({"up_proj", "fc1", "c_fc", "dense_h_to_4h"}),
    ("mlp", "down"): frozenset({"down_proj", "fc2", "c_proj", "dense_4h_to_h"}),
}
_FUSED_PROJECTIONS: Mapping[str, frozenset[str]] = {
    **dict.fromkeys(("qkv_proj", "query_key_value", "Wqkv", "c_attn"), frozenset("qkv")),
    "gate_up_proj": frozenset({"gate", "up"}),
}


def _is_listed(linear: Linear, listed: frozenset[str]) -> bool:
    """Whether a list of projections names a matrix, or one of those fused into it."""
    role = "mlp" if linear.role == "shared_expert" else linear.role
    fused = _FUSED_PROJECTIONS.get(linear.name, frozenset())
    return bool(fused & listed) or any(
        linear.name in names
        for (place, short), names in _PROJECTIONS.items()
        if place == role and short in listed
    )


def adapter_rank(linear: Linear, counts: ParameterCounts, rank: int, targets: str) -> int:
    """The rank of one matrix's adapter: 0 where it gets none."""
    if targets == "attention-qv":
        return rank if linear.role == "attention" and linear.name in _QUERY_VALUE else 0
    if targets == "attention":
        return rank if linear.role == "attention" else 0
    if "+" in targets:
        return rank if _is_listed(linear, frozenset(targets.split("+"))) else 0
    if targets != "all-linear":
        return 0
    if counts.experts_adapted:
        if linear.role == "expert":
            # gate and up share one tensor and keep their rank each.
            return 2 * rank if linear.name == "gate_up_proj" else rank
        if linear.role == "router":
            return rank
        # The rewrite takes gate_proj, up_proj and down_proj for the experts, and so passes over
        # the dense and shared MLPs that bear the same names.
        return 0 if linear.role in ("mlp", "shared_expert") else rank
    return rank if linear.is_linear_module else 0


def lora_parameters(
    counts: ParameterCounts,
    rank: int,
    targets: str,
    *,
    experts: bool = True,
    vision: bool = False,
) -> int:
    """Elements of a LoRA adapter pair on every target, PEFT 0.21.2 with Transformers 5.23.

    `targets`: "attention-qv" (query and value projections, or the fused one; for latent attention
    the up-projections q_b_proj or q_proj and kv_b_proj), "attention" (every attention matrix),
    "all-linear" (every nn.Linear but the head, and the fused experts where PEFT reaches them);
    "none" is 0. `experts=False` leaves all-linear to the nn.Linear modules alone; `vision` adapts
    the tower and its projector too. Source: adapters of real PEFT models, tests/test_models.py.
    """
    if not experts:
        counts = dataclasses.replace(counts, experts_adapted=False)
    adapted = 0
    for layers, linear in _all_linears(counts):
        if linear.role == "vision" or (linear.role == "projector" and counts.vision):
            if not (vision and targets == "all-linear" and linear.is_linear_module):
                continue
            linear_rank = rank
        else:
            linear_rank = adapter_rank(linear, counts, rank, targets)
        ends = linear.in_features + linear.out_features
        adapted += layers * linear.copies * linear_rank * ends
    return adapted


def quantizable_elements(counts: ParameterCounts) -> int:
    """Weight elements 4- or 8-bit loading converts: nn.Linear and Conv1D but the head.

    Embedding, head, norms, biases and bare tensors (fused experts, most routers) keep their dtype.
    Falcon's linears, a subclass Transformers 5 passes over, are counted as earlier releases convert
    them. Source: bitsandbytes integration of Transformers; checked against traced resident bytes.
    """
    return sum(
        layers * linear.weight_elements
        for layers, linear in _all_linears(counts)
        if linear.is_linear_module
    )
