"""Arrays of the kernels to files: Parquet parts, tables, receipts, and the manifest last."""

from __future__ import annotations

import base64
import datetime as dt
import hashlib
import json
import threading
import time
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from sweep.columns import DIMENSIONS, FACTS, NO_KNOB, VERDICTS, arrow_schema
from sweep.errors import RunError
from sweep.manifest import (
    AGAIN,
    FORMAT,
    MANIFEST_NAME,
    PARTIAL_SUFFIX,
    Entry,
    Manifest,
    Part,
    RunIdentity,
    check_format,
    fault,
    load_manifest,
    read_json,
    sync_folder,
    write_durably,
    write_error,
)
from sweep.run_lock import LOCK_NAME, RunLock

IDENTITY_NAME = "identity.json"
# Rows of a row group: small enough that a question's rows are found without reading a part whole.
ROW_GROUP_ROWS = 1 << 18
# Columns with few values in a row group; for the others a dictionary costs time and saves nothing.
_FEW_VALUES = ["workload", "verdict"]
_DERIVED_FILES = ("results.duckdb", "views.sql")
Columns = Mapping[str, Any]


class Run:
    """A run folder being written; made by `open_run`, freed by `with` or `close`."""

    def __init__(
        self,
        folder: Path,
        identity: RunIdentity,
        part_count: int,
        lock: RunLock,
        done: list[Part],
        finished: Manifest | None,
    ) -> None:
        self.folder = folder
        self.identity = identity
        self.part_count = part_count
        self.started = dt.datetime.now(dt.UTC).isoformat(timespec="seconds")
        self._clock = time.monotonic()
        self._lock = lock
        self._parts = {part.index: part for part in done}
        # Parts of an earlier process whose bytes are yet to be compared with their hashes.
        self._unread = frozenset(self._parts) if finished is None else frozenset()
        self.finished = finished
        self._tables: dict[str, Entry] = {}
        self._guard = threading.Lock()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Release the lock; what is finished stays for the next run."""
        self._lock.release()

    @property
    def finished_parts(self) -> set[int]:
        """Indices of the parts that need no computing."""
        with self._guard:
            return set(self._parts)

    @property
    def finished_scenarios(self) -> int:
        """Scenarios the finished parts have decided."""
        with self._guard:
            return sum(part.scenarios for part in self._parts.values())

    def write_part(
        self, index: int, columns: Columns, scenarios: int, verdicts: Sequence[int] | np.ndarray
    ) -> None:
        """Write one part of the facts; any thread. `verdicts` counts scenarios by code.

        `columns` holds one array for each column of the facts, ordered by workload, setup, knob; the
        bytes depend on nothing else. Raises RunError if the disk or the folder fails.
        """
        if not 0 <= index < self.part_count:
            raise ValueError(f"part {index} of {self.part_count}")
        counts = {name: int(count) for name, count in zip(VERDICTS, verdicts, strict=True)}
        data, entry = _encode(FACTS, part_file(index), columns)
        write_durably(self.folder / entry.file, data)
        part = Part(**asdict(entry), index=index, scenarios=int(scenarios), verdicts=counts)
        receipt = {"format": FORMAT, **asdict(part), "knobs": _pack(columns["knob"])}
        write_durably(self.folder / receipt_file(index), json.dumps(receipt).encode())
        with self._guard:
            self._parts[index] = part

    def write_table(self, name: str, columns: Columns) -> None:
        """Write one dimension table. Raises RunError if the disk or the folder fails."""
        data, entry = _encode(name, f"{name}.parquet", columns)
        write_durably(self.folder / entry.file, data)
        with self._guard:
            self._tables[name] = entry

    def seen_knobs(self) -> np.ndarray:
        """Ids of the knobs the finished parts mention, ascending, from their receipts."""
        seen = np.zeros(0, dtype=bool)
        for index in sorted(self.finished_parts):
            bits = _unpack(read_json(self.folder / receipt_file(index))["knobs"])
            if len(bits) > len(seen):
                seen, bits = bits, seen
            seen[: len(bits)] |= bits
        return np.flatnonzero(seen).astype(np.uint32)

    def commit(
        self, knob_columns: Callable[[np.ndarray], Columns], *, threads: int = 0
    ) -> Manifest:
        """Write the knobs that facts mention, then the manifest: from here on the run is finished.

        `knob_columns` gives the columns of the knob table for ascending ids. Parts of an earlier
        process are read back and compared with their hashes. Raises RunError if a part is missing or
        damaged (its receipt is removed, so that the next run recomputes it and nothing else).
        """
        self._require_parts()
        self.write_table("knobs", knob_columns(self.seen_knobs()))
        missing = [name for name in DIMENSIONS if name not in self._tables]
        if missing:
            raise ValueError(f"tables not written: {', '.join(missing)}")
        parts = tuple(self._parts[index] for index in range(self.part_count))
        manifest = Manifest(
            engine_version=self.identity.engine_version,
            spec=json.loads(self.identity.spec),
            hashes=self.identity.hashes(),
            versions=dict(self.identity.versions),
            scenarios=sum(part.scenarios for part in parts),
            rows=sum(part.rows for part in parts),
            verdicts={name: sum(part.verdicts[name] for part in parts) for name in VERDICTS},
            parts=parts,
            tables=dict(sorted(self._tables.items())),
            started=self.started,
            seconds=round(time.monotonic() - self._clock, 3),
            threads=threads,
        )
        write_durably(self.folder / MANIFEST_NAME, manifest.to_json().encode())
        return manifest

    def _require_parts(self) -> None:
        left = sorted(set(range(self.part_count)) - self.finished_parts)
        if left:
            raise RunError(
                f"{self.folder}: {len(left)} of {self.part_count} parts are missing, the first is "
                f"{part_file(left[0])}; {AGAIN}: it computes only those"
            )
        damaged = []
        for index in sorted(self._unread):
            if found := fault(self.folder, self._parts[index], read=True):
                (self.folder / receipt_file(index)).unlink(missing_ok=True)
                damaged.append(f"{self.folder / part_file(index)}: {found}")
        if damaged:
            raise RunError("\n".join([*damaged, f"{AGAIN}: it recomputes only what is damaged"]))


def open_run(folder: Path, identity: RunIdentity, *, part_count: int, resume: bool = True) -> Run:
    """Take the folder for writing, new or with the finished parts of the same run.

    With `resume` false the files of an earlier run in it are removed first, whatever it was. Raises
    RunError if the folder is a file, not writable, in use, of another run or of a newer sweep, or
    holds other files.
    """
    folder = Path(folder)
    _make_folder(folder)
    lock = RunLock(folder)
    try:
        if not resume:
            _clear(folder)
        path = folder / IDENTITY_NAME
        if path.exists():
            manifest = _former_manifest(folder)
            _refuse_other_run(folder, identity, part_count, manifest is not None)
            done = _finished_parts(folder, part_count, manifest)
            if manifest and (len(done) < part_count or _any_fault(folder, manifest)):
                manifest = None
        else:
            _refuse_other_files(folder)
            content = {
                "format": FORMAT,
                "engine_version": identity.engine_version,
                "hashes": identity.hashes(),
                "part_count": part_count,
            }
            write_durably(path, json.dumps(content, indent=1).encode())
            manifest, done = None, []
        for stray in (*folder.glob(f"*{PARTIAL_SUFFIX}"), *folder.glob(f"facts/*{PARTIAL_SUFFIX}")):
            stray.unlink(missing_ok=True)
        return Run(folder, identity, part_count, lock, done, manifest)
    except OSError as error:
        lock.release()
        raise write_error(folder, error) from error
    except BaseException:
        lock.release()
        raise


def part_file(index: int) -> str:
    """Where a part lies in its run folder."""
    return f"facts/part-{index:05d}.parquet"


def receipt_file(index: int) -> str:
    """Where a part's receipt lies: rows, counts and hash, so that a resumed run need not read it."""
    return f"facts/part-{index:05d}.json"


def _encode(name: str, file: str, columns: Columns) -> tuple[Any, Entry]:
    schema = arrow_schema(name)
    if set(columns) != set(schema.names):
        odd = sorted(set(columns) ^ set(schema.names))
        raise ValueError(f"{name}: columns missing or unknown: {', '.join(odd)}")
    table = pa.table([pa.array(columns[f.name], f.type) for f in schema], schema=schema)
    for field in schema:
        if not field.nullable and table[field.name].null_count:
            raise ValueError(f"{name}.{field.name}: has nulls")
    stream = pa.BufferOutputStream()
    pq.write_table(
        table,
        stream,
        row_group_size=ROW_GROUP_ROWS,
        compression="zstd",
        compression_level=1,
        use_dictionary=_FEW_VALUES if name == FACTS else True,
        write_statistics=True,
    )
    data = stream.getvalue()
    digest = hashlib.sha256(memoryview(data)).hexdigest()
    return data, Entry(file, table.num_rows, data.size, digest)


def _pack(ids: np.ndarray) -> str:
    """The set of ids as text: a bit per id, compressed."""
    ids = np.asarray(ids)
    ids = ids[ids != NO_KNOB]
    seen = np.zeros(int(ids.max()) + 1 if len(ids) else 0, dtype=bool)
    seen[ids] = True
    return base64.b64encode(zlib.compress(np.packbits(seen).tobytes(), 1)).decode()


def _unpack(text: str) -> np.ndarray:
    packed = np.frombuffer(zlib.decompress(base64.b64decode(text)), dtype=np.uint8)
    return np.unpackbits(packed).astype(bool)


def _make_folder(folder: Path) -> None:
    if folder.exists() and not folder.is_dir():
        raise RunError(f"{folder}: is a file; choose a folder for the results")
    try:
        (folder / "facts").mkdir(parents=True, exist_ok=True)
        sync_folder(folder)
    except FileExistsError as error:
        raise RunError(f"{error.filename}: is a file; choose another folder") from error
    except NotADirectoryError as error:
        raise RunError(f"{folder}: a part of this path is a file; choose another folder") from error
    except OSError as error:
        raise write_error(folder, error) from error


def _former_manifest(folder: Path) -> Manifest | None:
    """The manifest of the finished run in the folder; None if there is none or it is damaged."""
    path = folder / MANIFEST_NAME
    try:
        content = json.loads(path.read_bytes())
    except (FileNotFoundError, ValueError):
        return None
    if isinstance(content, dict) and isinstance(content.get("format"), int):
        check_format(path, content)  # one of a newer sweep is refused, not taken for damaged
    try:
        return load_manifest(folder)
    except RunError:
        return None


def _refuse_other_run(folder: Path, identity: RunIdentity, part_count: int, finished: bool) -> None:
    path = folder / IDENTITY_NAME
    before = read_json(path)
    check_format(path, before)
    found, hashes = before.get("hashes"), identity.hashes()
    if not isinstance(found, dict):
        raise RunError(f"{path}: is damaged; choose another folder, or start over with --fresh")
    subjects = {
        "spec": "another spec",
        "catalogs": "other catalogs",
        "kernels": "another version of the formulas",
        "versions": "other library versions",
    }
    differing = [subjects[name] for name in hashes if found.get(name) != hashes[name]]
    if before.get("part_count") != part_count:
        differing.append(f"{before.get('part_count')} parts where this one has {part_count}")
    if differing:
        state = "a finished run" if finished else "an unfinished run"
        raise RunError(
            f"{folder}: holds {state} of {' and '.join(differing)}, which is not mixed with this "
            f"one; choose another folder with --out, or start this one over with --fresh"
        )


def _refuse_other_files(folder: Path) -> None:
    known = {LOCK_NAME, "facts"}
    other = sorted(
        path.name
        for path in folder.iterdir()
        if path.name not in known
        and not path.name.startswith(".")
        and not path.name.endswith(PARTIAL_SUFFIX)
    )
    if not other and not any((folder / "facts").glob("*[!p]")):
        return
    what = ", ".join(other[:3]) or "facts of an unknown run"
    raise RunError(
        f"{folder}: holds files that are no run of sweep ({what}); choose an empty or new folder"
    )


def _finished_parts(folder: Path, part_count: int, manifest: Manifest | None) -> list[Part]:
    """The parts with a receipt that still have the size they were written with.

    Of a finished run every byte is compared too: whoever runs it again wants it repaired.
    """
    done = []
    for index in range(part_count):
        try:
            content = json.loads((folder / receipt_file(index)).read_bytes())
            del content["format"], content["knobs"]
            part = Part(**content)
        except (OSError, ValueError, TypeError, KeyError):
            continue  # no receipt, or none that can be believed: the part is computed again
        if part.index == index and fault(folder, part, read=manifest is not None) is None:
            done.append(part)
    return done


def _any_fault(folder: Path, manifest: Manifest) -> bool:
    return any(fault(folder, entry, read=True) for entry in manifest.tables.values())


def _clear(folder: Path) -> None:
    """Remove an earlier run's files, the manifest first, its identity last, and nothing else."""
    (folder / MANIFEST_NAME).unlink(missing_ok=True)
    for pattern in ("part-*.parquet", "part-*.json", f"*{PARTIAL_SUFFIX}"):
        for path in (folder / "facts").glob(pattern):
            path.unlink(missing_ok=True)
    for name in (*(f"{table}.parquet" for table in DIMENSIONS), *_DERIVED_FILES, IDENTITY_NAME):
        (folder / name).unlink(missing_ok=True)
