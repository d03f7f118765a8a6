"""Measured and traced points as files give them: one row a training step or a served request."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from sweep.errors import CatalogError, nearest
from sweep.units import GIB

# Columns a row cannot be predicted without; the others may be missing or empty (unknown).
REQUIRED_COLUMNS = ("id", "model", "method")
COLUMNS = (
    "id", "kind", "grade", "task", "model", "params_b", "method", "stack", "engine",
    "weight_dtype", "double_quant", "compute_dtype", "autocast", "lora_rank", "lora_targets",
    "optimizer", "checkpointing", "attention", "cross_entropy", "micro_batch", "seq_len",
    "grad_accum", "gpu", "gpu_memory_gb", "gpu_count", "zero_stage", "tp", "pp", "cp", "ep",
    "offload", "measure", "scope", "peak_gib", "unit_certainty", "device_used_gib",
    "reserved_gib", "resident_gib", "source", "quoted", "framework", "parallelism",
    "precision_as_stated", "optimizer_as_stated", "packing", "notes", "grade_reason",
    "adapter_dtype", "lora_dropout", "kbit_prep", "master_weights", "keep_outputs", "use_cache",
    "fsdp_policy", "reshard_after_forward", "images", "vision_trained",
)  # fmt: skip


class Unpredictable(Exception):
    """Why a point has no prediction; the text is its reason."""


@dataclass(frozen=True)
class Point:
    """One row of a points file: its words by column ("" where empty or missing) and its line."""

    words: Mapping[str, str]
    line: int

    def __getitem__(self, column: str) -> str:
        return self.words.get(column, "")

    def number(self, column: str, default: float | None = None) -> float:
        """A number of the row; raises ValueError naming the column when it is none."""
        text = self[column].strip()
        if not text:
            if default is None:
                raise ValueError(f"{column} is empty")
            return default
        try:
            return float(text)
        except ValueError:
            raise ValueError(f"{column}: found {text!r}, allowed a number") from None

    def whole(self, column: str, default: int | None = None) -> int:
        """A positive whole number of the row (0 is allowed for zero_stage)."""
        found = self.number(column, default)
        if found != int(found) or found < (0 if column == "zero_stage" else 1):
            raise ValueError(f"{column}: found {self[column]!r}, allowed a positive whole number")
        return int(found)

    def flag(self, column: str, default: bool = False) -> bool:
        """A yes or no of the row."""
        text = self[column].strip().casefold()
        if text in ("y", "yes", "true", "1"):
            return True
        if text in ("n", "no", "false", "0"):
            return False
        if not text:
            return default
        raise ValueError(f"{column}: found {self[column]!r}, allowed y or n")

    @property
    def measured_bytes(self) -> float | None:
        """The measured peak, None for a row without one (oom, fits) [bytes]."""
        text = self["peak_gib"].strip()
        return float(text) * GIB if text else None


def read_points(path: Path) -> list[Point]:
    """The rows of a points file (CSV), in order; columns as sweep's evidence catalog has them.

    Unknown columns are carried along. Raises CatalogError for a file that cannot be read as such.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise CatalogError(f"{path}: cannot be read: {reason}") from None
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        header = [name.strip() for name in next(reader, [])]
        missing = [name for name in REQUIRED_COLUMNS if name not in header]
        if missing:
            hints = [
                f"{name} (found {close!r})" if (close := nearest(name, header)) else name
                for name in missing
            ]
            raise CatalogError(
                f"{path}:1: columns missing: {', '.join(hints)}; a points file has a header line "
                f"and the columns of catalogs/evidence/memory.csv"
            )
        points = []
        for row in reader:
            if not any(cell.strip() for cell in row):
                continue
            if len(row) != len(header):
                raise CatalogError(
                    f"{path}:{reader.line_num}: found {len(row)} cells, allowed {len(header)} as in "
                    "the header; quote cells that hold commas"
                )
            words = {name: cell.strip() for name, cell in zip(header, row, strict=True)}
            points.append(Point(words, reader.line_num))
    except csv.Error as error:
        raise CatalogError(f"{path}:{reader.line_num}: {error}") from None
    return points
