"""The loop that writes every scenario: candidates side by side, setup by setup, in the columns of the facts."""

from __future__ import annotations

import math

import numpy as np

from sweep.kernels import candidate as _c
from sweep.kernels.compile import kernel, scalar
from sweep.kernels.decide import fill_candidates, half_dtype, scratch
from sweep.kernels.tables import (
    ATTENTION_S,
    DEVICE_LIMIT,
    HOST_LIMIT,
    LINK_S,
    MATMUL_BF16_S,
    MEMORY_S,
    NETWORK_S,
    PCIE_S,
    Quantity,
    Verdict,
)

_FITS, _GPU, _HOST, _UNSUPPORTED, _NO_LAYOUT = (int(verdict) for verdict in Verdict)
_KNOB, _DTYPE, _OFFLOAD, _ATTENTION = range(4)
_NETWORK = int(Quantity.NETWORK_BYTES_PER_STEP)
# What a step's time and a verdict are made of, in the rows of the candidates' terms.
(
    _MATMUL, _HALF, _ATTENTION_WORK, _MEMORY, _SHARD_LINK, _SHARD_NETWORK, _SHARD_LATENCY, _ONCE_LINK,
    _ONCE_NETWORK, _ONCE_LATENCY, _HOST_S, _EXPOSED, _LINK, _RING, _LATENCY, _FETCH_PCIE, _FETCH_S,
    _REPEATS, _ONCE_SHARE, _OPTIMIZER, _TRANSFER, _OPTIMIZER_S, _TOKENS, _DEVICE_NEED, _HOST_NEED,
) = range(25)  # fmt: skip
TERMS = 25


@scalar
def turn(table, found, terms):
    """Put the candidates' quantities [found, QUANTITIES] side by side: terms [TERMS, found]."""
    for n in range(found):
        out = table[n]
        terms[_MATMUL, n] = out[_c.MATMUL_FLOP]
        terms[_HALF, n] = max(out[_c.HALF_FLOP], _c.LEAST_FLOP)
        terms[_ATTENTION_WORK, n] = out[_c.ATTENTION_FLOP]
        terms[_MEMORY, n] = out[_c.MEMORY_BYTES]
        terms[_SHARD_LINK, n] = out[_c.SHARD_LINK_BYTES]
        terms[_SHARD_NETWORK, n] = out[_c.SHARD_NETWORK_BYTES]
        terms[_SHARD_LATENCY, n] = out[_c.SHARD_LATENCY_S]
        terms[_ONCE_LINK, n] = out[_c.ONCE_LINK_BYTES]
        terms[_ONCE_NETWORK, n] = out[_c.ONCE_NETWORK_BYTES]
        terms[_ONCE_LATENCY, n] = out[_c.ONCE_LATENCY_S]
        terms[_HOST_S, n] = out[_c.HOST_S]
        terms[_EXPOSED, n] = out[_c.DP_EXPOSED]
        terms[_LINK, n] = out[_c.TP_LINK_BYTES] + out[_c.RING_LINK_BYTES]
        terms[_RING, n] = out[_c.RING_NETWORK_BYTES]
        terms[_LATENCY, n] = out[_c.LATENCY_S]
        terms[_FETCH_PCIE, n] = out[_c.FETCH_PCIE_BYTES]
        terms[_FETCH_S, n] = out[_c.FETCH_S]
        terms[_REPEATS, n] = out[_c.REPEATS]
        terms[_ONCE_SHARE, n] = out[_c.STEP_EXPOSED]
        terms[_OPTIMIZER, n] = out[_c.OPTIMIZER_BYTES]
        terms[_TRANSFER, n] = out[_c.TRANSFER_PCIE_BYTES]
        terms[_OPTIMIZER_S, n] = out[_c.OPTIMIZER_S]
        terms[_TOKENS, n] = out[_c.TOKENS_PER_STEP]
        terms[_DEVICE_NEED, n] = out[_c.DEVICE]
        terms[_HOST_NEED, n] = out[_c.HOST]


@scalar
def kinds_of(identity, found, ends):
    """Where the runs of candidates of one dtype, offload and attention kernel end; how many there are.

    Such candidates lie side by side, as the knobs' order starts with the program.
    """
    kinds = 0
    for n in range(1, found + 1):
        if (
            n == found
            or identity[n, _DTYPE] != identity[n - 1, _DTYPE]
            or identity[n, _OFFLOAD] != identity[n - 1, _OFFLOAD]
            or identity[n, _ATTENTION] != identity[n - 1, _ATTENTION]
        ):
            ends[kinds] = n
            kinds += 1
    return kinds


@scalar
def time_kind(terms, answers, begin, end, dtype, offload, attention, setups, i):
    """Seconds per token and verdict of candidates [begin, end) of one kind on setup i, into answers [2, found].

    The arithmetic is that of `candidate.step_seconds`, operation by operation, so that the loop vectorises
    and still gives the same bits: no call, no branch, two arrays.
    """
    matmul = setups[MATMUL_BF16_S + dtype, i]
    half = setups[MATMUL_BF16_S + half_dtype(dtype), i]
    attend = setups[ATTENTION_S + attention, i]
    memory = setups[MEMORY_S, i]
    link = setups[LINK_S, i]
    network = setups[NETWORK_S, i]
    pcie = setups[PCIE_S, i]
    device_limit = setups[DEVICE_LIMIT, i]
    host_limit = setups[HOST_LIMIT + (1 if offload != 0 else 0), i]
    # Unsigned, so that Numba need not look for indices that count from the end.
    start = np.uint64(begin)
    stop = np.uint64(end)
    if matmul == math.inf:
        for n in range(start, stop):
            answers[0, n] = 0.0
            answers[1, n] = float(_UNSUPPORTED)
        return
    for n in range(start, stop):
        compute = (
            terms[_MATMUL, n] * matmul
            + terms[_HALF, n] * half
            + terms[_ATTENTION_WORK, n] * attend
            + terms[_MEMORY, n] * memory
        )
        inside = terms[_SHARD_LINK, n] * link
        between = terms[_SHARD_NETWORK, n] * network
        shard = (inside if inside > between else between) + terms[_SHARD_LATENCY, n]
        inside = terms[_ONCE_LINK, n] * link
        between = terms[_ONCE_NETWORK, n] * network
        once = (inside if inside > between else between) + terms[_ONCE_LATENCY, n]
        compute2 = compute * compute
        host2 = terms[_HOST_S, n] * terms[_HOST_S, n]
        shard2 = shard * shard
        micro = (
            math.sqrt(math.sqrt(compute2 * compute2 + host2 * host2 + shard2 * shard2))
            + terms[_EXPOSED, n] * shard
            + terms[_LINK, n] * link
            + terms[_RING, n] * network
            + terms[_LATENCY, n]
            + terms[_FETCH_PCIE, n] * pcie
            + terms[_FETCH_S, n]
        )
        step = (
            terms[_REPEATS, n] * micro
            + terms[_ONCE_SHARE, n] * once
            + terms[_OPTIMIZER, n] * memory
            + terms[_TRANSFER, n] * pcie
            + terms[_OPTIMIZER_S, n]
        )
        answers[0, n] = step / terms[_TOKENS, n]
        of_host = float(_HOST) if terms[_HOST_NEED, n] > host_limit else float(_FITS)
        answers[1, n] = float(_GPU) if terms[_DEVICE_NEED, n] > device_limit else of_host


# Loops and not assignments to slices: these take Numba a second each to compile.
@scalar
def fill(number, column):
    """The same number in all of a column."""
    for n in range(column.shape[0]):
        column[n] = number


@scalar
def copy(values, column):
    """The first values in a column, in its type."""
    for n in range(column.shape[0]):
        column[n] = values[n]


@scalar
def copy_verdicts(values, column):
    """The first verdicts, whole numbers, as the bytes of their column."""
    for n in range(column.shape[0]):
        column[n] = np.uint8(values[n])


@kernel
def decide_all(first, last, first_class, last_class, workloads, choices, layouts, splits, models,
               features, forms, programs, cases, stacks, setups, classes, batches,
               candidate_counts, workload_ids, setup_ids, knobs, verdicts, seconds_per_token, allocated,
               device, host, network):  # fmt: skip
    """Write every scenario of workloads and classes in the ranges: by workload, setup, knob.

    Fills the columns of the facts, each [rows] in its own type (u32 ids and knobs, u8 verdicts, f32
    measures): rows are the sum over workloads and classes of candidates x setups. Returns their number.
    """
    table, identity, lines, lines_known = scratch(
        first, last, workloads, splits, forms, candidate_counts
    )
    most = table.shape[0]
    terms = np.empty((TERMS, most))
    answers = np.empty((2, most))
    measures = np.empty((4, most), np.float32)
    numbers = np.empty(most, np.uint32)
    kind_ends = np.empty(most, np.int64)
    start = 0
    for w in range(first, last):
        lines_known[:] = 0
        for k in range(first_class, last_class):
            found = fill_candidates(
                w, k, workloads, choices, layouts, splits, models, features, forms, programs, cases, stacks,
                classes, batches, lines, lines_known, table, identity,
            )  # fmt: skip
            turn(table, found, terms)
            for n in range(found):
                out = table[n]
                numbers[n] = identity[n, _KNOB]
                measures[0, n] = out[_c.ALLOCATED]
                measures[1, n] = out[_c.DEVICE]
                measures[2, n] = out[_c.HOST]
                measures[3, n] = out[_NETWORK] / out[_c.TOKENS_PER_STEP]
            kinds = kinds_of(identity, found, kind_ends)
            for i in range(classes.first[k], classes.last[k]):
                begin = 0
                for kind in range(kinds):
                    time_kind(
                        terms, answers, begin, kind_ends[kind], identity[begin, _DTYPE],
                        identity[begin, _OFFLOAD], identity[begin, _ATTENTION], setups, i,
                    )  # fmt: skip
                    begin = kind_ends[kind]
                stop = start + found
                fill(w, workload_ids[start:stop])
                fill(i, setup_ids[start:stop])
                copy(numbers, knobs[start:stop])
                copy_verdicts(answers[1], verdicts[start:stop])
                copy(answers[0], seconds_per_token[start:stop])
                copy(measures[0], allocated[start:stop])
                copy(measures[1], device[start:stop])
                copy(measures[2], host[start:stop])
                copy(measures[3], network[start:stop])
                start = stop
    return start
