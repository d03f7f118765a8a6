"""What the benchmarks share: the plan, timing, child processes, and the table of figures at the end."""

from __future__ import annotations

import datetime as dt
import os
import platform
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from processes import ROOT, Sweep, sweep_process

# The plain twin of the kernels and the scenarios it reads are the tests'.
sys.path.insert(0, str(ROOT / "tests"))


@dataclass(frozen=True)
class Figure:
    """One measured number, and what was asked for it ("" where nothing was)."""

    name: str
    value: str
    wanted: str
    met: bool


FIGURES = pytest.StashKey[list[Figure]]()


class Figures:
    """Collects figures for the table that ends the run; a target that is missed fails nothing."""

    def __init__(self, found: list[Figure]) -> None:
        self._found = found

    def rate(self, name: str, per_s: float, unit: str, at_least: float | None = None) -> None:
        """A rate in millions of `unit` a second."""
        wanted = "" if at_least is None else f">= {at_least / 1e6:g} M {unit}/s"
        met = at_least is None or per_s >= at_least
        self._found.append(Figure(name, f"{per_s / 1e6:,.1f} M {unit}/s", wanted, met))

    def seconds(self, name: str, value_s: float, below: float | None = None) -> None:
        """A time."""
        wanted = "" if below is None else f"< {below:g} s"
        self._found.append(
            Figure(name, f"{value_s:,.3f} s", wanted, below is None or value_s < below)
        )

    def memory(self, name: str, value_bytes: float, below_bytes: float) -> None:
        """A peak of resident memory."""
        wanted = f"< {below_bytes / 2**20:,.0f} MiB"
        met = value_bytes < below_bytes
        self._found.append(Figure(name, f"{value_bytes / 2**20:,.0f} MiB", wanted, met))

    def ratio(self, name: str, value: float, at_least: float) -> None:
        """How many times faster."""
        self._found.append(Figure(name, f"{value:,.1f} x", f">= {at_least:g} x", value >= at_least))

    def text(self, name: str, value: str) -> None:
        """Anything else."""
        self._found.append(Figure(name, value, "", True))


@pytest.fixture(scope="session")
def figures(pytestconfig: pytest.Config) -> Figures:
    return Figures(pytestconfig.stash.setdefault(FIGURES, []))


# Calls a function `rounds` times after warming up; gives its last result and the median of the times.
Timed = Callable[..., tuple[Any, float]]


@pytest.fixture
def timed(benchmark: Any) -> Timed:
    def run(
        function: Callable[..., Any],
        *,
        rounds: int,
        warmup_rounds: int = 1,
        setup: Callable[[], tuple[tuple[Any, ...], dict[str, Any]]] | None = None,
    ) -> tuple[Any, float]:
        result = benchmark.pedantic(
            function, setup=setup, rounds=rounds, warmup_rounds=warmup_rounds, iterations=1
        )
        if benchmark.stats is None:
            pytest.skip("checked, but not timed: pytest-benchmark is switched off")
        return result, benchmark.stats.stats.median

    return run


@pytest.fixture(scope="session")
def warm_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache folder that holds the compiled kernels, apart from the user's."""
    cache = tmp_path_factory.mktemp("cache")
    sweep_process(cache, cache / "report.json", "warmup")
    return cache


@pytest.fixture
def sweep(warm_cache: Path, tmp_path: Path) -> Sweep:
    return lambda *words: sweep_process(warm_cache, tmp_path / "report.json", *words)


@pytest.fixture(scope="session")
def everything_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the `everything` plan is run to: once, by whoever needs it first."""
    return tmp_path_factory.mktemp("everything")


def _machine() -> str:
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        found = re.search(r"model name\s*: (.*)", cpuinfo.read_text())
        model = found[1] if found else model
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in ("numba", "numpy"))
    return f"{model}, {os.cpu_count()} cores; Python {platform.python_version()}, {versions}"


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    found = config.stash.get(FIGURES, [])
    if not found:
        return
    write = terminalreporter.write_line
    terminalreporter.section("figures (medians)")
    load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
    write(f"{dt.date.today()}: {_machine()}; load {load}")
    width = max(len(figure.name) for figure in found)
    for figure in found:
        missed = "" if figure.met else "  MISSED"
        write(f"{figure.name:{width}}  {figure.value:>24}  {figure.wanted:>20}{missed}")
