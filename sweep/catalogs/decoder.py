"""One decoder layer's matrices and norms, from a model's architecture facts.

Names, fused projections and which tensors are modules follow Transformers 5.23, read from the
module tree of each class; routed experts are bare tensors there (`experts.gate_up_proj`,
`experts.down_proj`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from sweep.catalogs.parameters import LayerGroup, Linear

if TYPE_CHECKING:
    from sweep.catalogs.models import Model

GATED = ("swiglu", "geglu", "gegelu")


@dataclass(frozen=True)
class Wiring:
    """How a model type names its modules, and which projections it fuses."""

    qkv: tuple[str, ...] = ("q_proj", "k_proj", "v_proj")
    out: str = "o_proj"
    mlp: tuple[str, ...] = ("gate_proj", "up_proj", "down_proj")
    module: str = "linear"
    router_module: str = "parameter"


_LLAMA = Wiring()
_NEOX = Wiring(("query_key_value",), "dense", ("dense_h_to_4h", "dense_4h_to_h"))
_GLM = Wiring(mlp=("gate_up_proj", "down_proj"))

WIRING: dict[str, Wiring] = {
    "cohere": _LLAMA,
    "deepseek_v2": _LLAMA,
    "deepseek_v3": _LLAMA,
    "ernie4_5": _LLAMA,
    "ernie4_5_moe": _LLAMA,
    "bloom": _NEOX,
    "falcon": _NEOX,
    "gemma": _LLAMA,
    "gemma2": _LLAMA,
    "gemma3_text": _LLAMA,
    "glm": _GLM,
    "glm4": _GLM,
    "glm4_moe": _LLAMA,
    "gpt2": Wiring(("c_attn",), "c_proj", ("c_fc", "c_proj"), module="conv1d"),
    "gpt_neox": _NEOX,
    "gpt_oss": _LLAMA,
    "granite": _LLAMA,
    "granitemoe": _LLAMA,
    "hunyuan_v1_dense": _LLAMA,
    "hunyuan_v1_moe": Wiring(router_module="linear"),
    "llama": _LLAMA,
    # The routers of Llama-4 and Phi-MoE subclass nn.Linear but return tuples: 4-bit loading looks
    # for the exact class, and an adapter breaks them, so both are left out like bare tensors.
    "llama4_text": _LLAMA,
    "minicpm3": _LLAMA,
    "minimax_m2": _LLAMA,
    "mistral": _LLAMA,
    "mixtral": _LLAMA,
    "mllama_text": _LLAMA,
    "mpt": Wiring(("Wqkv",), "out_proj", ("up_proj", "down_proj")),
    "olmo2": _LLAMA,
    "opt": Wiring(out="out_proj", mlp=("fc1", "fc2")),
    "phi": Wiring(out="dense", mlp=("fc1", "fc2")),
    "phi3": Wiring(("qkv_proj",), "o_proj", ("gate_up_proj", "down_proj")),
    "phi3small": Wiring(("query_key_value",), "dense", ("up_proj", "down_proj")),
    "phimoe": _LLAMA,
    "qwen2": _LLAMA,
    "qwen2_moe": _LLAMA,
    "qwen3": _LLAMA,
    "qwen3_moe": _LLAMA,
    "qwen3_vl_moe_text": _LLAMA,
    "smollm3": _LLAMA,
    "starcoder2": Wiring(mlp=("c_fc", "c_proj")),
}
MODEL_TYPES = tuple(sorted(WIRING))


def _latent_attention(model: Model) -> tuple[tuple[Linear, ...], int]:
    """Multi-head latent attention (DeepSeek-V2 paper, arXiv 2405.04434, section 2.1)."""
    hidden, heads = model.hidden_size, model.num_attention_heads
    rank = model.kv_lora_rank or 0
    nope, rope = model.qk_nope_head_dim or 0, model.qk_rope_head_dim or 0
    value = model.v_head_dim or 0
    bias = model.qkv_bias
    norms = rank
    query: tuple[Linear, ...]
    if model.q_lora_rank:
        norms += model.q_lora_rank
        query = (
            Linear("q_a_proj", hidden, model.q_lora_rank, "attention", bias=bias),
            Linear("q_b_proj", model.q_lora_rank, heads * (nope + rope), "attention"),
        )
    else:
        query = (Linear("q_proj", hidden, heads * (nope + rope), "attention"),)
    rest = (
        Linear("kv_a_proj_with_mqa", hidden, rank + rope, "attention", bias=bias),
        Linear("kv_b_proj", rank, heads * (nope + value), "attention"),
        Linear("o_proj", heads * value, hidden, "attention", bias=model.o_bias),
    )
    return query + rest, norms


def _attention(model: Model) -> tuple[tuple[Linear, ...], int]:
    """The attention matrices, and the elements of the norms inside attention."""
    if model.kv_lora_rank:
        return _latent_attention(model)
    wiring = WIRING[model.model_type]
    head_dim = model.head_dim or 0
    q_width = model.num_attention_heads * head_dim
    kv_width = model.num_key_value_heads * head_dim
    widths = [q_width, kv_width, kv_width]
    if len(wiring.qkv) == 1:
        widths = [sum(widths)]
    linears = [
        Linear(name, model.hidden_size, width, "attention", 1, model.qkv_bias, wiring.module)
        for name, width in zip(wiring.qkv, widths, strict=True)
    ]
    linears.append(
        Linear(wiring.out, q_width, model.hidden_size, "attention", 1, model.o_bias, wiring.module)
    )
    norms = {
        "none": 0,
        "head-l2": 0,
        "head-rmsnorm": 2 * head_dim,
        "width-rmsnorm": q_width + kv_width,
        "own-head-layernorm": q_width + kv_width,
    }[model.qk_norm]
    return tuple(linears), norms


def _gated(
    names: tuple[str, ...], hidden: int, width: int, role: str, model: Model
) -> list[Linear]:
    """An MLP of the given width: gate and up (apart or fused) and down, or just up and down."""
    gated = model.mlp_type in GATED
    module = WIRING[model.model_type].module
    if len(names) == 3:
        shapes = [(hidden, width), (hidden, width), (width, hidden)]
    else:
        shapes = [(hidden, 2 * width if gated else width), (width, hidden)]
    return [
        Linear(name, in_features, out_features, role, 1, model.mlp_bias, module)
        for name, (in_features, out_features) in zip(names, shapes, strict=True)
    ]


def _dense_mlp(model: Model) -> tuple[Linear, ...]:
    width = model.intermediate_size
    if model.num_experts and model.dense_intermediate_size:
        width = model.dense_intermediate_size
    names = WIRING[model.model_type].mlp
    return tuple(_gated(names, model.hidden_size, width, "mlp", model))


def _expert_mlp(model: Model) -> tuple[tuple[Linear, ...], int]:
    """Router, routed and shared experts of a layer; and the elements of what is no matrix."""
    hidden = model.hidden_size
    experts, width = model.num_experts or 0, model.moe_intermediate_size or 0
    wiring = WIRING[model.model_type]
    router_bias = model.router_bias == "bias"
    linears = [
        Linear("router", hidden, experts, "router", 1, router_bias, wiring.router_module),
        Linear(
            "gate_up_proj", hidden, 2 * width, "expert", experts, model.expert_bias, "parameter"
        ),
        Linear("down_proj", width, hidden, "expert", experts, model.expert_bias, "parameter"),
    ]
    if model.shared_intermediate_size:
        linears += _gated(
            wiring.mlp, hidden, model.shared_intermediate_size, "shared_expert", model
        )
    if model.shared_expert_gate:
        linears.append(Linear("shared_expert_gate", hidden, 1, "shared_expert"))
    correction = experts if model.router_bias == "correction-parameter" else 0
    return tuple(linears), correction


def _layer(
    model: Model, kind: str, first: int, count: int, moe: bool, window: int | None
) -> LayerGroup:
    linears, norms = _attention(model)
    per_norm = model.hidden_size * (2 if model.norm_type == "layernorm" else 1)
    norms += model.norms_per_layer * per_norm
    other = model.num_attention_heads if model.attention_sinks else 0
    if kind == "cross_attention":
        # Mllama: per-head query and key norms, and one gate each for attention and MLP.
        norms += 2 * (model.head_dim or 0)
        other += 2
    if moe:
        mlp, correction = _expert_mlp(model)
        other += correction
    else:
        mlp = _dense_mlp(model)
    per_token = model.experts_per_token if moe else None
    return LayerGroup(kind, first, count, linears + mlp, norms, other, window, per_token)


def decoder_layers(model: Model) -> tuple[tuple[LayerGroup, ...], bool]:
    """The decoder's groups of equal layers, and whether they alternate through the depth."""
    depth, window = model.num_hidden_layers, model.sliding_window
    moe = bool(model.num_experts)
    if model.cross_attention_layers:
        crossed = len(model.cross_attention_layers)
        return (
            _layer(model, "dense", 0, depth - crossed, False, None),
            _layer(model, "cross_attention", model.cross_attention_layers[0], crossed, False, None),
        ), True
    if window and model.sliding_pattern not in (None, "all"):
        local = int(str(model.sliding_pattern).split(":")[0])
        full = depth // (local + 1)
        return (
            _layer(model, "sliding", 0, depth - full, moe, window),
            _layer(model, "global", local, full, moe, None),
        ), True
    if not moe:
        return (_layer(model, "dense", 0, depth, False, window),), False
    if (step := model.moe_layer_step or 1) > 1:
        # Llama-4: layers step-1, 2 step-1, ... route, the others are dense.
        routed = depth // step
        return (
            _layer(model, "dense", 0, depth - routed, False, window),
            _layer(model, "moe", step - 1, routed, True, window),
        ), True
    if dense := model.first_k_dense or 0:
        return (
            _layer(model, "dense", 0, dense, False, window),
            _layer(model, "moe", dense, depth - dense, True, window),
        ), False
    return (_layer(model, "moe", 0, depth, True, window),), False
