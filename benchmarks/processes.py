"""Runs of `sweep` in processes of their own, as a user starts them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent
SPECS = ROOT / "catalogs/sweeps"
CHILD = Path(__file__).with_name("child.py")


@dataclass(frozen=True)
class Ended:
    """A process that has ended: what it printed, how long it took and what it used."""

    stdout: str
    wall_s: float
    cpu_s: float
    peak_bytes: int


# Runs `sweep ARGUMENTS` with the compiled kernels at hand.
Sweep = Callable[..., Ended]


def sweep_process(cache: Path, report: Path, *arguments: object) -> Ended:
    """Run `sweep ARGUMENTS` with a cache folder, by child.py, which writes the file `report`."""
    command = [sys.executable, CHILD, report, *arguments]
    started_s = time.perf_counter()
    ended = subprocess.run(
        [str(word) for word in command],
        check=False,
        env={**os.environ, "XDG_CACHE_HOME": str(cache)},
        capture_output=True,
        text=True,
    )
    wall_s = time.perf_counter() - started_s
    assert ended.returncode == 0, ended.stderr
    return Ended(ended.stdout, wall_s, **json.loads(report.read_text()))
