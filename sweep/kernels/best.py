"""The best of each pair, without evaluating in full what cannot be it: what `decide_best` decides.

Four things that `decide.decide_best` does not know make the difference, and none changes a bit of the
result (tests/test_best.py compares the two):

- setups of a class that differ in host RAM alone take the same time: one race for all (`Kinds`);
- a candidate that needs more than any setup of the class has can only be a nearest miss: it has no
  time to compute and no race to run;
- what recomputes more than a case that fits the same setups is no faster (`Kinds.rival`);
- of the misses at one dtype, one that needs no less of GPU and host than an earlier one is no nearer
  on any setup: need over limit is rounded, and rounding keeps the order. Few are left to compare.
"""

from __future__ import annotations

import math

import numpy as np

from sweep.kernels import candidate as _c
from sweep.kernels.candidate import layer_lines, stages_tried, time_rest, time_tokens
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
)
from sweep.kernels.memory import P_STEP, stage_device, stage_rest, stage_tokens
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
# What identifies a miss.
_KNOB, _DTYPE, _OFFLOADS, _ATTENTION = range(4)


@scalar
def race_fits(out, rest, number, dtype, attention, rates, first, last, fastest_s, fastest):
    """Let a candidate that fits compete on columns [first, last) of the rates: keep the fastest.

    `decide.race` without misses and limits; the same arithmetic, operation by operation.
    `rest` has what does not depend on the micro-batch.
    """
    f_matmul = out[_c.MATMUL_FLOP]
    f_half = max(out[_c.HALF_FLOP], _c.LEAST_FLOP)
    f_attention = out[_c.ATTENTION_FLOP]
    f_memory = out[_c.MEMORY_BYTES]
    host2 = rest[_c.HOST_S] * rest[_c.HOST_S]
    host4 = host2 * host2
    shard_link = rest[_c.SHARD_LINK_BYTES]
    shard_network = rest[_c.SHARD_NETWORK_BYTES]
    shard_latency = rest[_c.SHARD_LATENCY_S]
    exposed = rest[_c.DP_EXPOSED]
    link_bytes = out[_c.TP_LINK_BYTES] + out[_c.RING_LINK_BYTES]
    network_bytes = out[_c.RING_NETWORK_BYTES]
    per_token = 1.0 / out[_c.TOKENS_PER_STEP]
    repeats = out[_c.REPEATS] * per_token
    once_share = rest[_c.STEP_EXPOSED] * per_token
    once_link = rest[_c.ONCE_LINK_BYTES]
    once_network = rest[_c.ONCE_NETWORK_BYTES]
    once_latency = rest[_c.ONCE_LATENCY_S]
    optimizer_bytes = rest[_c.OPTIMIZER_BYTES] * per_token
    pcie_bytes = repeats * rest[_c.FETCH_PCIE_BYTES] + rest[_c.TRANSFER_PCIE_BYTES] * per_token
    fixed_s = repeats * (rest[_c.LATENCY_S] + rest[_c.FETCH_S]) + rest[_c.OPTIMIZER_S] * per_token
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
               setups, classes, batches, kinds, lines, lines_known, out, rest, fits, fit_knobs,
               misses, needs, missed, fastest_s, fastest, alone_s, alone, reaches):  # fmt: skip
    """Race the candidates of workload w on class k; returns how many fit somewhere, and misses kept.

    Those that fit somewhere leave their measures in fits [N, MEASURES] and fit_knobs. What is fastest
    is kept by kind in fastest_s and fastest [kinds], and for candidates that fit the hosts of some
    setups only, by setup in alone_s and alone [setups]. reaches [cases, batches, layouts, micro-batches]
    is room for how many kinds of the class each fits. misses i64 [N, 4] and needs [N, 2] (bytes of
    GPU and host) take those that may be nearest, in knob order, missed [N, 2, ROOM] their quantities.
    """
    m = workloads.model[w]
    model = models[m]
    seq_len = workloads.seq_len[w]
    gpus = classes.gpus[k]
    gpus_per_node = classes.gpus_per_node[k]
    layout_count = layouts.tp.shape[0]
    micro_count = choices.micro_batches.shape[0]
    first_case = workloads.first_case[w]
    first_batch = workloads.first_batch[w]
    host = 0.0
    host_fits = True
    lo = classes.first[k]
    hi = classes.last[k]
    first_kind = kinds.first[k]
    device_limits = kinds.rates[DEVICE_LIMIT, first_kind : kinds.last[k]]
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
        rival = kinds.rival[at]
        first_layout = choices.first[workloads.signature[w], k, rule]
        for b in range(workloads.first_batch[w], workloads.last_batch[w]):
            global_batch = workloads.batch_list[b]
            for y in range(
                first_layout,
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
                stages = stages_tried(model, pp)
                if lines_known[at - first_case, x] == 0:
                    layer_lines(
                        lines[at - first_case, x], model, features[m], forms, case,
                        program.lora_rank, seq_len, tp, tp, ep, sp,
                    )  # fmt: skip
                    lines_known[at - first_case, x] = 1
                known = False
                timed = False
                place = y - first_layout
                for micro in range(micro_count):
                    reaches[at - first_case, b - first_batch, place, micro] = 0
                # Of one layout, more sequences need more memory while as many micro-batches are in
                # flight: none further fits, nor is it nearer.
                too_large = False
                most_in_flight = max(2, pp)
                for micro in range(workloads.first_micro[w], workloads.last_micro[w]):
                    micro_batch = choices.micro_batches[micro]
                    if global_batch % (micro_batch * dp) != 0:
                        continue
                    if not known:
                        known = True
                        offloaded = 0.0
                        least = 0.0
                        for stage in range(stages):
                            stage_rest(
                                rest[stage], stage, lines[at - first_case, x], model, program, case,
                                stack, seq_len, tp, pp, cp, ep, dp * cp,
                            )  # fmt: skip
                            offloaded = max(offloaded, rest[stage, _c.OFFLOADED])
                            least = max(
                                least,
                                stage_device(rest[stage, P_STEP], 0.0, program, stack, gpus > 1),
                            )
                        host = gpus_per_node * (stack.process_bytes + offloaded)
                        host_fits = host <= kinds.most_host[k, offloads]
                        if (least > device_limits[0] or not host_fits) and outdone(
                            misses, needs, miss_count, dtype, offloads, least, host
                        ):
                            break
                    accumulation = global_batch / (micro_batch * dp)
                    if too_large and accumulation >= most_in_flight:
                        continue
                    tokens = micro_batch * seq_len / cp
                    allocated = 0.0
                    device = 0.0
                    for stage in range(stages):
                        stage_tokens(
                            out, rest[stage], stage, lines[at - first_case, x], model, program, case,
                            stack, seq_len, tokens, accumulation, tp, pp, cp, ep, sp, gpus > 1,
                        )  # fmt: skip
                        if stage == 0 or out[_c.DEVICE] > device:
                            device = out[_c.DEVICE]
                            allocated = out[_c.ALLOCATED]
                    near = not outdone(misses, needs, miss_count, dtype, offloads, device, host)
                    too_large = device > device_limits[0] or not host_fits
                    if too_large and not near:
                        continue
                    reach = 0
                    raced = 0
                    if not too_large and host <= kinds.least_host[k, offloads]:
                        reach = device_limits.shape[0]
                        while device > device_limits[reach - 1]:
                            reach -= 1
                        reaches[at - first_case, b - first_batch, place, micro] = reach
                        if rival >= 0:
                            raced = reaches[rival, b - first_batch, place, micro]
                        if raced >= reach and not near:
                            continue
                    if not timed:
                        timed = True
                        time_rest(
                            rest[0], model, program, case, stack, seq_len, gpus_per_node, dp, tp, pp,
                            cp, ep, sp,
                        )  # fmt: skip
                    time_tokens(
                        out, rest[0], model, program, case, stack, seq_len, workloads.vision_flop[w],
                        global_batch, micro_batch, gpus, gpus_per_node, dp, tp, pp, cp, ep,
                    )  # fmt: skip
                    out[_c.ALLOCATED] = allocated
                    out[_c.DEVICE] = device
                    out[_c.HOST] = host
                    knob = knob_number(
                        p, workloads.batch_index[b], layout, micro, batches, layout_count,
                        micro_count,
                    )  # fmt: skip
                    if near:
                        needs[miss_count, 0] = device
                        needs[miss_count, 1] = host
                        misses[miss_count, _KNOB] = knob
                        misses[miss_count, _DTYPE] = dtype
                        misses[miss_count, _OFFLOADS] = offloads
                        misses[miss_count, _ATTENTION] = attention
                        for i in range(ROOM):
                            missed[miss_count, 0, i] = out[i]
                            missed[miss_count, 1, i] = rest[0, i]
                        miss_count += 1
                    if too_large:
                        continue
                    fit_knobs[fit_count] = knob
                    fill_measures(fits, fit_count, out, 0.0)
                    between = (
                        rest[0, _c.SHARD_NETWORK_BYTES]
                        + rest[0, _c.ONCE_NETWORK_BYTES]
                        + out[_c.RING_NETWORK_BYTES]
                    )
                    within = (
                        rest[0, _c.SHARD_LINK_BYTES]
                        + rest[0, _c.ONCE_LINK_BYTES]
                        + out[_c.TP_LINK_BYTES]
                        + out[_c.RING_LINK_BYTES]
                    )
                    # The second half never holds: what kinds leave out is sent nothing.
                    if reach > 0 and not (
                        (between > 0.0 and gpus <= gpus_per_node) or (within > 0.0 and gpus == 1)
                    ):
                        if raced < reach:
                            race_fits(
                                out, rest[0], float(fit_count), dtype, attention, kinds.rates,
                                first_kind + raced, first_kind + reach, fastest_s[raced:reach],
                                fastest[raced:reach],
                            )  # fmt: skip
                    else:
                        for i in range(lo, hi):
                            if (
                                device <= setups[DEVICE_LIMIT, i]
                                and host <= setups[HOST_LIMIT + offloads, i]
                            ):
                                race_fits(
                                    out, rest[0], float(fit_count), dtype, attention, setups, i,
                                    i + 1, alone_s[i - lo : i - lo + 1], alone[i - lo : i - lo + 1],
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


@kernel
def choose_best(first, last, workloads, choices, layouts, splits, models, features, forms, programs,
                cases, stacks, setups, classes, batches, kinds, candidate_counts, verdicts, knobs,
                measures):  # fmt: skip
    """Decide workloads [first, last) on every setup: fills what `decide.decide_best` fills.

    Verdicts u8, knobs i64 and measures f64 [rows, MEASURES] of (last - first) x J rows.
    """
    setup_count = setups.shape[1]
    most = 1
    for w in range(first, last):
        for k in range(classes.first.shape[0]):
            most = max(most, candidate_counts[w - first, k])
    most_cases = 1
    most_batches = 1
    for w in range(first, last):
        most_cases = max(most_cases, workloads.last_case[w] - workloads.first_case[w])
        most_batches = max(most_batches, workloads.last_batch[w] - workloads.first_batch[w])
    lines = np.empty((most_cases, splits.tp.shape[0], 2 + 2 * forms.backward.shape[1], 6))
    lines_known = np.zeros((most_cases, splits.tp.shape[0]), np.int64)
    out = np.zeros(ROOM)
    rest = np.zeros((3, ROOM))
    fits = np.empty((most, MEASURES))
    fit_knobs = np.empty(most, np.int64)
    misses = np.empty((most, 4), np.int64)
    needs = np.empty((most, 2))
    missed = np.empty((most, 2, ROOM))
    fastest_s = np.empty(setup_count)
    fastest = np.empty(setup_count)
    alone_s = np.empty(setup_count)
    alone = np.empty(setup_count)
    most_layouts = layouts.tp.shape[0]
    reaches = np.zeros(
        (most_cases, most_batches, most_layouts, choices.micro_batches.shape[0]), np.int64
    )
    miss_s = np.empty(1)
    miss_number = np.empty(1)
    for w in range(first, last):
        lines_known[:] = 0
        for k in range(classes.first.shape[0]):
            lo = classes.first[k]
            hi = classes.last[k]
            kind_count = kinds.last[k] - kinds.first[k]
            for kind in range(kind_count):
                fastest_s[kind] = math.inf
                fastest[kind] = -1.0
            for i in range(hi - lo):
                alone_s[i] = math.inf
                alone[i] = -1.0
            _, miss_count = race_class(
                w, k, workloads, choices, layouts, models, features, forms, programs, cases, stacks,
                setups, classes, batches, kinds, lines, lines_known, out, rest, fits, fit_knobs,
                misses, needs, missed, fastest_s, fastest, alone_s, alone, reaches,
            )  # fmt: skip
            for i in range(lo, hi):
                row = (w - first) * setup_count + i
                if miss_count == 0:
                    verdicts[row] = _NO_LAYOUT
                    knobs[row] = -1
                    for column in range(MEASURES):
                        measures[row, column] = 0.0
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
                    for column in range(MEASURES):
                        measures[row, column] = fits[chosen, column]
                    measures[row, SECONDS_PER_TOKEN] = seconds
                    continue
                nearest = nearest_miss(setups, i, misses, needs, miss_count)
                # Without a miss in reach nothing was supported: the first candidate stands in.
                c = max(0, nearest)
                verdict = _UNSUPPORTED
                seconds = 0.0
                if nearest >= 0:
                    verdict = _GPU if needs[c, 0] > setups[DEVICE_LIMIT, i] else _HOST
                    miss_s[0] = math.inf
                    race_fits(
                        missed[c, 0], missed[c, 1], 0.0, misses[c, _DTYPE], misses[c, _ATTENTION],
                        setups, i, i + 1, miss_s, miss_number,
                    )  # fmt: skip
                    seconds = miss_s[0]
                verdicts[row] = verdict
                knobs[row] = misses[c, _KNOB]
                fill_measures(measures, row, missed[c, 0], seconds)
