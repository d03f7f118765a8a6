"""How much faster are the kernels than other ways to compute the same, on the same scenarios, in the same run?

Every peer gets the candidates of some workloads of the `everything` plan and races them on all their
setups: the cross product, which is where a sweep spends its time. Results must be equal. All on two
threads, as a user has them: Polars and DuckDB spread a query themselves, the kernel and NumPy take a
table a thread. The public planner llm-analysis computes other formulas; its rate is that of its calls.
"""

from __future__ import annotations

import json
import os
import subprocess
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import duckdb
import numpy as np
import polars as pl
import pytest
from bench_kernel import _race, candidate_tables, catalogs, plan, sample, start_of_race  # noqa: F401
from frame_race import INFINITE, Frames, Table, duckdb_race, frames, polars_race
from numpy_race import numpy_race
from processes import ROOT

from sweep.plan import Plan

THREADS = 2
# Scenarios of a round: enough to keep every peer busy for a tenth of a second, few enough for frames.
SCENARIOS = 8_000_000
ROUNDS = 5
# Of the kernels over the peers: issue figures of plain evaluation.
WANTED = {"numpy": 5, "polars": 15, "duckdb": 15}


@pytest.fixture(scope="module")
def tables(candidate_tables: list[Table]) -> list[Table]:  # noqa: F811
    """Tables drawn with a fixed seed until there are enough scenarios."""
    order = np.random.default_rng(1).permutation(len(candidate_tables))
    sizes = np.array([len(t) * (last - first) for t, _, first, last in candidate_tables])[order]
    enough = int(np.searchsorted(sizes.cumsum(), SCENARIOS)) + 1
    return [candidate_tables[at] for at in order[:enough]]


@pytest.fixture(scope="module")
def race_frames(plan: Plan, tables: list[Table]) -> Frames:  # noqa: F811
    return frames(tables, plan.tables.setups)


@pytest.fixture(scope="module")
def connection(race_frames: Frames) -> Any:
    with duckdb.connect(config={"threads": THREADS}) as found:
        for name in ("candidates", "rates"):
            found.register("frame", getattr(race_frames, name))
            found.execute(f"CREATE TABLE {name} AS SELECT * FROM frame")
            found.unregister("frame")
        yield found


def race_by_table(race: Any, plan: Plan, tables: list[Table]) -> list[np.ndarray]:  # noqa: F811
    def one(table: Table) -> np.ndarray:
        rows, identity, first, last = table
        state = start_of_race(last - first)
        race(rows, identity, plan.tables.setups, first, last, state)
        return state

    with ThreadPoolExecutor(THREADS) as pool:
        return list(pool.map(one, tables))


def states_of(table: pl.DataFrame) -> np.ndarray:
    """The columns of a frame as the states of `race`, all tables side by side."""
    states = table.select("fastest_s", "fastest", "ratio", "miss_s", "miss").to_numpy().T.copy()
    none = states[0] >= INFINITE
    states[0, none], states[1, none] = np.inf, -1
    return states


@pytest.fixture(scope="module")
def medians() -> dict[str, float]:
    return {}


@pytest.mark.benchmark(group="peers")
@pytest.mark.parametrize("peer", ["kernel", "numpy", "polars", "duckdb"])
def test_peers(plan, tables, race_frames, connection, timed, figures, medians, peer: str):  # noqa: F811
    run = {
        "kernel": partial(race_by_table, _race, plan, tables),
        "numpy": partial(race_by_table, numpy_race, plan, tables),
        "polars": partial(polars_race, race_frames),
        "duckdb": partial(duckdb_race, race_frames, connection),
    }[peer]
    assert os.cpu_count() == THREADS == pl.thread_pool_size(), "figures are for two processors"
    found, median_s = timed(run, rounds=ROUNDS)
    ours = np.concatenate(race_by_table(_race, plan, tables), axis=1)
    theirs = states_of(found) if isinstance(found, pl.DataFrame) else np.concatenate(found, axis=1)
    np.testing.assert_array_equal(theirs[[0, 2]], ours[[0, 2]])
    if peer == "numpy":
        # Of several equally good ones Polars and DuckDB name any, the others the first.
        np.testing.assert_array_equal(theirs, ours)
    scenarios = sum(len(rows) * (last - first) for rows, _, first, last in tables)
    assert race_frames.scenarios == scenarios
    medians[peer] = median_s
    figures.rate(f"race on 2 threads: {peer}", scenarios / median_s, "scenarios")
    if peer in WANTED and "kernel" in medians:
        figures.ratio(f"  kernel over {peer}", median_s / medians["kernel"], WANTED[peer])


PLANNER = ROOT / ".venv-peers/bin/python"


@pytest.mark.benchmark(group="planner")
def test_planner(plan, tables, timed, figures, medians):  # noqa: F811
    """llm-analysis by its public interface, in its own environment."""
    if not PLANNER.exists():
        figures.text("llm-analysis", "not measured: `make peers` installs it")
        pytest.skip("`make peers` installs llm-analysis")
    script = ROOT / "benchmarks/planner_rate.py"

    def run() -> dict[str, float]:
        ended = subprocess.run([PLANNER, script], check=True, capture_output=True, text=True)
        return json.loads(ended.stdout.splitlines()[-1])  # type: ignore[no-any-return]

    found, _ = timed(run, rounds=1)
    assert 0 < found["fitting"] < found["configurations"]
    rate = found["configurations"] / found["seconds"]
    figures.text("llm-analysis, 1 thread", f"{rate:,.0f} configurations/s")
    if "kernel" in medians:
        scenarios = sum(len(rows) * (last - first) for rows, _, first, last in tables)
        figures.text(
            "  race of the kernel over it", f"{scenarios / medians['kernel'] / rate:,.0f} x"
        )
