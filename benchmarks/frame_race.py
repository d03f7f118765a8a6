"""Two more peers of `sweep.kernels.decide.race`: a Polars lazy query and DuckDB SQL.

Both say the same arithmetic as one would write it there: candidates joined with the rates of every
setup they compete on, step time and verdict as expressions, the fastest fit and the nearest miss by
setup as aggregates.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import duckdb
import numpy as np
import polars as pl

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

# A filled table [N, quantities], the identities [N, 4] of its candidates, and the range of setups
# they compete on.
Table = tuple[np.ndarray, np.ndarray, int, int]
NEVER = 1e30
# Seconds of what does not fit, in place of infinity, for which the two have no common word.
INFINITE = 1e300
QUANTITIES = (
    "MATMUL_FLOP", "HALF_FLOP", "ATTENTION_FLOP", "MEMORY_BYTES", "HOST_S", "SHARD_LINK_BYTES",
    "SHARD_NETWORK_BYTES", "SHARD_LATENCY_S", "DP_EXPOSED", "TP_LINK_BYTES", "RING_LINK_BYTES",
    "RING_NETWORK_BYTES", "TOKENS_PER_STEP", "REPEATS", "STEP_EXPOSED", "ONCE_LINK_BYTES",
    "ONCE_NETWORK_BYTES", "ONCE_LATENCY_S", "OPTIMIZER_BYTES", "FETCH_PCIE_BYTES",
    "TRANSFER_PCIE_BYTES", "LATENCY_S", "FETCH_S", "OPTIMIZER_S", "DEVICE", "HOST",
)  # fmt: skip
# The formulas in SQL, which both peers read, step by step: each may use the columns of those before.
# First what a candidate adds up before it meets a setup, in the order in which `race` does.
CANDIDATE = (
    {
        "half": f"greatest(half_flop, {c.LEAST_FLOP!r})",
        "host2": "host_s * host_s",
        "link_bytes": "tp_link_bytes + ring_link_bytes",
        "per_token": "1.0 / tokens_per_step",
    },
    {
        "host4": "host2 * host2",
        "passes": "repeats * per_token",
        "once_share": "step_exposed * per_token",
        "step_bytes": "optimizer_bytes * per_token",
    },
    {
        "pcie_bytes": "passes * fetch_pcie_bytes + transfer_pcie_bytes * per_token",
        "fixed_s": "passes * (latency_s + fetch_s) + optimizer_s * per_token",
    },
)
CANDIDATE_COLUMNS = (
    "kind", "candidate", "matmul_flop", "half", "attention_flop", "memory_bytes", "host4",
    "shard_link_bytes", "shard_network_bytes", "shard_latency_s", "dp_exposed", "link_bytes",
    "ring_network_bytes", "passes", "once_share", "once_link_bytes", "once_network_bytes",
    "once_latency_s", "step_bytes", "pcie_bytes", "fixed_s", "device", "host",
)  # fmt: skip
# Then step time, verdict and distance on a setup.
SCENARIO = (
    {
        "compute": "matmul_flop * matmul_rate + half * half_rate"
        " + attention_flop * attention_rate + memory_bytes * memory_rate",
        "shard": "greatest(shard_link_bytes * link_rate, shard_network_bytes * network_rate)"
        " + shard_latency_s",
        "once": "greatest(once_link_bytes * link_rate, once_network_bytes * network_rate)"
        " + once_latency_s",
        "need": "greatest(device * device_inverse, host * host_inverse)",
        "fits": "device <= device_limit AND host <= host_limit",
    },
    {"compute2": "compute * compute", "shard2": "shard * shard"},
    {
        "micro": "sqrt(sqrt(compute2 * compute2 + host4 + shard2 * shard2)) + dp_exposed * shard"
        " + link_bytes * link_rate + ring_network_bytes * network_rate"
    },
    {
        "seconds": "passes * micro + once_share * once + step_bytes * memory_rate"
        " + pcie_bytes * pcie_rate + fixed_s"
    },
    {
        "fitting_s": f"CASE WHEN fits THEN seconds ELSE {INFINITE!r} END",
        "ratio": f"CASE WHEN seconds < {INFINITE!r} THEN need ELSE {NEVER!r} END",
    },
)


@dataclass(frozen=True)
class Frames:
    """The tables of a race as frames: candidates of a kind, and the rates of that kind by setup."""

    candidates: pl.DataFrame
    rates: pl.DataFrame

    @property
    def scenarios(self) -> int:
        """Rows of their join."""
        return len(self.candidates.join(self.rates, on="kind").select("kind"))


def frames(tables: Sequence[Table], setups: np.ndarray) -> Frames:
    """Candidates and rates of all tables: a kind is a table, a dtype, an offload and an attention kernel."""
    candidates, rates = [], []
    kinds = 0
    for number, (table, identity, first, last) in enumerate(tables):
        of_kind, kind = np.unique(identity[:, 1:], axis=0, return_inverse=True)
        columns = {name.lower(): table[:, getattr(c, name)] for name in QUANTITIES}
        candidate = np.arange(len(table), dtype=np.uint32)
        columns |= {"kind": kinds + kind.reshape(-1), "candidate": candidate}
        candidates.append(pl.DataFrame(columns))
        for at, (dtype, offload, attention) in enumerate(of_kind):
            rates.append(_rates(setups[:, first:last], int(dtype), int(offload), int(attention))
                         .with_columns(kind=pl.lit(kinds + at, pl.Int64), race=pl.lit(number)))  # fmt: skip
        kinds += len(of_kind)
    return Frames(pl.concat(candidates), pl.concat(rates))


def _rates(setups: np.ndarray, dtype: int, offload: int, attention: int) -> pl.DataFrame:
    offloads = int(offload != 0)
    rows = {
        "matmul_rate": MATMUL_BF16_S + dtype,
        "half_rate": MATMUL_BF16_S + half_dtype(dtype),
        "attention_rate": ATTENTION_S + attention,
        "memory_rate": MEMORY_S,
        "link_rate": LINK_S,
        "network_rate": NETWORK_S,
        "pcie_rate": PCIE_S,
        "device_limit": DEVICE_LIMIT,
        "device_inverse": DEVICE_INVERSE,
        "host_limit": HOST_LIMIT + offloads,
        "host_inverse": HOST_INVERSE + offloads,
    }
    columns = {name: setups[row] for name, row in rows.items()}
    return pl.DataFrame({"setup": np.arange(setups.shape[1]), **columns})


def polars_race(race: Frames) -> pl.DataFrame:
    """By race and setup: the fastest fit and the nearest miss, each with its candidate."""
    candidates = race.candidates.lazy()
    for step in CANDIDATE:
        candidates = candidates.with_columns(**_expressions(step))
    joined = candidates.select(CANDIDATE_COLUMNS).join(race.rates.lazy(), on="kind")
    for step in SCENARIO:
        joined = joined.with_columns(**_expressions(step))
    number = pl.col("candidate")
    return (
        joined.group_by("race", "setup")
        .agg(
            fastest_s=pl.col("fitting_s").min(),
            fastest=number.get(pl.col("fitting_s").arg_min()),
            ratio=pl.col("ratio").min(),
            miss_s=pl.col("seconds").get(pl.col("ratio").arg_min()),
            miss=number.get(pl.col("ratio").arg_min()),
        )
        .sort("race", "setup")
        .collect(engine="streaming")
    )


def _expressions(step: dict[str, str]) -> dict[str, pl.Expr]:
    return {name: pl.sql_expr(formula) for name, formula in step.items()}


def duckdb_race(race: Frames, connection: duckdb.DuckDBPyConnection) -> pl.DataFrame:
    """The same by SQL, over tables `candidates` and `rates` that `load` has put there."""
    candidates = "SELECT * FROM candidates"
    for step in CANDIDATE:
        candidates = _wrapped(step, candidates)
    joined = (
        f"SELECT * FROM (SELECT {', '.join(CANDIDATE_COLUMNS)} FROM ({candidates})) "
        "JOIN rates USING (kind)"
    )
    for step in SCENARIO:
        joined = _wrapped(step, joined)
    return connection.sql(
        f"""
        SELECT race, setup, min(fitting_s) AS fastest_s, arg_min(candidate, fitting_s) AS fastest,
            min(ratio) AS ratio, arg_min(seconds, ratio) AS miss_s, arg_min(candidate, ratio) AS miss
        FROM ({joined}) GROUP BY race, setup ORDER BY race, setup
        """
    ).pl()


def _wrapped(step: dict[str, str], query: str) -> str:
    added = ", ".join(f"{formula} AS {name}" for name, formula in step.items())
    return f"SELECT *, {added} FROM ({query})"
