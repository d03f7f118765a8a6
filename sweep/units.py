"""Conversions between the units of files and people and the SI units used inside."""

from __future__ import annotations

GIB = 1024.0**3
MIB = 1024.0**2
KIB = 1024.0
GB = 1e9
TFLOP = 1e12
HOUR_S = 3600.0
MINUTE_S = 60.0
GBIT_PER_S_BYTES = 1e9 / 8.0


def format_bytes(size_bytes: float) -> str:
    """A size as people read it: '18.9 GiB', '512 MiB', '40 B'."""
    for unit, scale in (("TiB", GIB * 1024.0), ("GiB", GIB), ("MiB", MIB), ("KiB", KIB)):
        if abs(size_bytes) >= scale:
            return f"{size_bytes / scale:,.1f} {unit}"
    return f"{size_bytes:,.0f} B"


def format_count(count: float) -> str:
    """A count as people read it: '1.25 G', '340 k', '17'."""
    for unit, scale in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if abs(count) >= scale:
            return f"{count / scale:.3g} {unit}"
    return f"{count:.0f}"


def format_seconds(seconds_s: float) -> str:
    """A duration as people read it: '3 min 20 s', '2.4 h', '16 days'."""
    if seconds_s < 1.0:
        return f"{seconds_s * 1e3:.0f} ms"
    if seconds_s < 90.0:
        return f"{seconds_s:.1f} s"
    if seconds_s < 5400.0:
        minutes, rest = divmod(seconds_s, 60.0)
        return f"{minutes:.0f} min {rest:.0f} s"
    if seconds_s < 72 * HOUR_S:
        return f"{seconds_s / HOUR_S:.1f} h"
    return f"{seconds_s / (24 * HOUR_S):,.1f} days"
