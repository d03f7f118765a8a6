"""Derive catalogs/memory_bands.csv from the shipped evidence: python benchmarks/derive_bands.py

Run it after a change of the physics or of the evidence; the bands say how far measured peaks lie
from predicted ones (sweep/evidence/calibrate.py).
"""

from __future__ import annotations

import csv
import datetime as dt
from pathlib import Path

from sweep.catalogs import load_catalogs
from sweep.catalogs.folder import shipped_folder
from sweep.evidence.calibrate import calibrate
from sweep.evidence.predict import predict_point
from sweep.evidence.summary import read_evidence

HEADER = (
    "stack", "method", "figure", "low", "high", "points", "sources", "basis", "source", "checked",
)  # fmt: skip
# For stacks without a measured point: the spread of the published stacks about their first rules.
NO_EVIDENCE = ("*", "*", "*", 0.75, 1.35, 0, 0, "no evidence: assumed", "sweep-assumed")


def main() -> None:
    """Write the bands beside the other catalogs."""
    catalogs = load_catalogs()
    points = read_evidence(None, catalogs)
    bands = calibrate(predict_point(point, catalogs) for point in points)
    today = dt.date.today().isoformat()
    path: Path = shipped_folder() / "memory_bands.csv"
    with path.open("w", newline="", encoding="utf-8") as handle:
        writer = csv.writer(handle, lineterminator="\n")
        writer.writerow(HEADER)
        writer.writerow((*NO_EVIDENCE, today))
        for band in bands:
            writer.writerow(
                (
                    band.stack, band.method, band.figure, band.low, band.high, band.points,
                    band.sources, band.basis,
                    "sweep-evidence", today,
                )
            )  # fmt: skip


if __name__ == "__main__":
    main()
