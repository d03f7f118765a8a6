"""A run folder being written: parts and tables as they come, the manifest last."""

from __future__ import annotations

import dataclasses
import datetime as dt
import json
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np

from sweep.columns import DIMENSIONS, FACTS, VERDICTS
from sweep.errors import RunError
from sweep.manifest import (
    AGAIN,
    FORMAT,
    MANIFEST_NAME,
    Entry,
    Manifest,
    Part,
    RunIdentity,
    fault,
    read_json,
    sync_folder,
    write_durably,
    write_error,
)
from sweep.run_lock import RunLock
from sweep.shards import Shard
from sweep.sink import folder as folders
from sweep.sink.encode import Columns, encode, pack_ids, unpack_ids
from sweep.sink.folder import part_file, receipt_file


class Incomplete(RunError):
    """Parts are missing or damaged: what to say, their numbers, and of how many shards the others are."""

    def __init__(
        self,
        lines: Sequence[str],
        missing: Sequence[int],
        damaged: Sequence[int],
        part_count: int,
        shard_count: int | None,
    ) -> None:
        super().__init__("\n".join(lines))
        self.damage = tuple(lines[: len(damaged)])
        self.missing = tuple(missing)
        self.damaged = tuple(damaged)
        self.part_count = part_count
        self.shard_count = shard_count


class Run:
    """A run folder being written; made by `open_run`, freed by `with` or `close`.

    That of a `shard` takes the shard's parts alone, and neither tables nor a manifest.
    """

    def __init__(
        self,
        folder: Path,
        identity: RunIdentity,
        part_count: int,
        lock: RunLock,
        done: list[Part],
        finished: Manifest | None,
        shard: Shard | None = None,
    ) -> None:
        self.shard = shard
        self.folder = folder
        self.identity = identity
        self.part_count = part_count
        self.indices = shard.parts(part_count) if shard else range(part_count)
        self._sha256 = identity.sha256(part_count)
        self.started = dt.datetime.now(dt.UTC).isoformat(timespec="seconds")
        self._clock = time.monotonic()
        self._lock = lock
        self._parts = {part.index: part for part in done}
        # Parts of an earlier process whose bytes are yet to be compared with their hashes.
        self._unread = frozenset(self._parts) if finished is None else frozenset()
        self._damaged: dict[int, str] = {}
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

    def fetch_parts(self, sources: Sequence[Path]) -> int:
        """Copy parts that are missing here from other folders of the same run; how many there were.

        Raises RunError if the disk or the folder fails.
        """
        fetched = 0
        for index in sorted(set(self.indices) - self.finished_parts):
            for source in sources:
                part = folders.finished_part(source, self.identity, self.part_count, index)
                if part is None:
                    continue
                if found := folders.copy_part(source, self.folder, part):
                    self._damaged.setdefault(index, f"{source / part.file}: {found}")
                    continue
                with self._guard:
                    self._parts[index] = part
                fetched += 1
                break
        return fetched

    def check_parts(self) -> None:
        """Compare the parts of earlier processes with their hashes.

        A damaged part is finished no longer: its receipt is removed, so that it is computed again.
        """
        for index in sorted(self._unread):
            if found := fault(self.folder, self._parts[index], read=True):
                (self.folder / receipt_file(index)).unlink(missing_ok=True)
                del self._parts[index]
                self._damaged[index] = f"{self.folder / part_file(index)}: {found}"
        self._unread = frozenset()

    @property
    def finished_parts(self) -> set[int]:
        """Indices of the parts that need no computing."""
        with self._guard:
            return set(self._parts)

    @property
    def parts(self) -> list[Part]:
        """The finished parts, in order."""
        with self._guard:
            return [self._parts[index] for index in sorted(self._parts)]

    @property
    def finished_scenarios(self) -> int:
        """Scenarios the finished parts have decided."""
        with self._guard:
            return sum(part.scenarios for part in self._parts.values())

    def write_part(
        self, index: int, columns: Columns, scenarios: int, verdicts: Sequence[int] | np.ndarray
    ) -> None:
        """Write one part of the facts; any thread. `verdicts` counts scenarios by code.

        `columns` holds one array for each column of the facts, ordered by workload, setup, knob;
        the bytes depend on nothing else. Raises RunError if the disk or the folder fails.
        """
        if index not in self.indices:
            raise ValueError(f"part {index} of {self.part_count}")
        counts = {name: int(count) for name, count in zip(VERDICTS, verdicts, strict=True)}
        data, entry = encode(FACTS, part_file(index), columns)
        tag = self.shard.tag if self.shard else ""
        write_durably(self.folder / entry.file, data, tag=tag)
        part = Part(
            **dataclasses.asdict(entry), index=index, scenarios=int(scenarios), verdicts=counts
        )
        receipt = {
            "format": FORMAT,
            "run": self._sha256,
            "shard": str(self.shard) if self.shard else None,
            **dataclasses.asdict(part),
            "knobs": pack_ids(columns["knob"]),
        }
        text = json.dumps(receipt).encode()
        # Not synced: a receipt lost in a power cut costs one part, a sync of each costs more.
        write_durably(self.folder / receipt_file(index), text, sync=False, tag=tag)
        with self._guard:
            self._parts[index] = part

    def write_table(self, name: str, columns: Columns) -> None:
        """Write one dimension table. Raises RunError if the disk or the folder fails."""
        data, entry = encode(name, f"{name}.parquet", columns)
        write_durably(self.folder / entry.file, data)
        with self._guard:
            self._tables[name] = entry

    def seen_knobs(self) -> np.ndarray:
        """Ids of the knobs the finished parts mention, ascending, from their receipts."""
        seen = np.zeros(0, dtype=np.uint32)
        for index in sorted(self.finished_parts):
            ids = unpack_ids(read_json(self.folder / receipt_file(index))["knobs"])
            seen = np.union1d(seen, ids)
        return seen

    def commit(
        self, knob_columns: Callable[[np.ndarray], Columns], *, threads: int = 0
    ) -> Manifest:
        """Write the knobs that facts mention, then the manifest: from here on the run is finished.

        `knob_columns` gives the columns of the knob table for ascending ids. Parts of an earlier
        process are read back and compared with their hashes. Raises RunError if a part is missing
        or damaged (its receipt is removed, so that the next run recomputes it and nothing else).
        """
        self.require_parts()
        self.write_table("knobs", knob_columns(self.seen_knobs()))
        missing = [name for name in DIMENSIONS if name not in self._tables]
        if missing:
            raise ValueError(f"tables not written: {', '.join(missing)}")
        parts = tuple(self._parts[index] for index in range(self.part_count))
        tables = dict(sorted(self._tables.items()))
        if self.finished and self.finished.parts == parts:
            # Nothing was computed: what the manifest says of that stays, prices may be new.
            manifest = dataclasses.replace(self.finished, tables=tables)
            if manifest == self.finished:
                return manifest
        else:
            manifest = Manifest(
                engine_version=self.identity.engine_version,
                spec=json.loads(self.identity.spec),
                hashes=self.identity.hashes(),
                versions=dict(self.identity.versions),
                scenarios=sum(part.scenarios for part in parts),
                rows=sum(part.rows for part in parts),
                verdicts={name: sum(part.verdicts[name] for part in parts) for name in VERDICTS},
                parts=parts,
                tables=tables,
                started=self.started,
                seconds=round(time.monotonic() - self._clock, 3),
                threads=threads,
            )
        for written in (self.folder / "facts", self.folder):
            sync_folder(written)  # what the manifest names is there before it is
        write_durably(self.folder / MANIFEST_NAME, manifest.to_json().encode())
        sync_folder(self.folder)
        return manifest

    def require_parts(self) -> None:
        """Raise Incomplete unless every part is finished and, if of an earlier process, undamaged."""
        self.check_parts()
        left = sorted(set(self.indices) - self.finished_parts)
        if not left:
            return
        for index in left:
            if found := folders.part_fault(self.folder, self.identity, self.part_count, index):
                self._damaged.setdefault(index, f"{self.folder / part_file(index)}: {found}")
        damaged = [index for index in left if index in self._damaged]
        missing = [index for index in left if index not in self._damaged]
        lines = [self._damaged[index] for index in damaged]
        if missing:
            lines.append(
                f"{self.folder}: {len(missing)} of {self.part_count} parts are missing, the first "
                f"is {part_file(missing[0])}; {AGAIN}: it computes only those"
            )
        else:
            lines.append(f"{AGAIN}: it recomputes only what is damaged")
        count = folders.shard_count(self.folder, self.identity, self.part_count)
        raise Incomplete(lines, missing, damaged, self.part_count, count)


def open_run(
    folder: Path,
    identity: RunIdentity,
    *,
    part_count: int,
    resume: bool = True,
    shard: Shard | None = None,
) -> Run:
    """Take the folder for writing, new or with the finished parts of the same run.

    With `resume` false the files of an earlier run in it are removed first, whatever run that was.
    A `shard` takes its share alone: others may write there at the same time. Raises RunError if the
    folder is a file, not writable, in use, of another run or of a newer sweep, or holds other files.
    """
    folder = Path(folder)
    folders.make(folder)
    lock = RunLock(folder, shard)
    try:
        if shard:
            done = folders.take_shard(folder, identity, part_count, shard)
            return Run(folder, identity, part_count, lock, done, None, shard)
        done, manifest = folders.take(folder, identity, part_count, fresh=not resume)
        return Run(folder, identity, part_count, lock, done, manifest)
    except OSError as error:
        lock.release()
        raise write_error(folder, error) from error
    except BaseException:
        lock.release()
        raise
