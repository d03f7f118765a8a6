"""How long until something happens: the help, the first compile, and a later start to a number?"""

from __future__ import annotations

import itertools
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from processes import SPECS, sweep_process

FIRST_NUMBER = Path(__file__).with_name("first_number.py")


def first_number(cache: Path) -> dict[str, Any]:
    """What first_number.py prints, and the seconds of the whole process."""
    started_s = time.perf_counter()
    ended = subprocess.run(
        [sys.executable, FIRST_NUMBER, SPECS / "deepseek-r1-one-day.toml"],
        env={**os.environ, "XDG_CACHE_HOME": str(cache)},
        check=True,
        capture_output=True,
        text=True,
    )
    return {**json.loads(ended.stdout), "process_s": time.perf_counter() - started_s}


@pytest.fixture
def new_caches(tmp_path: Path) -> Iterator[Path]:
    return (tmp_path / f"cache{number}" for number in itertools.count())


@pytest.mark.benchmark(group="start")
def test_help(timed, figures):
    command = [Path(sys.executable).with_name("sweep"), "--help"]
    ended, median_s = timed(
        lambda: subprocess.run(command, check=True, capture_output=True, text=True),
        rounds=25,
        warmup_rounds=3,
    )
    assert "Usage: sweep" in ended.stdout
    assert ended.stdout.count("\n  ") > 8
    figures.seconds("sweep --help, whole process", median_s, below=0.15)


@pytest.mark.benchmark(group="start")
def test_later_start(warm_cache, timed, figures):
    found = []
    _, median_s = timed(lambda: found.append(first_number(warm_cache)), rounds=11)
    assert len({one["sha256"] for one in found}) == 1
    phases = ("imports_s", "catalogs_s", "plan_s", "decide_s")
    medians = {name: statistics.median(one[name] for one in found) for name in phases}
    after_imports_s = sum(medians[name] for name in phases[1:])
    figures.seconds("later start: imports to first number", after_imports_s, below=1.0)
    for name in phases:
        figures.seconds(f"  {name.removesuffix('_s')}", medians[name])
    figures.seconds("  whole process", median_s)


@pytest.mark.benchmark(group="compile")
def test_first_start(warm_cache, new_caches, timed, figures):
    found = []
    _, median_s = timed(
        lambda: found.append(first_number(next(new_caches))), rounds=3, warmup_rounds=0
    )
    assert {one["sha256"] for one in found} == {first_number(warm_cache)["sha256"]}
    compile_s = statistics.median(one["decide_s"] for one in found)
    figures.seconds("first compile, empty cache, one kernel", compile_s, below=20.0)
    figures.seconds("  whole process to first number", median_s)


@pytest.mark.benchmark(group="compile")
def test_warmup(tmp_path, new_caches, timed, figures):
    ended, median_s = timed(
        lambda: sweep_process(next(new_caches), tmp_path / "report.json", "warmup", "--json"),
        rounds=3,
        warmup_rounds=0,
    )
    assert list(Path(json.loads(ended.stdout)["cache_folder"]).rglob("*.nbc"))
    figures.seconds("sweep warmup, empty cache, all kernels", median_s, below=20.0)
