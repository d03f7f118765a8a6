"""What one GPU computes, moves and sends during a training step, before any rate is applied.

Formulas and their sources: docs/physics.md section 5.
"""

from __future__ import annotations

import math

from sweep.kernels.compile import scalar
from sweep.kernels.memory import FIRST, root_elements
from sweep.kernels.tables import (
    ACTIVE_ELEMENTS,
    ATTENTION_LENGTHS,
    BUSIEST,
    EXPERT,
    HEAD_ELEMENTS,
    HEADS,
    LINEAR,
    LOSS_PER_TOKEN,
    MICRO_SENT,
    NEAR,
    ONCE_SENT,
    OPERAND_ELEMENTS,
    OPERAND_HEAD,
    OPERAND_WIDTH,
    OTHER,
    REACHED,
    STAGE_SHARE,
    TP_PER_TOKEN,
    TRAFFIC_PER_TOKEN,
    Offload,
    Quantity,
)

_OPTIMIZER_CPU, _PARAMS_CPU, _PARAMS_NVME = (
    int(Offload.OPTIMIZER_CPU),
    int(Offload.PARAMS_CPU),
    int(Offload.PARAMS_NVME),
)
TOKENS = int(Quantity.TOKENS)
ACCUMULATION = int(Quantity.ACCUMULATION)
MATMUL_FLOP = int(Quantity.MATMUL_FLOP)
HALF_FLOP = int(Quantity.HALF_FLOP)
ATTENTION_FLOP = int(Quantity.ATTENTION_FLOP)
ELEMENTWISE_BYTES = int(Quantity.ELEMENTWISE_BYTES)
EAGER_BYTES = int(Quantity.EAGER_BYTES)
ADAPTER_BYTES = int(Quantity.ADAPTER_BYTES)
LOSS_BYTES = int(Quantity.LOSS_BYTES)
OPERAND_BYTES = int(Quantity.OPERAND_BYTES)
CAST_BYTES = int(Quantity.CAST_BYTES)
PERMUTE_BYTES = int(Quantity.PERMUTE_BYTES)
DEQUANT_BYTES = int(Quantity.DEQUANT_BYTES)
MEMORY_BYTES = int(Quantity.MEMORY_BYTES)
HOST_S = int(Quantity.HOST_S)
SHARD_LINK_BYTES = int(Quantity.SHARD_LINK_BYTES)
SHARD_NETWORK_BYTES = int(Quantity.SHARD_NETWORK_BYTES)
SHARD_LATENCY_S = int(Quantity.SHARD_LATENCY_S)
DP_EXPOSED = int(Quantity.DP_EXPOSED)
STEP_EXPOSED = int(Quantity.STEP_EXPOSED)
TP_LINK_BYTES = int(Quantity.TP_LINK_BYTES)
RING_LINK_BYTES = int(Quantity.RING_LINK_BYTES)
RING_NETWORK_BYTES = int(Quantity.RING_NETWORK_BYTES)
LATENCY_S = int(Quantity.LATENCY_S)
UNIT_S = int(Quantity.UNIT_S)
FETCH_PCIE_BYTES = int(Quantity.FETCH_PCIE_BYTES)
FETCH_S = int(Quantity.FETCH_S)
REPEATS = int(Quantity.REPEATS)
ONCE_LINK_BYTES = int(Quantity.ONCE_LINK_BYTES)
ONCE_NETWORK_BYTES = int(Quantity.ONCE_NETWORK_BYTES)
ONCE_LATENCY_S = int(Quantity.ONCE_LATENCY_S)
OPTIMIZER_BYTES = int(Quantity.OPTIMIZER_BYTES)
TRANSFER_PCIE_BYTES = int(Quantity.TRANSFER_PCIE_BYTES)
OPTIMIZER_S = int(Quantity.OPTIMIZER_S)
TOKENS_PER_STEP = int(Quantity.TOKENS_PER_STEP)
NETWORK_BYTES_PER_STEP = int(Quantity.NETWORK_BYTES_PER_STEP)


@scalar
def causal_length(seq_len, window):
    """Mean keys a query sees under a causal mask and a sliding window [tokens].

    Derivation: the mean of min(i, window) over positions i < seq_len.
    """
    if seq_len <= window:
        return 0.5 * seq_len
    return window - window * window / (2.0 * seq_len)


@scalar
def fullest_stage(layers, pp, virtual_stages):
    """Share of the layers in the fullest pipeline stage, and 1 if the head adds to it, else 0.

    Derivation: docs/physics.md section 5. An uneven split leaves the last stage, which has the head,
    a layer short.
    """
    chunks = int(pp * virtual_stages)
    share = -(-layers // chunks) * virtual_stages / layers
    return share, 1.0 if pp == 1 or layers % chunks == 0 else 0.0


@scalar
def compute_rest(out, model, program, case, stack, seq_len, tp, ep, etp, sequence_parallel, stage_share,
                 head_here):  # fmt: skip
    """Fill in what work shares among micro-batches: sums over layer groups, launches, dequantisation.

    Derivation: docs/physics.md section 5; passes are 2 + weight gradient + recomputation.
    """
    hidden = model.hidden
    head = head_here * hidden * model.vocab / tp
    recompute = program.recompute_matmul
    head_passes = 2.0 + program.head_trained
    layer_passes = 3.0 + program.recompute_elementwise
    hidden_share = 1.0 if sequence_parallel == 1 else float(tp)
    mlp_bytes = stack.gated_bytes if model.gated == 1 else stack.plain_bytes
    hidden_bytes = stack.hidden_bytes
    if program.layers_trained == 0.0 and program.residual_bytes > 2.0:
        hidden_bytes += stack.wide_residual_bytes
    dense = 0.0
    expert = 0.0
    attention = 0.0
    traffic = 0.0
    eager = 0.0
    width = 0.0
    for g in range(2):
        count = model.group_count[g]
        if count == 0:
            continue
        dense += count * model.linear_active[g]
        expert += count * model.expert_active[g]
        length = causal_length(seq_len, model.window[g])
        attention += count * model.attention_width[g] * length
        traffic += count * (
            hidden_bytes * hidden * hidden_share
            + stack.attention_bytes * model.qkv_width[g]
            + mlp_bytes * model.mlp_width[g]
        )
        eager += count * model.heads[g]
        width += count * model.io_width[g]
    busiest = stack.moe_imbalance if ep > 1 else 1.0
    out[STAGE_SHARE] = stage_share
    out[BUSIEST] = busiest
    out[HEAD_ELEMENTS] = head
    out[ACTIVE_ELEMENTS] = dense + expert * busiest / stack.moe_efficiency
    out[ATTENTION_LENGTHS] = attention
    out[TRAFFIC_PER_TOKEN] = traffic
    out[HEADS] = eager
    out[OPERAND_WIDTH] = width
    local_vocab = model.vocab / tp if stack.vocab_parallel_loss == 1 else model.vocab
    out[LOSS_PER_TOKEN] = head_here * program.loss_traffic_bytes * local_vocab
    out[OPERAND_ELEMENTS] = stage_share * (
        case.matrix_elements[0] / tp + case.matrix_elements[1] / (etp * ep)
    )
    out[OPERAND_HEAD] = 2.0 * head_passes * head
    quantized = stage_share * (
        case.quantized_elements[0] / tp + case.quantized_elements[1] / (etp * ep)
    )
    out[DEQUANT_BYTES] = program.dequant_bytes * quantized * (2.0 + recompute)
    out[HOST_S] = (
        stack.kernel_s
        * (
            stack.kernels_per_layer * model.layers
            + stack.moe_kernels * model.moe_layers
            + stack.adapter_kernels * case.adapted
        )
        * layer_passes
        * stage_share
    )


@scalar
def compute_terms(out, rest, model, program, case, stack, seq_len, tokens, tp):
    """Fill in FLOP and bytes of one micro-batch on one GPU, from what `compute_rest` left in `rest`.

    Derivation: docs/physics.md section 5.
    """
    recompute = program.recompute_matmul
    passes = 2.0 + program.layers_trained + recompute
    head_passes = 2.0 + program.head_trained
    layer_passes = 3.0 + program.recompute_elementwise
    share = tokens * rest[STAGE_SHARE] / tp
    out[MATMUL_FLOP] = 2.0 * share * passes * rest[ACTIVE_ELEMENTS]
    out[HALF_FLOP] = (
        2.0 * share * (3.0 + recompute) * case.adapter_active
        + 2.0 * tokens * head_passes * rest[HEAD_ELEMENTS]
    )
    out[ATTENTION_FLOP] = (
        2.0 * share * (3.5 + program.recompute_attention) * rest[ATTENTION_LENGTHS]
    )
    out[ELEMENTWISE_BYTES] = (
        stack.elementwise_passes * share * layer_passes * rest[TRAFFIC_PER_TOKEN]
    )
    out[EAGER_BYTES] = 0.0
    if program.eager == 1:
        out[EAGER_BYTES] = (
            stack.eager_attention_bytes
            * share
            * seq_len
            * (1.0 + program.recompute_attention / 3.0)
            * rest[HEADS]
        )
    out[ADAPTER_BYTES] = (
        stack.adapter_passes * 2.0 * share * (1.0 + recompute / 3.0) * case.adapter_io
    )
    out[PERMUTE_BYTES] = (
        stack.permute_bytes
        * share
        * (layer_passes / 3.0)
        * rest[BUSIEST]
        * model.moe_layers
        * model.experts_per_token
        * model.hidden
    )
    out[LOSS_BYTES] = rest[LOSS_PER_TOKEN] * tokens
    width = rest[OPERAND_WIDTH]
    out[OPERAND_BYTES] = (
        2.0 * passes * (rest[OPERAND_ELEMENTS] + share * width) + rest[OPERAND_HEAD]
    )
    out[CAST_BYTES] = program.cast_bytes * passes * share * width
    out[MEMORY_BYTES] = (
        out[ELEMENTWISE_BYTES]
        + out[EAGER_BYTES]
        + out[ADAPTER_BYTES]
        + out[PERMUTE_BYTES]
        + out[LOSS_BYTES]
        + out[OPERAND_BYTES]
        + out[CAST_BYTES]
        + rest[DEQUANT_BYTES]
    ) / stack.memory_efficiency


@scalar
def mean_elements(parts, tied_embed, tp, etp, ep, stage_share, pp):
    """A quantity given by part, as one rank has it to move: (outside, inside experts).

    Derivation: docs/physics.md section 5: the first stage, with layers of the mean kind.
    """
    dense = root_elements(parts, tied_embed, tp, pp, FIRST)
    dense += (parts[LINEAR] / tp + parts[OTHER]) * stage_share
    return dense, parts[EXPERT] * stage_share / (etp * ep)


@scalar
def communication_rest(out, model, program, case, stack, gpus_per_node, tp, pp, ep, etp, shards,
                       stage_share):  # fmt: skip
    """Fill in what links, network and PCIe carry whatever the micro-batch.

    Derivation: docs/physics.md section 5: ring collectives, hierarchical over nodes.
    """
    zero = program.zero_stage
    hidden = model.hidden
    tied = model.tied
    layers_here = model.layers * stage_share
    link = stack.link_share
    network = stack.network_share
    frozen, frozen_expert = mean_elements(case.frozen_bytes, tied, tp, etp, ep, stage_share, pp)
    trained, trained_expert = mean_elements(case.trained, tied, tp, etp, ep, stage_share, pp)
    all_trained = trained + trained_expert
    reduce = program.reduce_bytes * all_trained
    gather = frozen + frozen_expert + program.gather_bytes * all_trained
    expert_shards = shards * tp / (etp * ep)
    inside = min(shards, max(1, gpus_per_node // tp))
    nodes = shards / inside
    per_micro = 0.0
    once = 0.0
    if shards > 1:
        if zero == 3:
            per_micro = 2.0 * gather + reduce
        elif zero == 2:
            per_micro = reduce
            once = program.gather_bytes * all_trained
        elif zero == 1:
            once = reduce + program.gather_bytes * all_trained
        else:
            once = 2.0 * reduce
    inside_share = (inside - 1.0) / inside
    between_share = (nodes - 1.0) / nodes * min(gpus_per_node, tp * inside) / inside
    out[SHARD_LINK_BYTES] = per_micro * inside_share / link
    out[SHARD_NETWORK_BYTES] = per_micro * between_share / network
    out[ONCE_LINK_BYTES] = once * inside_share / link
    out[ONCE_NETWORK_BYTES] = once * between_share / network
    out[SHARD_LATENCY_S] = 0.0
    out[ONCE_LATENCY_S] = 0.0
    ring_s = stack.latency_s * (inside - 1.0 + nodes - 1.0)
    # Adapters that every rank holds whole are no units of their own.
    whole_adapters = stack.replicates_adapters == 1.0 and program.dequant_bytes > 0.0
    unit_s = 0.0
    if per_micro > 0.0:
        out[SHARD_LATENCY_S] = ring_s * (3.0 * layers_here if zero == 3 else 1.0)
        if zero == 3:
            adapters = 0.0 if whole_adapters else case.adapted
            unit_s = (
                3.0 * stage_share * (stack.unit_s * model.layers + stack.adapter_unit_s * adapters)
            )
    if once > 0.0:
        # At stage 2 the reduction's ring is each micro-batch's.
        out[ONCE_LATENCY_S] = (1.0 if zero == 2 else 2.0) * ring_s
    out[DP_EXPOSED] = stack.dp_exposed
    out[STEP_EXPOSED] = stack.step_exposed

    reduces = (4.0 + 2.0 * program.recompute_matmul) * layers_here
    out[TP_PER_TOKEN] = stack.tp_exposed * reduces * 2.0 * (tp - 1.0) / tp * 2.0 * hidden
    latency = unit_s + stack.tp_exposed * reduces * 2.0 * (tp - 1.0) * stack.latency_s
    if pp > 1:
        latency += 2.0 * stack.latency_s
    out[LATENCY_S] = latency
    out[UNIT_S] = unit_s
    out[NEAR] = 1.0
    out[REACHED] = 0.0
    if ep > 1:
        near = min(ep, max(1, gpus_per_node // etp))
        apart = ep / near
        k = model.experts_per_token
        out[NEAR] = near
        # A token goes once to each other node that has one of its experts.
        out[REACHED] = apart * (1.0 - (1.0 - 1.0 / apart) ** k) * (apart - 1.0) / apart
    out[MICRO_SENT] = per_micro * between_share
    out[ONCE_SENT] = once * between_share

    local = all_trained
    if zero >= 1 and not whole_adapters:
        local = trained / shards + trained_expert / expert_shards
    stored = program.weight_bytes * all_trained + frozen + frozen_expert
    if zero == 3:
        stored = (program.shard_weight_bytes * trained + frozen) / shards + (
            program.shard_weight_bytes * trained_expert + frozen_expert
        ) / expert_shards
    offload = program.offload
    out[FETCH_PCIE_BYTES] = 0.0
    out[FETCH_S] = 0.0
    out[TRANSFER_PCIE_BYTES] = 0.0
    out[OPTIMIZER_S] = 0.0
    out[OPTIMIZER_BYTES] = program.traffic_bytes * local / stack.memory_efficiency
    if offload != 0:
        out[OPTIMIZER_BYTES] = 0.0
        out[OPTIMIZER_S] = (
            stack.host_traffic_bytes * local * gpus_per_node / stack.host_adam_bytes_per_s
        )
        out[TRANSFER_PCIE_BYTES] = stack.transfer_bytes * local / stack.pcie_share
    if offload == _PARAMS_CPU:
        out[FETCH_PCIE_BYTES] = 2.0 * stored / stack.pcie_share
    elif offload == _PARAMS_NVME:
        out[FETCH_S] = 2.0 * stored * gpus_per_node / stack.nvme_bytes_per_s


@scalar
def communication_terms(out, rest, model, program, stack, tokens, accumulation, gpus, gpus_per_node, tp,
                        pp, cp, ep, virtual_stages):  # fmt: skip
    """Fill in what a micro-batch sends of its tokens, and how often; see `communication_rest`.

    Derivation: docs/physics.md section 5.
    """
    hidden = model.hidden
    stage_share = rest[STAGE_SHARE]
    link = stack.link_share
    network = stack.network_share
    out[TP_LINK_BYTES] = rest[TP_PER_TOKEN] * tokens / link
    ring_link = 0.0
    ring_network = 0.0
    sent = 0.0
    node_share = 1.0 * gpus_per_node
    if cp > 1:
        kv = 0.0
        for g in range(2):
            kv += model.group_count[g] * model.kv_width[g]
        volume = 3.0 * (cp - 1.0) * 4.0 * tokens * stage_share * kv / tp
        if tp * cp <= gpus_per_node:
            ring_link += stack.dp_exposed * volume
        else:
            ring_network += stack.dp_exposed * volume * node_share
            sent += volume * node_share
    if ep > 1:
        copy = (
            stack.moe_imbalance
            * (4.0 + 2.0 * program.recompute_matmul)
            * 2.0
            * tokens
            * hidden
            / tp
            * model.moe_layers
            * stage_share
        )
        near = rest[NEAR]
        reached = rest[REACHED]
        ring_link += stack.ep_exposed * copy * model.experts_per_token * (near - 1.0) / near
        ring_network += stack.ep_exposed * copy * reached * node_share
        sent += copy * reached * node_share
    if pp > 1:
        # Interleaved chunks hand on more often, behind the work of the others.
        volume = 4.0 * hidden * tokens / tp
        if gpus <= gpus_per_node:
            ring_link += volume
        else:
            ring_network += volume * node_share
            sent += volume * node_share
    out[RING_LINK_BYTES] = ring_link / link
    out[RING_NETWORK_BYTES] = ring_network / network
    repeats = accumulation + (pp - 1.0) / virtual_stages
    out[REPEATS] = repeats
    out[NETWORK_BYTES_PER_STEP] = repeats * (rest[MICRO_SENT] + sent) + rest[ONCE_SENT]


@scalar
def norm4(first, second, third):
    """The 4-norm of times that overlap but for what they share [s]: (a^4 + b^4 + c^4)^(1/4)."""
    a = first * first
    b = second * second
    c = third * third
    return math.sqrt(math.sqrt(a * a + b * b + c * c))
