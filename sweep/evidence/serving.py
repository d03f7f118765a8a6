"""Memory one generation holds under plain Transformers, lit-gpt, gpt-fast and DeepSpeed AutoTP.

Peak allocated bytes by term, phase by phase: loading, the prompt's layers, its logits, the first
and the last generated token. Sizes come from how each stack stores and multiplies its weights
(serving_formats.py) and from the modeling files' code; none is fitted.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sweep.catalogs.decoder import GATED
from sweep.evidence import serving_formats as facts

if TYPE_CHECKING:
    from sweep.catalogs.models import Model
    from sweep.catalogs.parameters import LayerGroup, ParameterCounts


@dataclass(frozen=True)
class Serving:
    """What is served, by which engine: one call to generate.

    `release` is the Transformers release where the engine is "transformers". `rotary_positions` is
    the checkpoint's max_position_embeddings; `head_in_checkpoint` says that the file of a model
    with tied embeddings stores the head too. `gpus` share the layers (device_map), or each matrix
    where the engine is in TENSOR_PARALLEL.
    """

    model: Model
    counts: ParameterCounts
    engine: str
    release: tuple[int, int] | None
    weight_format: str
    kv_dtype_bytes: float
    batch: int
    prompt_tokens: int
    generated_tokens: int
    gpus: int
    attention: str = "flash"
    rotary_positions: int = 0
    head_in_checkpoint: bool = False

    @property
    def format(self) -> facts.WeightFormat:
        """How the linears are stored."""
        return facts.WEIGHT_FORMATS[self.weight_format]

    def since(self, release: tuple[int, int]) -> bool:
        """Whether the stack is at least this Transformers release; unknown counts as recent."""
        return self.release is None or self.release >= release


def head_dims(model: Model) -> tuple[int, int]:
    """Key and value width of one head; latent attention is cached expanded by Transformers."""
    if model.kv_lora_rank and model.v_head_dim:
        return (model.qk_nope_head_dim or 0) + (model.qk_rope_head_dim or 0), model.v_head_dim
    head_dim = model.head_dim or model.hidden_size // model.num_attention_heads
    return head_dim, head_dim


def kv_token_bytes(model: Model, dtype_bytes: float) -> float:
    """Keys and values of one token in one layer [bytes].

    Modeling files cache what attention reads: num_key_value_heads heads, and for latent attention
    every head's expanded key and value (DeepseekV3Attention), not the latent.
    """
    key, value = head_dims(model)
    heads = model.num_attention_heads if model.kv_lora_rank else model.num_key_value_heads
    return heads * (key + value) * dtype_bytes


def is_cache_static(serving: Serving) -> bool:
    """Whether the cache is made whole before the prompt."""
    if serving.model.model_type in facts.HYBRID_CACHES:
        return not serving.since(facts.SLIDING_CACHE_SINCE)
    return serving.engine in facts.STATIC_CACHE


def kv_cache_bytes(serving: Serving, tokens: int, *, windowed: bool) -> float:
    """Keys and values of `tokens` tokens a sequence over all layers [bytes].

    `windowed` bounds sliding layers to their window, where the stack ever forgets.
    """
    model = serving.model
    windowed &= is_cache_static(serving) or serving.since(facts.SLIDING_CACHE_SINCE)
    token = kv_token_bytes(model, serving.kv_dtype_bytes)
    if serving.engine == "litgpt" and model.num_key_value_heads > 1:
        # lit-gpt of 2023 expands grouped heads before it caches them (build_kv_cache).
        token *= model.num_attention_heads / model.num_key_value_heads
    if serving.engine in facts.TENSOR_PARALLEL:
        token /= min(serving.gpus, model.num_key_value_heads)
    layers_tokens = sum(
        group.count * (min(tokens, group.window) if windowed and group.window else tokens)
        for group in serving.counts.layers
    )
    return serving.batch * token * layers_tokens


def stored_matrices(serving: Serving) -> Iterator[tuple[int, int, int]]:
    """Copies, rows and columns of what is kept in the weight format; routers stay in 16 bits.

    Experts are linears of their own, gate and up apart, until Transformers 5 joins them into bare
    tensors, which bitsandbytes passes over.
    """
    fused = serving.release is not None and serving.release >= facts.FUSED_EXPERTS_SINCE
    for group in serving.counts.layers:
        for linear in group.linears:
            if linear.role == "expert" and fused and serving.weight_format in facts.BITSANDBYTES:
                continue
            parts = 2 if linear.role == "expert" and linear.name == "gate_up_proj" else 1
            if linear.role != "router":
                copies = group.count * linear.copies * parts
                yield copies, linear.out_features // parts, linear.in_features
    if serving.format.head:
        yield 1, serving.model.vocab_size, serving.model.hidden_size


def weight_terms(serving: Serving) -> dict[str, float]:
    """What is resident after loading [bytes]: on all GPUs, or on each where matrices are split."""
    fmt, counts = serving.format, serving.counts
    weights, scales, rounding, held, largest = 0.0, 0.0, 0.0, 0, 0
    for copies, rows, columns in stored_matrices(serving):
        elements = rows * columns
        packed = elements * fmt.weight_bytes
        weights += copies * packed
        scales += copies * elements / fmt.group * fmt.group_bytes
        scales += copies * (rows * fmt.row_bytes + columns * fmt.index_bytes)
        rounding += copies * (facts.allocated_bytes(packed) - packed)
        held += copies * elements
        largest = max(largest, elements)
    if fmt.head and not counts.lm_head:
        held -= counts.embedding
    tables = [counts.embedding, 0 if fmt.head else counts.lm_head]
    rounding += sum(
        facts.allocated_bytes(table * fmt.plain) - table * fmt.plain for table in tables
    )
    gpus = serving.gpus
    if serving.engine in facts.TENSOR_PARALLEL:
        # The layers' matrices are cut; embeddings, norms and biases are whole on every GPU.
        gpus = 1
        weights, scales, rounding = weights / serving.gpus, scales / serving.gpus, 0.0
    return {
        "weights": weights,
        "scales": scales,
        "unquantised": (counts.total - held) * fmt.plain,
        "kernel_buffers": fmt.buffer_bytes * largest * gpus,
        "allocator_rounding": rounding,
    }


def mlp_bytes(serving: Serving, group: LayerGroup, tokens: float) -> float:
    """What one layer's MLP adds to its input while `tokens` pass [bytes].

    Gated: silu(gate), up and their product, 6f; a fused gate_up keeps its 4f until the product is
    made; ungated: two widths. Routed: the experts' share of rows, the output, and the one-hot
    expert mask in int64. Unpacked weights stand beside what is live where they are multiplied: the
    down projection's input; for the others silu(gate), and the output unless unpacking itself,
    done in torch, is the larger moment.
    """
    fmt, act = serving.format, 2.0
    gated = serving.model.mlp_type in GATED
    chosen = group.experts_per_token or 0
    width, routed, unpacked = 0.0, 0.0, 0.0
    for linear in group.linears:
        rows, columns = linear.out_features, linear.in_features
        if linear.role == "expert" and linear.name != "gate_up_proj":
            routed = act * (3 * columns + 2 * rows) * chosen / linear.copies
            routed += act * rows + 8.0 * linear.copies * chosen
        elif linear.role in ("mlp", "shared_expert"):
            fused = linear.name == "gate_up_proj"
            inner = rows / 2 if fused else max(rows, columns)
            width = max(width, act * inner * ((4 if fused else 3) if gated else 2))
            live = act * inner * (1 if columns > rows or fmt.unpacked_bytes > 4 else 2)
            unpacked = max(unpacked, live * tokens + fmt.unpacked_bytes * rows * columns)
    if not fmt.unpacked_bytes or tokens < fmt.unpacked_from:
        unpacked = 0.0
    return max((width + routed) * tokens, unpacked)


def layer_bytes(serving: Serving, group: LayerGroup) -> float:
    """Above weights and cache while the prompt passes one layer [bytes].

    Flash or SDPA attention without a mask. The model holds the embedded prompt and the layer's
    input, the layer its residual and the normalised input: 8h. Attention: 6h, and the rotation of
    the queries (q, q cos, its rotated half and that times sin), keys and values. Eager scores: in
    16 bits, in fp32, and the 16-bit probabilities.
    """
    model, act = serving.model, 2.0
    tokens = float(serving.batch * serving.prompt_tokens)
    key, _ = head_dims(model)
    heads = model.num_attention_heads
    queries = act * heads * key
    attention = 4 * queries + 2 * kv_token_bytes(model, act)
    if serving.attention == "eager":
        attention += 8.0 * heads * serving.prompt_tokens
    hidden = act * model.hidden_size
    mlp = 4 * hidden * tokens + mlp_bytes(serving, group, tokens)
    return max(mlp, (3 * hidden + attention) * tokens)


def rotary_cache_bytes(serving: Serving) -> float:
    """cos and sin of every position in each layer, in the model's dtype [bytes].

    gpt-fast: one table, and the fp32 angles, complex values and stacked pairs it is made from,
    which torch keeps reserved (precompute_freqs_cis).
    """
    model = serving.model
    if serving.engine == "gpt-fast":
        return (4 + 4 + 8 + 8) * serving.rotary_positions * head_dims(model)[0] / 2
    last = facts.ROTARY_CACHED_UNTIL.get(model.model_type)
    if serving.engine != "transformers" or last is None or serving.since((last[0], last[1] + 1)):
        return 0.0
    dims = model.qk_rope_head_dim or head_dims(model)[0]
    return 2 * 2.0 * model.num_hidden_layers * dims * serving.rotary_positions


def serving_phases(serving: Serving) -> dict[str, dict[str, float]]:
    """Bytes by term in every phase of one generation; the peak is the largest phase's sum."""
    model, counts, fmt = serving.model, serving.counts, serving.format
    resident = weight_terms(serving)
    if not serving.prompt_tokens:
        return {"loaded": resident}
    static, mapped = is_cache_static(serving), serving.engine == "transformers"
    gpus = serving.gpus if mapped else 1
    prompt = serving.batch * serving.prompt_tokens
    total = serving.prompt_tokens + serving.generated_tokens
    # Elsewhere than in a static cache the last token is sampled and never cached, and sliding
    # layers keep a view of the whole prompt until the next token.
    final_kv = kv_cache_bytes(serving, total if static else total - 1, windowed=True)
    prompt_kv = kv_cache_bytes(serving, total if static else serving.prompt_tokens, windowed=static)
    tuples = mapped and not serving.since(facts.DYNAMIC_CACHE_SINCE)
    base = {
        **resident,
        "rotary_cache": rotary_cache_bytes(serving),
        "workspace": facts.CUBLAS_WORKSPACE_BYTES * gpus,
    }
    # Logits as computed and in fp32, of the whole prompt or of its last tokens.
    since = facts.LAST_LOGITS_SINCE.get(model.model_type, (4, 45))
    whole = not mapped or since is None or not serving.since(since)
    upcast = mapped and model.model_type not in facts.LOGITS_AS_COMPUTED
    logits = float(model.vocab_size) * (prompt if whole else serving.batch)
    kept = (4.0 if upcast else 2.0) * logits
    head_unpacked = fmt.head and prompt >= fmt.unpacked_from
    head = fmt.unpacked_bytes * model.vocab_size * model.hidden_size
    hidden = 2.0 * model.hidden_size * prompt
    layer = max(layer_bytes(serving, group) for group in counts.layers)
    # On a device map every GPU meets its own largest layer; the embedded prompt is on the first,
    # to which the last returns its logits.
    returned = kept if gpus > 1 and kept > layer else 0.0
    others = (gpus > 1) * (0.0 if returned else layer) + max(gpus - 2, 0) * (layer - hidden)
    layers = gpus * layer - (gpus - 1) * hidden
    tensors = 2 * counts.num_layers
    # Growing tensors move through holes of the pool: half of what is too small to split, each.
    slack = tensors * facts.UNSPLIT_BYTES / 2 if final_kv / tensors > facts.UNSPLIT_BYTES else 0.0
    joined = 0.0 if static else final_kv / tensors
    # Top-p sampling: scores, sorted scores, their int64 order, probabilities, running sum; fp32.
    sampling = serving.batch * float(model.vocab_size) * (4 + 4 + 4 + 8 + 4 + 4)
    phases = {
        "prompt": {**base, "kv_cache": prompt_kv, "prefill_activations": layers},
        "logits": {
            **base,
            "kv_cache": prompt_kv,
            "prefill_activations": 2 * hidden + others,
            "prefill_logits": kept + returned + (2.0 * logits if upcast else 0.0),
            "unpacked_head": head if head_unpacked else 0.0,
        },
        "first_token": {
            **base,
            "kv_cache": prompt_kv,
            "previous_kv_cache": prompt_kv if tuples else 0.0,
            "prefill_logits": kept,
        },
        "last_token": {
            **base,
            "kv_cache": final_kv,
            "previous_kv_cache": final_kv if tuples else joined,
            "sampling": sampling,
            "allocator_rounding": base["allocator_rounding"] + (0.0 if static else slack),
        },
    }
    if serving.head_in_checkpoint and not counts.lm_head:
        phases["loading"] = {**resident, "tied_head_copy": counts.embedding * fmt.plain}
    return phases


def serving_terms(serving: Serving) -> Mapping[str, float]:
    """Bytes by term at the peak: of a device map's GPUs together, of each under TENSOR_PARALLEL."""
    return max(serving_phases(serving).values(), key=lambda terms: sum(terms.values()))


def serving_peak_bytes(serving: Serving) -> float:
    """Peak allocated bytes of one generation, summed or of each GPU as `serving_terms` says."""
    return sum(serving_terms(serving).values())
