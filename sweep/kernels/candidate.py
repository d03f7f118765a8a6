"""One candidate: a workload's case under a layout and a micro-batch, before a setup's rates apply."""

from __future__ import annotations

from sweep.kernels.compile import scalar
from sweep.kernels.memory import (
    CACHED,
    FIRST,
    KEEP_A,
    KEEP_B,
    LAST,
    ROUTED,
    ROUTED_SETS,
    SETS_END,
    expert_split,
    feature_share,
    stage_bytes,
)
from sweep.kernels.tables import Quantity
from sweep.kernels.time import (
    communication_rest,
    communication_terms,
    compute_rest,
    compute_terms,
    fullest_stage,
    norm4,
)

ALLOCATED = int(Quantity.ALLOCATED)
DEVICE = int(Quantity.DEVICE)
HOST = int(Quantity.HOST)
OFFLOADED = int(Quantity.OFFLOADED)
TOKENS = int(Quantity.TOKENS)
ACCUMULATION = int(Quantity.ACCUMULATION)
TOKENS_PER_STEP = int(Quantity.TOKENS_PER_STEP)
MATMUL_FLOP = int(Quantity.MATMUL_FLOP)
HALF_FLOP = int(Quantity.HALF_FLOP)
ATTENTION_FLOP = int(Quantity.ATTENTION_FLOP)
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
FETCH_PCIE_BYTES = int(Quantity.FETCH_PCIE_BYTES)
FETCH_S = int(Quantity.FETCH_S)
REPEATS = int(Quantity.REPEATS)
ONCE_LINK_BYTES = int(Quantity.ONCE_LINK_BYTES)
ONCE_NETWORK_BYTES = int(Quantity.ONCE_NETWORK_BYTES)
ONCE_LATENCY_S = int(Quantity.ONCE_LATENCY_S)
OPTIMIZER_BYTES = int(Quantity.OPTIMIZER_BYTES)
TRANSFER_PCIE_BYTES = int(Quantity.TRANSFER_PCIE_BYTES)
OPTIMIZER_S = int(Quantity.OPTIMIZER_S)
# Added to nothing it changes nothing, and times the inf of a dtype that a GPU lacks it is inf, where
# the 0 of a stage without head and adapters would be no number.
LEAST_FLOP = 1e-200


@scalar
def layer_lines(lines, model, feature_values, forms, case, rank, seq_len, tp, etp, ep,
                sequence_parallel):  # fmt: skip
    """Fill in the linear forms of a model's layers as lines in the tokens.

    lines[0], [1] are what one layer of each group keeps (a [bytes/token], b [bytes]) and more of the
    group, see memory.KEEP_A and on; then the working sets by group, dominated ones left out.
    Source: traced layer forms (the layer_forms catalog), docs/physics.md section 1.
    """
    kv_heads = model.kv_heads
    features = forms.token.shape[0]
    lines[:2] = 0.0
    used = 2
    for g in range(2):
        count = model.group_count[g]
        if count == 0:
            lines[g, SETS_END] = used
            continue
        variant = case.variant[g]
        keep_a = 0.0
        keep_b = 0.0
        cached = 0.0
        routed = 0.0
        first = used
        backward = forms.backward_count[variant]
        for row in range(backward):
            lines[used + row, 0] = 0.0
            lines[used + row, 1] = 0.0
            lines[used + row, ROUTED] = 0.0
        for f in range(features):
            value = feature_values[g, f]
            if value == 0.0:
                continue
            token = forms.token[f]
            value *= feature_share(forms.split[f], token, tp, etp, kv_heads, ep, sequence_parallel)
            if forms.by_seq[f] == 1:
                value *= seq_len
            if forms.by_rank[f] == 1:
                value *= rank
            if token == 1:
                keep_a += forms.keep[variant, f] * value
                for row in range(backward):
                    lines[used + row, 0] += forms.backward[variant, row, f] * value
                if forms.routed[f] == 1:
                    routed += forms.keep[variant, f] * value
                    for row in range(backward):
                        lines[used + row, ROUTED] += forms.backward[variant, row, f] * value
            else:
                keep_b += forms.keep[variant, f] * value
                cached += forms.cached[variant, f] * value
                for row in range(backward):
                    lines[used + row, 1] += forms.backward[variant, row, f] * value
        lines[g, KEEP_A] = keep_a
        lines[g, KEEP_B] = keep_b
        lines[g, CACHED] = cached
        lines[g, ROUTED] = routed
        lines[g, ROUTED_SETS] = 0.0
        for row in range(first, first + backward):
            lines[g, ROUTED_SETS] = max(lines[g, ROUTED_SETS], lines[row, ROUTED])
        # Keep only lines that no other line of the set is above everywhere (T >= 0).
        kept = first
        for row in range(first, first + backward):
            a = lines[row, 0]
            b = lines[row, 1]
            dominated = False
            for other in range(first, first + backward):
                if other == row:
                    continue
                if lines[other, 0] >= a and lines[other, 1] >= b:
                    equal = lines[other, 0] == a and lines[other, 1] == b
                    if not equal or other < row:
                        dominated = True
                        break
            lines[row, 2] = 1.0 if dominated else 0.0
        for row in range(first, first + backward):
            if lines[row, 2] == 0.0:
                lines[kept, 0] = lines[row, 0]
                lines[kept, 1] = lines[row, 1]
                kept += 1
        used = kept
        lines[g, SETS_END] = used


@scalar
def evaluate(out, spare, lines, model, program, case, stack, seq_len, vision_flop,
             global_batch, micro_batch, gpus, gpus_per_node, dp, tp, pp, cp, ep,
             sequence_parallel):  # fmt: skip
    """Fill `out` (see Quantity) for one candidate; nothing here depends on the kind of GPU.

    Of several pipeline stages the one with most bytes on the device decides; `spare` is room for
    another. One in the middle can need most only where the first has layers of another kind.

    Derivation: docs/physics.md sections 2 to 5.
    """
    memory_terms(
        out, spare, lines, model, program, case, stack, seq_len, global_batch, micro_batch, gpus,
        gpus_per_node, dp, tp, pp, cp, ep, sequence_parallel,
    )  # fmt: skip
    time_terms(
        out, model, program, case, stack, seq_len, vision_flop, global_batch, micro_batch, gpus,
        gpus_per_node, dp, tp, pp, cp, ep, sequence_parallel,
    )  # fmt: skip


@scalar
def stages_tried(model, pp):
    """Pipeline stages that may need most: the first, the last, and the second of unlike layers."""
    if pp == 1:
        return 1
    return 3 if pp > 2 and model.group_count[1] > 0 and model.interleaved == 0 else 2


@scalar
def memory_terms(out, spare, lines, model, program, case, stack, seq_len, global_batch, micro_batch,
                 gpus, gpus_per_node, dp, tp, pp, cp, ep, sequence_parallel):  # fmt: skip
    """Fill in what one GPU and one node hold; time plays no part.

    Derivation: docs/physics.md sections 2 to 4.
    """
    tokens = micro_batch * seq_len / cp
    accumulation = global_batch / (micro_batch * dp)
    shards = dp * cp
    several = gpus > 1
    stage_bytes(
        out, FIRST, lines, model, program, case, stack, seq_len, tokens, accumulation,
        tp, pp, cp, ep, sequence_parallel, shards, several,
    )  # fmt: skip
    offloaded = out[OFFLOADED]
    for stage in range(LAST, stages_tried(model, pp)):
        stage_bytes(
            spare, stage, lines, model, program, case, stack, seq_len, tokens, accumulation,
            tp, pp, cp, ep, sequence_parallel, shards, several,
        )  # fmt: skip
        offloaded = max(offloaded, spare[OFFLOADED])
        if spare[DEVICE] > out[DEVICE]:
            for i in range(out.shape[0]):
                out[i] = spare[i]
    out[OFFLOADED] = offloaded
    out[HOST] = gpus_per_node * (stack.process_bytes + offloaded)


@scalar
def time_terms(out, model, program, case, stack, seq_len, vision_flop, global_batch, micro_batch,
               gpus, gpus_per_node, dp, tp, pp, cp, ep, sequence_parallel):  # fmt: skip
    """Fill in what a step computes, moves and sends; memory plays no part.

    Derivation: docs/physics.md section 5.
    """
    time_rest(
        out, model, program, case, stack, seq_len, gpus_per_node, dp, tp, pp, cp, ep,
        sequence_parallel,
    )  # fmt: skip
    time_tokens(
        out, out, model, program, case, stack, seq_len, vision_flop, global_batch, micro_batch, gpus,
        gpus_per_node, dp, tp, pp, cp, ep,
    )  # fmt: skip


@scalar
def time_rest(out, model, program, case, stack, seq_len, gpus_per_node, dp, tp, pp, cp, ep,
              sequence_parallel):  # fmt: skip
    """Fill in what of a step's work and traffic does not grow with the micro-batch."""
    virtual_stages = stack.virtual_stages if pp > 1 else 1.0
    stage_share, head_here = fullest_stage(model.layers, pp, virtual_stages)
    etp = expert_split(tp, ep, dp * cp)
    compute_rest(
        out, model, program, case, stack, seq_len, tp, ep, etp, sequence_parallel, stage_share,
        head_here,
    )  # fmt: skip
    communication_rest(
        out, model, program, case, stack, gpus_per_node, tp, pp, ep, etp, dp * cp, stage_share
    )


@scalar
def time_tokens(out, rest, model, program, case, stack, seq_len, vision_flop, global_batch, micro_batch,
                gpus, gpus_per_node, dp, tp, pp, cp, ep):  # fmt: skip
    """Fill in the work and traffic of a micro-batch, from what `time_rest` left in `rest` (or in out)."""
    tokens = micro_batch * seq_len / cp
    accumulation = global_batch / (micro_batch * dp)
    out[TOKENS] = tokens
    out[ACCUMULATION] = accumulation
    out[TOKENS_PER_STEP] = global_batch * seq_len
    compute_terms(out, rest, model, program, case, stack, seq_len, tokens, tp)
    # A frozen tower computes in 16 bits.
    out[HALF_FLOP] += micro_batch * vision_flop
    communication_terms(
        out, rest, model, program, stack, tokens, accumulation, gpus, gpus_per_node, tp, pp, cp, ep,
        stack.virtual_stages if pp > 1 else 1.0,
    )  # fmt: skip


@scalar
def copy_rest(out, rest):
    """Copy what step time takes from `time_rest` to the other quantities of a candidate."""
    out[HOST_S] = rest[HOST_S]
    out[SHARD_LINK_BYTES] = rest[SHARD_LINK_BYTES]
    out[SHARD_NETWORK_BYTES] = rest[SHARD_NETWORK_BYTES]
    out[SHARD_LATENCY_S] = rest[SHARD_LATENCY_S]
    out[DP_EXPOSED] = rest[DP_EXPOSED]
    out[STEP_EXPOSED] = rest[STEP_EXPOSED]
    out[ONCE_LINK_BYTES] = rest[ONCE_LINK_BYTES]
    out[ONCE_NETWORK_BYTES] = rest[ONCE_NETWORK_BYTES]
    out[ONCE_LATENCY_S] = rest[ONCE_LATENCY_S]
    out[OPTIMIZER_BYTES] = rest[OPTIMIZER_BYTES]
    out[FETCH_PCIE_BYTES] = rest[FETCH_PCIE_BYTES]
    out[FETCH_S] = rest[FETCH_S]
    out[TRANSFER_PCIE_BYTES] = rest[TRANSFER_PCIE_BYTES]
    out[LATENCY_S] = rest[LATENCY_S]
    out[OPTIMIZER_S] = rest[OPTIMIZER_S]


@scalar
def step_seconds(out, matmul, half, attention, memory, link, network, pcie):
    """Seconds of one step on a setup whose times per FLOP and byte are given [s].

    `matmul` is for the layers' matrices, `half` for head and adapters, which stay at 16 bits or more.

    Derivation: docs/physics.md section 5. The hot loops, `decide.race` and `best.race_fits`, repeat this.
    """
    compute = (
        out[MATMUL_FLOP] * matmul
        + max(out[HALF_FLOP], LEAST_FLOP) * half
        + out[ATTENTION_FLOP] * attention
        + out[MEMORY_BYTES] * memory
    )
    shard = (
        max(out[SHARD_LINK_BYTES] * link, out[SHARD_NETWORK_BYTES] * network) + out[SHARD_LATENCY_S]
    )
    once = max(out[ONCE_LINK_BYTES] * link, out[ONCE_NETWORK_BYTES] * network) + out[ONCE_LATENCY_S]
    micro = (
        norm4(compute, out[HOST_S], shard)
        + out[DP_EXPOSED] * shard
        + (out[TP_LINK_BYTES] + out[RING_LINK_BYTES]) * link
        + out[RING_NETWORK_BYTES] * network
        + out[LATENCY_S]
        + out[FETCH_PCIE_BYTES] * pcie
        + out[FETCH_S]
    )
    return (
        out[REPEATS] * micro
        + out[STEP_EXPOSED] * once
        + out[OPTIMIZER_BYTES] * memory
        + out[TRANSFER_PCIE_BYTES] * pcie
        + out[OPTIMIZER_S]
    )
