"""How fast this machine decides: what its last run measured, or a figure shipped with sweep."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path

# Scenarios per second and thread by what is kept, on a 2-core virtual machine (AMD EPYC), 2026-11-21.
SHIPPED_RATE_PER_S = {"best": 25e6, "feasible": 2e6, "all": 2e6}
# Runs that decide less spend too much of their time on starting to say anything about speed.
_LEAST_SCENARIOS = 10_000_000


@dataclass(frozen=True)
class Speed:
    """Scenarios decided per second by one thread; `measured` here, or a shipped figure."""

    rate_per_s: float
    measured: bool


def _file() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser() / "sweep" / "speed.json"


def known_speed(keep: str) -> Speed:
    """The speed to expect of a run that keeps these rows."""
    try:
        rate = json.loads(_file().read_text())[keep]
        if isinstance(rate, float) and rate > 0.0:
            return Speed(rate, measured=True)
    except (OSError, ValueError, KeyError, TypeError):
        pass
    return Speed(SHIPPED_RATE_PER_S[keep], measured=False)


def remember_speed(keep: str, scenarios: int, seconds: float, threads: int) -> None:
    """Note what a run measured; silently nothing where the cache cannot be written."""
    if scenarios < _LEAST_SCENARIOS or seconds <= 0.0:
        return
    file = _file()
    try:
        content = json.loads(file.read_text())
    except (OSError, ValueError):
        content = {}
    if not isinstance(content, dict):
        content = {}
    content[keep] = scenarios / seconds / threads
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        partial = file.with_suffix(f".{os.getpid()}.tmp")
        partial.write_text(json.dumps(content))
        partial.replace(file)
    except OSError:
        pass


def usable_threads() -> int:
    """Processors this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
