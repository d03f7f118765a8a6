"""The peer of `sweep.kernels.decide.race`: the same arithmetic in NumPy, as one would write it for speed.

Blocked so that the working arrays stay in the processor's cache, what does not depend on the setup
hoisted, every operation into an array that is there already.
"""

from __future__ import annotations

import numpy as np

from sweep.kernels import candidate as c
from sweep.kernels.decide import half_dtype
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
)

# Scenarios in a working array: the fastest of 2^11 to 2^17 where this was measured (see README.md).
BLOCK = 1 << 16
NEVER = 1e30
ATTENTION_KERNELS = MEMORY_S - ATTENTION_S


def numpy_race(
    table: np.ndarray,
    identity: np.ndarray,
    setups: np.ndarray,
    first: int,
    last: int,
    state: np.ndarray,
) -> None:
    """Let all candidates of a table [N, quantities] compete on setups [first, last), as `race` does."""
    # Candidates of one dtype, offload and attention kernel lie side by side: each such run has one
    # row of rates.
    _, dtypes, offloads, kernels = identity.T
    kinds = (dtypes * 2 + (offloads != 0)) * ATTENTION_KERNELS + kernels
    cuts = np.flatnonzero(np.diff(kinds)) + 1
    for begin, end in zip([0, *cuts], [*cuts, len(table)], strict=True):
        _run(table, int(begin), int(end), identity[begin], setups[:, first:last], state)


def _run(
    table: np.ndarray,
    begin: int,
    end: int,
    kind: np.ndarray,
    setups: np.ndarray,
    state: np.ndarray,
) -> None:
    _, dtype, offload, kernel = (int(number) for number in kind)
    offloads = int(offload != 0)
    matmul_s = setups[MATMUL_BF16_S + dtype, :, None]
    half_s = setups[MATMUL_BF16_S + half_dtype(dtype), :, None]
    attention_s = setups[ATTENTION_S + kernel, :, None]
    memory_s = setups[MEMORY_S, :, None]
    link_s = setups[LINK_S, :, None]
    network_s = setups[NETWORK_S, :, None]
    pcie_s = setups[PCIE_S, :, None]
    device_limits = setups[DEVICE_LIMIT, :, None]
    device_inverse = setups[DEVICE_INVERSE, :, None]
    host_limits = setups[HOST_LIMIT + offloads, :, None]
    host_inverse = setups[HOST_INVERSE + offloads, :, None]

    q = np.ascontiguousarray(table[begin:end].T)
    half = np.maximum(q[c.HALF_FLOP], c.LEAST_FLOP)
    per_token = 1.0 / q[c.TOKENS_PER_STEP]
    host4 = (q[c.HOST_S] * q[c.HOST_S]) ** 2
    link_bytes = q[c.TP_LINK_BYTES] + q[c.RING_LINK_BYTES]
    repeats = q[c.REPEATS] * per_token
    once_share = q[c.STEP_EXPOSED] * per_token
    optimizer_bytes = q[c.OPTIMIZER_BYTES] * per_token
    pcie_bytes = repeats * q[c.FETCH_PCIE_BYTES] + q[c.TRANSFER_PCIE_BYTES] * per_token
    fixed_s = repeats * (q[c.LATENCY_S] + q[c.FETCH_S]) + q[c.OPTIMIZER_S] * per_token

    rows = np.arange(len(matmul_s))
    width = max(1, min(end - begin, BLOCK // len(rows)))
    seconds_, other_, shard_, once_ = np.empty((4, len(rows), width))
    for start in range(0, end - begin, width):
        b = slice(start, min(start + width, end - begin))
        size = b.stop - b.start
        seconds, other = seconds_[:, :size], other_[:, :size]
        shard, once = shard_[:, :size], once_[:, :size]

        np.multiply(q[c.SHARD_LINK_BYTES, b], link_s, out=shard)
        np.multiply(q[c.SHARD_NETWORK_BYTES, b], network_s, out=other)
        np.maximum(shard, other, out=shard)
        shard += q[c.SHARD_LATENCY_S, b]
        np.multiply(q[c.ONCE_LINK_BYTES, b], link_s, out=once)
        np.multiply(q[c.ONCE_NETWORK_BYTES, b], network_s, out=other)
        np.maximum(once, other, out=once)
        once += q[c.ONCE_LATENCY_S, b]

        np.multiply(q[c.MATMUL_FLOP, b], matmul_s, out=seconds)
        seconds += np.multiply(half[b], half_s, out=other)
        seconds += np.multiply(q[c.ATTENTION_FLOP, b], attention_s, out=other)
        seconds += np.multiply(q[c.MEMORY_BYTES, b], memory_s, out=other)
        np.multiply(seconds, seconds, out=seconds)
        np.multiply(seconds, seconds, out=seconds)
        seconds += host4[b]
        np.multiply(shard, shard, out=other)
        seconds += np.multiply(other, other, out=other)
        np.sqrt(seconds, out=seconds)
        np.sqrt(seconds, out=seconds)
        seconds += np.multiply(q[c.DP_EXPOSED, b], shard, out=other)
        seconds += np.multiply(link_bytes[b], link_s, out=other)
        seconds += np.multiply(q[c.RING_NETWORK_BYTES, b], network_s, out=other)
        seconds *= repeats[b]
        seconds += np.multiply(once_share[b], once, out=other)
        seconds += np.multiply(optimizer_bytes[b], memory_s, out=other)
        seconds += np.multiply(pcie_bytes[b], pcie_s, out=other)
        seconds += fixed_s[b]

        device, host = q[c.DEVICE, b], q[c.HOST, b]
        np.multiply(device, device_inverse, out=other)
        np.multiply(host, host_inverse, out=shard)
        np.maximum(other, shard, out=other)
        other[seconds == np.inf] = NEVER
        nearest = other.argmin(axis=1)
        ratio = other[rows, nearest]
        nearer = ratio < state[2]
        state[2, nearer] = ratio[nearer]
        state[3, nearer] = seconds[rows, nearest][nearer]
        state[4, nearer] = begin + start + nearest[nearer]

        seconds[(device > device_limits) | (host > host_limits)] = np.inf
        fastest = seconds.argmin(axis=1)
        least = seconds[rows, fastest]
        better = least < state[0]
        state[0, better] = least[better]
        state[1, better] = begin + start + fastest[better]
