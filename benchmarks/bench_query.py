"""How long until a finished run answers: its ranking, and each query that ships with sweep?"""

from __future__ import annotations

import statistics
import time
from pathlib import Path

import pytest
from processes import SPECS

from sweep.results import build_database, named_queries, open_results


@pytest.fixture
def finished(request: pytest.FixtureRequest, sweep, everything_folder, tmp_path) -> Path:
    """The folder of a finished run; what is finished there is not decided again."""
    name: str = request.param
    folder = everything_folder if name == "everything" else tmp_path / name
    sweep("run", SPECS / f"{name}.toml", "--out", folder, "--quiet")
    return folder


RUNS = pytest.mark.parametrize("finished", ["deepseek-r1-one-day", "everything"], indirect=True)


@pytest.mark.benchmark(group="database")
@RUNS
def test_build_database(finished, timed, figures, request):
    path, median_s = timed(lambda: build_database(finished, threads=2), rounds=3)
    assert path.stat().st_size > 1_000_000
    name = request.node.callspec.params["finished"]
    figures.seconds(f"results.duckdb of {name}", median_s)


@pytest.mark.benchmark(group="query")
@RUNS
def test_top(finished, sweep, timed, figures, request):
    ended, median_s = timed(lambda: sweep("top", finished), rounds=5)
    name = request.node.callspec.params["finished"]
    assert ended.stdout.startswith(f"{name}: ")
    assert len(ended.stdout.splitlines()) > 20
    figures.seconds(f"sweep top, {name}, whole process", median_s)


@pytest.mark.benchmark(group="query")
@RUNS
def test_named_queries(finished, timed, figures, request):
    names = sorted(named_queries())
    times_s: dict[str, list[float]] = {name: [] for name in names}

    def ask() -> dict[str, int]:
        rows = {}
        with open_results(finished) as results:
            for name in names:
                started_s = time.perf_counter()
                rows[name] = len(results.named(name))
                times_s[name].append(time.perf_counter() - started_s)
        return rows

    rows, median_s = timed(ask, rounds=3)
    assert sum(rows.values()) > 0
    medians = {name: statistics.median(times_s[name]) for name in names}
    slowest = max(names, key=lambda name: medians[name])
    run = request.node.callspec.params["finished"]
    figures.seconds(f"all {len(names)} named queries, {run}", median_s)
    figures.seconds(f"  the slowest: {slowest}", medians[slowest])
