"""The best of each pair, without evaluating in full what cannot be it: what `decide_best` decides.

Three things that `decide.decide_best` does not know make the difference, and none changes a bit of the
result (tests/test_best.py compares the two):

- setups of a class that differ in host RAM alone take the same time: one race for all (`Kinds`);
- a candidate that needs more than any setup of the class has can only be a nearest miss: it has no
  time to compute and no race to run;
- of the misses at one dtype, one that needs no less of GPU and host than an earlier one is no nearer
  on any setup: need over limit is rounded, and rounding keeps the order. Few are left to compare.
"""

from __future__ import annotations

import math

import numpy as np

from sweep.kernels import candidate as _c
from sweep.kernels.candidate import evaluate, layer_lines, memory_terms, time_terms
from sweep.kernels.compile import kernel, scalar
from sweep.kernels.decide import (
    ALLOCATED,
    DEVICE,
    HOST,
    MEASURES,
    NETWORK_PER_TOKEN,
    SECONDS_PER_TOKEN,
    half_dtype,
    knob_number,
    race,
)
from sweep.kernels.tables import (
    ATTENTION_S,
    DEVICE_INVERSE,
    DEVICE_LIMIT,
    HOST_INVERSE,
    HOST_LIMIT,
    LINK_S,
    MATMUL_BF16_S,
    MEMORY_S,
    NETWORK_S,
    PCIE_S,
    ROOM,
    Quantity,
    Verdict,
)

_FITS, _GPU, _HOST, _UNSUPPORTED, _NO_LAYOUT = (int(verdict) for verdict in Verdict)
_NETWORK = int(Quantity.NETWORK_BYTES_PER_STEP)
# What finds a candidate again, and how its miss is judged.
_CASE, _BATCH, _LAYOUT, _MICRO, _NUMBER, _DTYPE, _OFFLOADS = range(7)
_MISS = 7


@scalar
def race_fits(out, number, dtype, attention, rates, first, last, fastest_s, fastest):
    """Let a candidate that fits compete on columns [first, last) of the rates: keep the fastest.

    `decide.race` without misses and limits; the same arithmetic, operation by operation.
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
    matmul_s = rates[MATMUL_BF16_S + dtype, first:last]
    half_s = rates[MATMUL_BF16_S + half_dtype(dtype), first:last]
    attention_s = rates[ATTENTION_S + attention, first:last]
    memory_s = rates[MEMORY_S, first:last]
    link_s = rates[LINK_S, first:last]
    network_s = rates[NETWORK_S, first:last]
    pcie_s = rates[PCIE_S, first:last]
    for j in range(last - first):
        link = link_s[j]
        network = network_s[j]
        memory = memory_s[j]
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
            + pcie_bytes * pcie_s[j]
            + fixed_s
        )
        held_s = fastest_s[j]
        held = fastest[j]
        better = seconds < held_s
        fastest_s[j] = seconds if better else held_s
        fastest[j] = number if better else held


@scalar
def outdone(misses, needs, count, dtype, offloads, device, host):
    """Whether an earlier miss at the same dtype needs no more of either memory."""
    for i in range(count - 1, -1, -1):
        if (
            needs[i, 0] <= device
            and needs[i, 1] <= host
            and misses[i, _DTYPE] == dtype
            and misses[i, _OFFLOADS] == offloads
        ):
            return True
    return False


@scalar
def race_class(w, k, workloads, choices, layouts, models, features, forms, programs, cases, stacks,
               setups, classes, batches, kinds, lines, lines_known, out, spare, fits, fit_knobs,
               misses, needs, fastest_s, fastest, alone_s, alone):  # fmt: skip
    """Race the candidates of workload w on class k; returns how many fit somewhere, and misses kept.

    Those that fit somewhere leave their measures in fits [N, MEASURES] and fit_knobs. What is fastest
    is kept by kind in fastest_s and fastest [kinds], and for candidates that fit the hosts of some
    setups only, by setup in alone_s and alone [setups]. misses i64 [N, 7] and needs [N, 2] (bytes of
    GPU and host) take those that may be nearest, in knob order.
    """
    m = workloads.model[w]
    model = models[m]
    seq_len = workloads.seq_len[w]
    gpus = classes.gpus[k]
    gpus_per_node = classes.gpus_per_node[k]
    layout_count = layouts.tp.shape[0]
    micro_count = choices.micro_batches.shape[0]
    first_case = workloads.first_case[w]
    lo = classes.first[k]
    hi = classes.last[k]
    first_kind = kinds.first[k]
    device_limits = kinds.rates[DEVICE_LIMIT, first_kind : kinds.last[k]]
    number = 0
    fit_count = 0
    miss_count = 0
    for at in range(first_case, workloads.last_case[w]):
        case = cases[workloads.case_list[at]]
        p = case.program
        program = programs[p]
        stack = stacks[program.stack]
        dtype = program.dtype
        attention = int(stack.attention_kernel)
        offloads = 1 if program.offload != 0 else 0
        rule = choices.rule[p]
        for b in range(workloads.first_batch[w], workloads.last_batch[w]):
            global_batch = workloads.batch_list[b]
            for y in range(
                choices.first[workloads.signature[w], k, rule],
                choices.last[workloads.signature[w], k, rule],
            ):
                layout = choices.layout_list[y]
                tp = layouts.tp[layout]
                pp = layouts.pp[layout]
                cp = layouts.cp[layout]
                ep = layouts.ep[layout]
                sp = layouts.sequence_parallel[layout]
                x = layouts.split[layout]
                dp = gpus // (tp * pp * cp)
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
                    memory_terms(
                        out, spare, lines[at - first_case, x], model, program, case, stack, seq_len,
                        global_batch, micro_batch, gpus, gpus_per_node, dp, tp, pp, cp, ep, sp,
                    )  # fmt: skip
                    device = out[_c.DEVICE]
                    host = out[_c.HOST]
                    if not outdone(misses, needs, miss_count, dtype, offloads, device, host):
                        needs[miss_count, 0] = device
                        needs[miss_count, 1] = host
                        misses[miss_count, _CASE] = at
                        misses[miss_count, _BATCH] = b
                        misses[miss_count, _LAYOUT] = y
                        misses[miss_count, _MICRO] = micro
                        misses[miss_count, _NUMBER] = number
                        misses[miss_count, _DTYPE] = dtype
                        misses[miss_count, _OFFLOADS] = offloads
                        miss_count += 1
                    number += 1
                    if device > device_limits[0] or host > kinds.most_host[k, offloads]:
                        continue
                    time_terms(
                        out, model, program, case, stack, seq_len, workloads.vision_flop[w],
                        global_batch, micro_batch, gpus, gpus_per_node, dp, tp, pp, cp, ep, sp,
                    )  # fmt: skip
                    fit_knobs[fit_count] = knob_number(
                        p, workloads.batch_index[b], layout, micro, batches, layout_count,
                        micro_count,
                    )  # fmt: skip
                    fill_measures(fits, fit_count, out, 0.0)
                    between = (
                        out[_c.SHARD_NETWORK_BYTES]
                        + out[_c.ONCE_NETWORK_BYTES]
                        + out[_c.RING_NETWORK_BYTES]
                    )
                    within = (
                        out[_c.SHARD_LINK_BYTES]
                        + out[_c.ONCE_LINK_BYTES]
                        + out[_c.TP_LINK_BYTES]
                        + out[_c.RING_LINK_BYTES]
                    )
                    # The second half never holds: what kinds leave out is sent nothing.
                    if host <= kinds.least_host[k, offloads] and not (
                        (between > 0.0 and gpus <= gpus_per_node) or (within > 0.0 and gpus == 1)
                    ):
                        reach = device_limits.shape[0]
                        while device > device_limits[reach - 1]:
                            reach -= 1
                        race_fits(
                            out, float(fit_count), dtype, attention, kinds.rates, first_kind,
                            first_kind + reach, fastest_s, fastest,
                        )  # fmt: skip
                    else:
                        for i in range(lo, hi):
                            if (
                                device <= setups[DEVICE_LIMIT, i]
                                and host <= setups[HOST_LIMIT + offloads, i]
                            ):
                                race_fits(
                                    out, float(fit_count), dtype, attention, setups, i, i + 1,
                                    alone_s[i - lo : i - lo + 1], alone[i - lo : i - lo + 1],
                                )  # fmt: skip
                    fit_count += 1
    return fit_count, miss_count


@scalar
def fill_measures(measures, row, out, seconds):
    """Write the measures of one candidate."""
    measures[row, SECONDS_PER_TOKEN] = seconds
    measures[row, ALLOCATED] = out[_c.ALLOCATED]
    measures[row, DEVICE] = out[_c.DEVICE]
    measures[row, HOST] = out[_c.HOST]
    measures[row, NETWORK_PER_TOKEN] = out[_NETWORK] / out[_c.TOKENS_PER_STEP]


@scalar
def nearest_miss(setups, i, misses, needs, count):
    """The miss whose largest need over limit is least on setup i, the first of equals; or -1."""
    nearest = -1
    least = math.inf
    for c in range(count):
        dtype = misses[c, _DTYPE]
        if (
            setups[MATMUL_BF16_S + dtype, i] == math.inf
            or setups[MATMUL_BF16_S + half_dtype(dtype), i] == math.inf
        ):
            continue
        need = needs[c, 0] * setups[DEVICE_INVERSE, i]
        host_need = needs[c, 1] * setups[HOST_INVERSE + misses[c, _OFFLOADS], i]
        ratio = need if need > host_need else host_need
        if ratio < least:
            least = ratio
            nearest = c
    return nearest


@scalar
def evaluate_miss(out, spare, w, k, miss, workloads, choices, layouts, models, programs, cases, stacks,
                  classes, batches, lines):  # fmt: skip
    """Evaluate a miss in full; returns its knob and its attention kernel."""
    at = miss[_CASE]
    b = miss[_BATCH]
    micro = miss[_MICRO]
    layout = choices.layout_list[miss[_LAYOUT]]
    case = cases[workloads.case_list[at]]
    p = case.program
    program = programs[p]
    stack = stacks[program.stack]
    tp = layouts.tp[layout]
    pp = layouts.pp[layout]
    cp = layouts.cp[layout]
    gpus = classes.gpus[k]
    evaluate(
        out, spare, lines[at - workloads.first_case[w], layouts.split[layout]],
        models[workloads.model[w]], program, case, stack, workloads.seq_len[w],
        workloads.vision_flop[w], workloads.batch_list[b], choices.micro_batches[micro], gpus,
        classes.gpus_per_node[k], gpus // (tp * pp * cp), tp, pp, cp, layouts.ep[layout],
        layouts.sequence_parallel[layout],
    )  # fmt: skip
    knob = knob_number(
        p, workloads.batch_index[b], layout, micro, batches, layouts.tp.shape[0],
        choices.micro_batches.shape[0],
    )  # fmt: skip
    return knob, int(stack.attention_kernel)


@kernel
def choose_best(first, last, workloads, choices, layouts, splits, models, features, forms, programs,
                cases, stacks, setups, classes, batches, kinds, candidate_counts, verdicts, knobs,
                measures):  # fmt: skip
    """Decide workloads [first, last) on every setup: fills what `decide.decide_best` fills.

    Verdicts u8, knobs i64 and measures f64 [rows, MEASURES] of (last - first) x J rows.
    """
    setup_count = setups.shape[1]
    most = max(1, candidate_counts.max())
    most_cases = 1
    for w in range(first, last):
        most_cases = max(most_cases, workloads.last_case[w] - workloads.first_case[w])
    lines = np.empty((most_cases, splits.tp.shape[0], 2 + 2 * forms.backward.shape[1], 6))
    lines_known = np.zeros((most_cases, splits.tp.shape[0]), np.int64)
    out = np.zeros(ROOM)
    spare = np.zeros(ROOM)
    fits = np.empty((most, MEASURES))
    fit_knobs = np.empty(most, np.int64)
    misses = np.empty((most, _MISS), np.int64)
    needs = np.empty((most, 2))
    missed = np.empty((most, ROOM))
    missed_knob = np.empty(most, np.int64)
    missed_attention = np.empty(most, np.int64)
    fastest_s = np.empty(setup_count)
    fastest = np.empty(setup_count)
    alone_s = np.empty(setup_count)
    alone = np.empty(setup_count)
    state = np.empty((5, 1))
    for w in range(first, last):
        lines_known[:] = 0
        for k in range(classes.first.shape[0]):
            lo = classes.first[k]
            hi = classes.last[k]
            fastest_s[:] = math.inf
            fastest[:] = -1.0
            alone_s[: hi - lo] = math.inf
            alone[: hi - lo] = -1.0
            _, miss_count = race_class(
                w, k, workloads, choices, layouts, models, features, forms, programs, cases, stacks,
                setups, classes, batches, kinds, lines, lines_known, out, spare, fits, fit_knobs,
                misses, needs, fastest_s, fastest, alone_s, alone,
            )  # fmt: skip
            missed_knob[:miss_count] = -1
            for i in range(lo, hi):
                row = (w - first) * setup_count + i
                if miss_count == 0:
                    verdicts[row] = _NO_LAYOUT
                    knobs[row] = -1
                    measures[row, :] = 0.0
                    continue
                kind = kinds.of_setup[i] - kinds.first[k]
                seconds = fastest_s[kind]
                chosen = int(fastest[kind])
                if alone[i - lo] >= 0.0 and (
                    alone_s[i - lo] < seconds
                    or (alone_s[i - lo] == seconds and alone[i - lo] < fastest[kind])
                ):
                    seconds = alone_s[i - lo]
                    chosen = int(alone[i - lo])
                if chosen >= 0:
                    verdicts[row] = _FITS
                    knobs[row] = fit_knobs[chosen]
                    measures[row, :] = fits[chosen]
                    measures[row, SECONDS_PER_TOKEN] = seconds
                    continue
                nearest = nearest_miss(setups, i, misses, needs, miss_count)
                # Without a miss in reach nothing was supported: the first candidate stands in.
                c = max(0, nearest)
                if missed_knob[c] < 0:
                    missed_knob[c], missed_attention[c] = evaluate_miss(
                        missed[c], spare, w, k, misses[c], workloads, choices, layouts, models,
                        programs, cases, stacks, classes, batches, lines,
                    )  # fmt: skip
                verdict = _UNSUPPORTED
                seconds = 0.0
                if nearest >= 0:
                    verdict = _GPU if missed[c, _c.DEVICE] > setups[DEVICE_LIMIT, i] else _HOST
                    state[0] = math.inf
                    state[2] = math.inf
                    race(
                        missed[c], c, misses[c, _DTYPE], misses[c, _OFFLOADS], missed_attention[c],
                        setups, i, i + 1, state,
                    )  # fmt: skip
                    seconds = state[3, 0]
                verdicts[row] = verdict
                knobs[row] = missed_knob[c]
                fill_measures(measures, row, missed[c], seconds)
    return 0
