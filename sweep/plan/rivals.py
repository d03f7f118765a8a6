"""Which case of a workload is never slower than another: what the search for the best leaves out."""

from __future__ import annotations

import numpy as np

from sweep.kernels.tables import Workloads

# What of a program and of a case step time depends on (kernels/time.py), recomputation apart. Layouts
# depend on the layout rule, which is compared too.
_PROGRAM = (
    "stack", "dtype", "zero_stage", "offload", "eager", "lora_rank", "layers_trained", "head_trained",
    "weight_bytes", "shard_weight_bytes", "gather_bytes", "reduce_bytes", "residual_bytes",
    "traffic_bytes", "dequant_bytes", "cast_bytes", "loss_traffic_bytes",
)  # fmt: skip
_CASE = (
    "frozen_bytes", "trained", "matrix_elements", "quantized_elements", "adapter_active",
    "adapter_io", "adapted",
)  # fmt: skip
_RECOMPUTED = ("recompute_matmul", "recompute_attention", "recompute_elementwise")


def rival_table(
    workloads: Workloads, cases: np.ndarray, programs: np.ndarray, rules: np.ndarray
) -> np.ndarray:
    """For each place of case_list the place, in its workload's list, of a case never slower; or -1.

    Such a case comes earlier and recomputes no more, and all else that takes time is equal: each term
    of docs/physics.md section 5 is then no larger, and rounding keeps that order.
    """
    of_case = cases["program"]
    columns = [cases[name].reshape(len(cases), -1) for name in _CASE]
    columns += [programs[name][of_case] for name in _PROGRAM]
    table = np.ascontiguousarray(np.column_stack([*columns, rules[of_case]]), np.float64)
    same: dict[bytes, int] = {}
    keys = [same.setdefault(row.tobytes(), len(same)) for row in table]
    recomputed = np.array([programs[name] for name in _RECOMPUTED]).T[of_case]
    found: dict[bytes, np.ndarray] = {}
    rivals = np.full(len(workloads.case_list), -1, np.int64)
    for first, last in zip(workloads.first_case, workloads.last_case, strict=True):
        rows = workloads.case_list[first:last]
        known = rows.tobytes()
        if known not in found:
            found[known] = _rivals_of(rows, keys, recomputed)
        rivals[first:last] = found[known]
    return rivals


def _rivals_of(rows: np.ndarray, keys: list[int], recomputed: np.ndarray) -> np.ndarray:
    rivals = np.full(len(rows), -1, np.int64)
    alike: dict[int, list[int]] = {}
    shares = recomputed[rows].tolist()
    for place, row in enumerate(rows.tolist()):
        earlier = alike.setdefault(keys[row], [])
        for other in reversed(earlier):
            if all(less <= more for less, more in zip(shares[other], shares[place], strict=True)):
                rivals[place] = other
                break
        earlier.append(place)
    return rivals
