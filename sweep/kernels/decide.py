"""The loops: every candidate of a block of workloads against every setup of a class."""

from __future__ import annotations

import math

import numpy as np

from sweep.kernels import candidate as _c
from sweep.kernels.candidate import (
    copy_rest,
    layer_lines,
    stages_tried,
    time_rest,
    time_tokens,
)
from sweep.kernels.compile import kernel, scalar
from sweep.kernels.memory import stage_rest, stage_tokens
from sweep.kernels.tables import (
    ATTENTION_S,
    DEVICE_INVERSE,
    DEVICE_LIMIT,
    FULL_DTYPES,
    HOST_INVERSE,
    HOST_LIMIT,
    LINK_S,
    MATMUL_BF16_S,
    MEMORY_S,
    NETWORK_S,
    OFFLOAD_LIMIT,
    PCIE_S,
    ROOM,
    Quantity,
    Verdict,
)

_FITS, _GPU, _HOST, _UNSUPPORTED, _NO_LAYOUT = (int(verdict) for verdict in Verdict)
# What kernels write for one row, and what identifies a candidate.
SECONDS_PER_TOKEN, ALLOCATED, DEVICE, HOST, NETWORK_PER_TOKEN = range(5)
MEASURES = 5
_KNOB, _DTYPE, _OFFLOAD, _ATTENTION = range(4)
IDENTITY = 4
_NETWORK = int(Quantity.NETWORK_BYTES_PER_STEP)
# Need over limit of a candidate the GPU cannot run at all: behind every other miss.
_NEVER = 1e30


@scalar
def knob_number(p, batch, layout, micro, batches, layouts, micros):
    """The number of a knob combination: mixed radix, in the order the loops visit them."""
    return ((p * batches + batch) * layouts + layout) * micros + micro


@scalar
def fill_candidates(w, k, workloads, choices, layouts, splits, models, features, forms, programs,
                    cases, stacks, classes, batches, lines, lines_known, table, identity):  # fmt: skip
    """Evaluate every knob combination of workload w on class k into `table`; returns how many.

    table [N, ROOM] takes the quantities that verdict and time need, identity i64 [N, IDENTITY] knob
    number, dtype, offload and attention kernel.
    `lines` and `lines_known` hold the layer lines of this workload, computed when first needed.
    """
    m = workloads.model[w]
    model = models[m]
    seq_len = workloads.seq_len[w]
    gpus = classes.gpus[k]
    gpus_per_node = classes.gpus_per_node[k]
    layout_count = layouts.tp.shape[0]
    micro_count = choices.micro_batches.shape[0]
    first_case = workloads.first_case[w]
    found = 0
    spare = np.zeros(ROOM)
    rest = np.zeros((3, ROOM))
    offloaded = 0.0
    for at in range(first_case, workloads.last_case[w]):
        case = cases[workloads.case_list[at]]
        p = case.program
        program = programs[p]
        stack = stacks[program.stack]
        rule = choices.rule[p]
        y0 = choices.first[workloads.signature[w], k, rule]
        y1 = choices.last[workloads.signature[w], k, rule]
        for b in range(workloads.first_batch[w], workloads.last_batch[w]):
            global_batch = workloads.batch_list[b]
            for y in range(y0, y1):
                layout = choices.layout_list[y]
                tp = layouts.tp[layout]
                pp = layouts.pp[layout]
                cp = layouts.cp[layout]
                ep = layouts.ep[layout]
                sp = layouts.sequence_parallel[layout]
                x = layouts.split[layout]
                dp = gpus // (tp * pp * cp)
                stages = stages_tried(model, pp)
                known = False
                if lines_known[at - first_case, x] == 0:
                    layer_lines(
                        lines[at - first_case, x], model, features[m], forms, case,
                        program.lora_rank, seq_len, tp, tp, ep, sp,
                    )  # fmt: skip
                    lines_known[at - first_case, x] = 1
                for micro in range(workloads.first_micro[w], workloads.last_micro[w]):
                    micro_batch = choices.micro_batches[micro]
                    if global_batch % (micro_batch * dp) != 0:
                        continue
                    if not known:
                        known = True
                        offloaded = 0.0
                        for stage in range(stages):
                            stage_rest(
                                rest[stage], stage, lines[at - first_case, x], model, program, case,
                                stack, seq_len, tp, pp, cp, ep, dp * cp,
                            )  # fmt: skip
                            offloaded = max(offloaded, rest[stage, _c.OFFLOADED])
                        time_rest(
                            rest[0], model, program, case, stack, seq_len, gpus_per_node, dp, tp, pp,
                            cp, ep, sp,
                        )  # fmt: skip
                    out = table[found]
                    for stage in range(stages):
                        stage_tokens(
                            out if stage == 0 else spare, rest[stage], stage,
                            lines[at - first_case, x], model, program, case, stack, seq_len,
                            micro_batch * seq_len / cp, global_batch / (micro_batch * dp), tp, pp, cp,
                            ep, sp, gpus > 1,
                        )  # fmt: skip
                        if stage > 0 and spare[_c.DEVICE] > out[_c.DEVICE]:
                            out[_c.DEVICE] = spare[_c.DEVICE]
                            out[_c.ALLOCATED] = spare[_c.ALLOCATED]
                    out[_c.HOST] = gpus_per_node * (stack.process_bytes + offloaded)
                    time_tokens(
                        out, rest[0], model, program, case, stack, seq_len, workloads.vision_flop[w],
                        global_batch, micro_batch, gpus, gpus_per_node, dp, tp, pp, cp, ep,
                    )  # fmt: skip
                    copy_rest(out, rest[0])
                    identity[found, _KNOB] = knob_number(
                        p,
                        workloads.batch_index[b],
                        layout,
                        micro,
                        batches,
                        layout_count,
                        micro_count,
                    )
                    identity[found, _DTYPE] = program.dtype
                    identity[found, _OFFLOAD] = program.offload
                    identity[found, _ATTENTION] = int(stack.attention_kernel)
                    found += 1
    return found


@scalar
def half_dtype(dtype):
    """The dtype of head and adapters beside layers of a dtype: 16 bits where those have fewer."""
    return dtype if dtype <= FULL_DTYPES - 1 else 0


@scalar
def race(out, candidate, dtype, offload, attention, setups, first, last, state):
    """Let one candidate compete on setups [first, last): keep the fastest fit, the nearest miss.

    `state` [5, last - first] holds, by setup: seconds per token of the fastest fit and its number,
    need over limit of the nearest miss, its seconds and its number. The arithmetic is
    `candidate.step_seconds` written out so that the loop vectorises: no call, no branch, only
    selects, and two arrays (numbers as floats) so that overlap is cheap to exclude. What a
    micro-batch and a step spend at one rate, or at none, is added up before the loop: 0.6 to 1 ns a
    scenario less (2026-11-21, on the machine of benchmarks/README.md).
    """
    f_matmul = out[_c.MATMUL_FLOP]
    f_half = max(out[_c.HALF_FLOP], _c.LEAST_FLOP)
    f_attention = out[_c.ATTENTION_FLOP]
    f_memory = out[_c.MEMORY_BYTES]
    host2 = out[_c.HOST_S] * out[_c.HOST_S]
    host4 = host2 * host2
    shard_link = out[_c.SHARD_LINK_BYTES]
    shard_network = out[_c.SHARD_NETWORK_BYTES]
    shard_latency = out[_c.SHARD_LATENCY_S]
    exposed = out[_c.DP_EXPOSED]
    link_bytes = out[_c.TP_LINK_BYTES] + out[_c.RING_LINK_BYTES]
    network_bytes = out[_c.RING_NETWORK_BYTES]
    per_token = 1.0 / out[_c.TOKENS_PER_STEP]
    repeats = out[_c.REPEATS] * per_token
    once_share = out[_c.STEP_EXPOSED] * per_token
    once_link = out[_c.ONCE_LINK_BYTES]
    once_network = out[_c.ONCE_NETWORK_BYTES]
    once_latency = out[_c.ONCE_LATENCY_S]
    optimizer_bytes = out[_c.OPTIMIZER_BYTES] * per_token
    pcie_bytes = repeats * out[_c.FETCH_PCIE_BYTES] + out[_c.TRANSFER_PCIE_BYTES] * per_token
    fixed_s = repeats * (out[_c.LATENCY_S] + out[_c.FETCH_S]) + out[_c.OPTIMIZER_S] * per_token
    device = out[_c.DEVICE]
    host = out[_c.HOST]
    number = float(candidate)
    matmul_s = setups[MATMUL_BF16_S + dtype, first:last]
    half_s = setups[MATMUL_BF16_S + half_dtype(dtype), first:last]
    attention_s = setups[ATTENTION_S + attention, first:last]
    memory_s = setups[MEMORY_S, first:last]
    link_s = setups[LINK_S, first:last]
    network_s = setups[NETWORK_S, first:last]
    pcie_s = setups[PCIE_S, first:last]
    device_limits = setups[DEVICE_LIMIT, first:last]
    device_inverse = setups[DEVICE_INVERSE, first:last]
    offloads = 1 if offload != 0 else 0
    host_limits = setups[HOST_LIMIT + offloads, first:last]
    host_inverse = setups[HOST_INVERSE + offloads, first:last]
    fastest_s = state[0]
    fastest = state[1]
    miss_ratio = state[2]
    miss_s = state[3]
    miss = state[4]
    for j in range(last - first):
        link = link_s[j]
        network = network_s[j]
        memory = memory_s[j]
        pcie = pcie_s[j]
        compute = (
            f_matmul * matmul_s[j]
            + f_half * half_s[j]
            + f_attention * attention_s[j]
            + f_memory * memory
        )
        inside = shard_link * link
        between = shard_network * network
        shard = (inside if inside > between else between) + shard_latency
        inside = once_link * link
        between = once_network * network
        once = (inside if inside > between else between) + once_latency
        compute2 = compute * compute
        shard2 = shard * shard
        micro = (
            math.sqrt(math.sqrt(compute2 * compute2 + host4 + shard2 * shard2))
            + exposed * shard
            + link_bytes * link
            + network_bytes * network
        )
        seconds = (
            repeats * micro
            + once_share * once
            + optimizer_bytes * memory
            + pcie_bytes * pcie
            + fixed_s
        )
        held_s = fastest_s[j]
        held = fastest[j]
        better = (device <= device_limits[j]) & (host <= host_limits[j]) & (seconds < held_s)
        fastest_s[j] = seconds if better else held_s
        fastest[j] = number if better else held
        need = device * device_inverse[j]
        host_need = host * host_inverse[j]
        ratio = need if need > host_need else host_need
        ratio = ratio if seconds < math.inf else _NEVER
        held_ratio = miss_ratio[j]
        held_s = miss_s[j]
        held = miss[j]
        nearer = ratio < held_ratio
        miss_ratio[j] = ratio if nearer else held_ratio
        miss_s[j] = seconds if nearer else held_s
        miss[j] = number if nearer else held


@scalar
def write_row(row, out, knob, verdict, seconds, verdicts, knobs, measures):
    """Write one kept scenario; times and bytes of an unsupported one are those it would need, time 0."""
    verdicts[row] = verdict
    knobs[row] = knob
    measures[row, SECONDS_PER_TOKEN] = seconds
    measures[row, ALLOCATED] = out[_c.ALLOCATED]
    measures[row, DEVICE] = out[_c.DEVICE]
    measures[row, HOST] = out[_c.HOST]
    measures[row, NETWORK_PER_TOKEN] = out[_NETWORK] / out[_c.TOKENS_PER_STEP]


@scalar
def scratch(first, last, workloads, splits, forms, candidate_counts):
    """Working arrays of one block: candidate table, identities, layer lines and which are there."""
    most_cases = 1
    for w in range(first, last):
        most_cases = max(most_cases, workloads.last_case[w] - workloads.first_case[w])
    most = max(1, candidate_counts.max())
    rows = 2 + 2 * forms.backward.shape[1]
    table = np.empty((most, ROOM))
    identity = np.empty((most, IDENTITY), np.int64)
    lines = np.empty((most_cases, splits.tp.shape[0], rows, 6))
    lines_known = np.zeros((most_cases, splits.tp.shape[0]), np.int64)
    return table, identity, lines, lines_known


@kernel
def decide_best(first, last, workloads, choices, layouts, splits, models, features, forms, programs,
                cases, stacks, setups, classes, batches, candidate_counts, verdicts, knobs,
                measures):  # fmt: skip
    """Decide workloads [first, last) on every setup: one row a pair, workload by workload.

    Fills verdicts u8, knobs i64 and measures f64 [rows, MEASURES] of (last - first) x J rows; the
    row of a pair is its fastest fitting candidate, or its nearest miss. A pair without candidates
    gets the knob -1 and the verdict no_layout. `candidate_counts` i64 [last - first, K] sizes the
    working table: knob combinations of each workload on a class.
    """
    setup_count = setups.shape[1]
    most = 1
    for k in range(classes.first.shape[0]):
        most = max(most, classes.last[k] - classes.first[k])
    state = np.empty((5, most))
    table, identity, lines, lines_known = scratch(
        first, last, workloads, splits, forms, candidate_counts
    )
    for w in range(first, last):
        lines_known[:] = 0
        for k in range(classes.first.shape[0]):
            lo = classes.first[k]
            hi = classes.last[k]
            found = fill_candidates(
                w, k, workloads, choices, layouts, splits, models, features, forms, programs, cases, stacks,
                classes, batches, lines, lines_known, table, identity,
            )  # fmt: skip
            size = hi - lo
            state[0, :size] = math.inf
            state[1, :size] = -1.0
            state[2, :size] = math.inf
            state[3, :size] = 0.0
            state[4, :size] = -1.0
            for candidate in range(found):
                race(
                    table[candidate], candidate, identity[candidate, _DTYPE],
                    identity[candidate, _OFFLOAD], identity[candidate, _ATTENTION], setups, lo, hi,
                    state,
                )  # fmt: skip
            for j in range(hi - lo):
                row = (w - first) * setup_count + lo + j
                if found == 0:
                    verdicts[row] = _NO_LAYOUT
                    knobs[row] = -1
                    measures[row, :] = 0.0
                elif state[1, j] >= 0.0:
                    chosen = int(state[1, j])
                    write_row(
                        row, table[chosen], identity[chosen, _KNOB], _FITS, state[0, j], verdicts,
                        knobs, measures,
                    )  # fmt: skip
                else:
                    # Without a miss in reach nothing was supported: the first candidate stands in.
                    chosen = max(0, int(state[4, j]))
                    verdict = _UNSUPPORTED
                    seconds = 0.0
                    if state[2, j] < _NEVER:
                        over = table[chosen, _c.DEVICE] > setups[DEVICE_LIMIT, lo + j]
                        verdict = _GPU if over else _HOST
                        seconds = state[3, j]
                    write_row(
                        row, table[chosen], identity[chosen, _KNOB], verdict, seconds, verdicts,
                        knobs, measures,
                    )  # fmt: skip


@scalar
def seconds_per_token(out, dtype, attention, setups, i):
    """Step time over the tokens of a step on setup i [s/token]: the plain form of `race` and `every`."""
    seconds = _c.step_seconds(
        out,
        setups[MATMUL_BF16_S + dtype, i],
        setups[MATMUL_BF16_S + half_dtype(dtype), i],
        setups[ATTENTION_S + attention, i],
        setups[MEMORY_S, i],
        setups[LINK_S, i],
        setups[NETWORK_S, i],
        setups[PCIE_S, i],
    )
    return seconds / out[_c.TOKENS_PER_STEP]


@scalar
def memory_verdict(out, offload, setups, i):
    """Whether a candidate fits the GPUs and the hosts of setup i, and what is too small if not.

    The plain form of what `race` and `every` decide in their loops.
    """
    if out[_c.DEVICE] > setups[DEVICE_LIMIT, i]:
        return _GPU
    limit = setups[OFFLOAD_LIMIT, i] if offload != 0 else setups[HOST_LIMIT, i]
    return _HOST if out[_c.HOST] > limit else _FITS
