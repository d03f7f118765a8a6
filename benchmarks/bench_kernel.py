"""How many scenarios a second do the kernels decide, on one thread and two, and against NumPy?

All over the `everything` plan with full physics, on parts spread evenly over it.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numba
import numpy as np
import pytest
import reference
from numpy_race import numpy_race
from scenarios import reference_scenario

from sweep import engine
from sweep.catalogs import Catalogs, load_catalogs
from sweep.kernels import decide
from sweep.kernels.best import choose_best
from sweep.kernels.tables import Verdict
from sweep.plan import Plan, build_plan
from sweep.spec import load_spec

EVERYTHING = Path(__file__).parent.parent / "catalogs/sweeps/everything.toml"
# Of the parts of the plan, one in so many.
EVERY = 16
ROUNDS = 7
RACES = 5


@pytest.fixture(scope="module")
def catalogs() -> Catalogs:
    return load_catalogs()


@pytest.fixture(scope="module")
def plan(catalogs: Catalogs) -> Plan:
    return build_plan(load_spec(EVERYTHING), catalogs)


@pytest.fixture(scope="module")
def sample(plan: Plan) -> list[engine.Chunk]:
    return engine.chunks(plan)[::EVERY]


def scenario_count(sample: list[engine.Chunk]) -> int:
    return sum(chunk.scenarios for chunk in sample)


Best = tuple[np.ndarray, np.ndarray, np.ndarray]


def evaluated(plan: Plan, chunk: engine.Chunk) -> Best:
    """Verdicts, knobs and measures of a chunk, every scenario evaluated in full (`decide_best`)."""
    found = room(plan, chunk)
    decide.decide_best(
        chunk.first, chunk.last, *engine._kernel_tables(plan),
        plan.candidates[chunk.first : chunk.last], *found,
    )  # fmt: skip
    return found


def decided(plan: Plan, chunk: engine.Chunk) -> Best:
    """The same as runs find it: what cannot be the best is left out (`choose_best`)."""
    found = room(plan, chunk)
    choose_best(
        chunk.first, chunk.last, *engine._kernel_tables(plan), plan.tables.kinds,
        plan.candidates[chunk.first : chunk.last], *found,
    )  # fmt: skip
    return found


def room(plan: Plan, chunk: engine.Chunk) -> Best:
    rows = (chunk.last - chunk.first) * len(plan.setups)
    return np.empty(rows, np.uint8), np.empty(rows, np.int64), np.empty((rows, decide.MEASURES))


def check_against_the_twin(plan: Plan, catalogs: Catalogs, chunk: engine.Chunk) -> None:
    """The fastest fit of a chunk's first workload is what the plain twin says of it, and the fastest."""
    w = chunk.first
    rows = engine.decide_pairs(plan, w, w + 1)
    fits = np.flatnonzero(rows["verdict"] == Verdict.FITS)
    at = int(fits[len(fits) // 2])
    k = int(np.searchsorted(plan.tables.classes.last, at, side="right"))
    knob = int(rows["knob"][at])
    expected = reference.evaluate(reference_scenario(plan, catalogs.stacks, w, at, knob))
    assert expected["verdict"] == "fits"
    for name in ("seconds_per_token", "allocated_bytes", "device_bytes", "host_bytes"):
        assert float(rows[name][at]) == pytest.approx(expected[name], rel=1e-5), name
    size = int(plan.candidates[w, k] * plan.class_sizes[k])
    every = engine.decide_scenarios(plan, engine.Chunk(w, w + 1, k, k + 1, size))
    rivals = (every["setup"] == at) & (every["verdict"] == Verdict.FITS)
    assert every["seconds_per_token"][rivals].min() == rows["seconds_per_token"][at]


@pytest.mark.benchmark(group="kernel")
@pytest.mark.parametrize("how", [evaluated, decided])
@pytest.mark.parametrize("threads", [1, 2])
def test_kernel(plan, catalogs, sample, timed, figures, threads: int, how: Callable[..., Best]):
    cpu_s = []

    def run() -> list[Best]:
        begun_s = time.process_time()
        with ThreadPoolExecutor(threads) as pool:
            parts = list(pool.map(lambda chunk: how(plan, chunk), sample))
        cpu_s.append(time.process_time() - begun_s)
        return parts

    for chunk in sample[:: len(sample) // 8]:
        check_against_the_twin(plan, catalogs, chunk)
    parts, median_s = timed(run, rounds=ROUNDS)
    for chunk, (verdicts, knobs, _) in zip(sample, parts, strict=True):
        tried = np.repeat(plan.candidates[chunk.first : chunk.last], plan.class_sizes, axis=1)
        assert np.array_equal(verdicts.reshape(tried.shape) == Verdict.NO_LAYOUT, tried == 0)
        assert np.array_equal(knobs < 0, verdicts == Verdict.NO_LAYOUT)
    for ours, theirs in zip(evaluated(plan, sample[0]), decided(plan, sample[0]), strict=True):
        assert np.array_equal(ours, theirs)
    what = "every scenario evaluated" if how is evaluated else "decided, as runs do"
    name = f"{what}, everything plan, {threads} thread{'s' * (threads > 1)}"
    wanted = 200e6 if threads == 2 else None
    figures.rate(name, scenario_count(sample) / median_s, "scenarios", at_least=wanted)
    # What others on the machine take away: far below 100% the figure above is theirs, not ours.
    cpu_median_s = float(np.median(cpu_s))
    figures.text("  share of the processors it got", f"{cpu_median_s / (threads * median_s):.0%}")
    figures.text(
        "  a scenario, processor time", f"{cpu_median_s / scenario_count(sample) * 1e9:.1f} ns"
    )


@numba.njit(nogil=True, error_model="numpy")
def _fill(first, last, workloads, choices, layouts, splits, models, features, forms, programs, cases,
          stacks, setups, classes, batches, counts):  # fmt: skip
    """The half of `decide_best` before the race: every candidate, on no setup; returns how many."""
    table, identity, lines, line_count = decide.scratch(
        first, last, workloads, splits, forms, counts
    )
    candidates = 0
    for w in range(first, last):
        line_count[:] = 0
        for k in range(classes.first.shape[0]):
            candidates += decide.fill_candidates(
                w, k, workloads, choices, layouts, splits, models, features, forms, programs, cases,
                stacks, classes, batches, lines, line_count, table, identity,
            )  # fmt: skip
    return candidates


@pytest.mark.benchmark(group="kernel")
def test_candidates_alone(plan, sample, timed, figures):
    def run() -> int:
        return sum(
            _fill(
                chunk.first, chunk.last, *engine._kernel_tables(plan),
                plan.candidates[chunk.first : chunk.last],
            )
            for chunk in sample
        )  # fmt: skip

    candidates, median_s = timed(run, rounds=ROUNDS)
    assert candidates == sum(plan.candidates[c.first : c.last].sum() for c in sample)
    count = scenario_count(sample)
    figures.rate("  of it: candidates alone, 1 thread", candidates / median_s, "candidates")
    figures.text("  setups a candidate", f"{count / candidates:.1f}")
    figures.text("  candidates, a scenario", f"{median_s / count * 1e9:.2f} ns")


Table = tuple[np.ndarray, np.ndarray, int, int]


@pytest.fixture(scope="module")
def candidate_tables(plan: Plan, sample: list[engine.Chunk]) -> list[Table]:
    """Filled tables of candidates, their identities, and the setups they compete on."""
    tables = plan.tables
    found: list[Table] = []
    for chunk in sample[::2]:
        w = chunk.first
        counts = plan.candidates[w : w + 1]
        for k in range(len(plan.class_sizes)):
            # Each table keeps its own memory.
            table, identity, lines, line_count = decide.scratch(
                w, w + 1, tables.workloads, tables.splits, tables.forms, counts[:, k : k + 1]
            )
            filled = decide.fill_candidates(
                w, k, tables.workloads, plan.choices.table, tables.layouts, tables.splits,
                tables.models, tables.features, tables.forms, tables.programs, tables.cases,
                tables.stacks, tables.classes, len(plan.global_batches), lines, line_count, table,
                identity,
            )  # fmt: skip
            if filled:
                setups = int(tables.classes.first[k]), int(tables.classes.last[k])
                found.append((table[:filled], identity[:filled], *setups))
    return found


@numba.njit(nogil=True, error_model="numpy")
def _race(table, identity, setups, first, last, state):
    for candidate in range(table.shape[0]):
        decide.race(
            table[candidate], candidate, identity[candidate, 1], identity[candidate, 2],
            identity[candidate, 3], setups, first, last, state,
        )  # fmt: skip


def start_of_race(setups: int) -> np.ndarray:
    return np.array([[math.inf], [-1.0], [math.inf], [0.0], [-1.0]]).repeat(setups, axis=1)


def race_all(race: Any, plan: Plan, tables: list[Table], times: int = 1) -> list[np.ndarray]:
    """How the races of all tables end, each run several times over.

    `decide_best` races over a table it has just filled: here too it should mostly be in the cache.
    """
    states = []
    for table, identity, first, last in tables:
        for _ in range(times):
            state = start_of_race(last - first)
            race(table, identity, plan.tables.setups, first, last, state)
        states.append(state)
    return states


@pytest.fixture(scope="module")
def race_medians() -> dict[str, float]:
    return {}


@pytest.mark.benchmark(group="race")
@pytest.mark.parametrize("peer", ["kernel", "numpy"])
def test_race(plan, candidate_tables, timed, figures, race_medians, peer: str):
    race = {"kernel": _race, "numpy": numpy_race}[peer]
    states, median_s = timed(lambda: race_all(race, plan, candidate_tables, RACES), rounds=ROUNDS)
    for ours, theirs in zip(states, race_all(_race, plan, candidate_tables), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    scenarios = RACES * sum(
        len(table) * (last - first) for table, _, first, last in candidate_tables
    )
    figures.rate(f"  race alone, 1 thread: {peer}", scenarios / median_s, "scenarios")
    race_medians[peer] = median_s
    if peer == "numpy" and "kernel" in race_medians:
        figures.text("  kernel over NumPy", f"{median_s / race_medians['kernel']:.1f} x")
