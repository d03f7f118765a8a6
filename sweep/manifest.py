"""What a run folder holds and how it is trusted: the manifest, its hashes, and durable writes."""

from __future__ import annotations

import errno
import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sweep.errors import RunError

FORMAT = 1
MANIFEST_NAME = "manifest.json"
PARTIAL_SUFFIX = ".tmp"
AGAIN = "run the same command again"


@dataclass(frozen=True)
class RunIdentity:
    """What the bytes of a run depend on.

    `spec` is the canonical text of the whole spec, which the manifest keeps, `deciding` the part of
    it that decides facts (all of it if empty). `catalogs_sha256` covers the catalogs that decide
    facts (not the offers), `kernels_sha256` the kernels' sources, `versions` the libraries.
    """

    spec: str
    catalogs_sha256: str
    kernels_sha256: str
    versions: Mapping[str, str]
    engine_version: str
    deciding: str = ""

    def hashes(self) -> dict[str, str]:
        """What two runs must share to be one: SHA-256 by subject."""
        versions = json.dumps(dict(self.versions), sort_keys=True)
        return {
            "spec": hashlib.sha256((self.deciding or self.spec).encode()).hexdigest(),
            "catalogs": self.catalogs_sha256,
            "kernels": self.kernels_sha256,
            "versions": hashlib.sha256(versions.encode()).hexdigest(),
        }

    def sha256(self, part_count: int) -> str:
        """All of that and the number of parts as one hash: receipts bear it, parts of other runs do not."""
        text = json.dumps([self.hashes(), part_count], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()


@dataclass(frozen=True)
class Entry:
    """A file of a run: its path in the folder, its rows, its size and its SHA-256."""

    file: str
    rows: int
    size_bytes: int
    sha256: str


@dataclass(frozen=True)
class Part(Entry):
    """A part of the facts: also what it decided, by verdict."""

    index: int
    scenarios: int
    verdicts: Mapping[str, int]


@dataclass(frozen=True)
class Manifest:
    """A finished run: what it is of, what it decided, and every file that belongs to it."""

    engine_version: str
    spec: Any
    hashes: Mapping[str, str]
    versions: Mapping[str, str]
    scenarios: int
    rows: int
    verdicts: Mapping[str, int]
    parts: tuple[Part, ...]
    tables: Mapping[str, Entry]
    started: str
    seconds: float
    threads: int
    format: int = FORMAT

    def to_json(self) -> str:
        """The text of manifest.json."""
        return json.dumps(asdict(self), indent=1, sort_keys=True) + "\n"


def read_json(path: Path) -> Any:
    """The content of a small JSON file. Raises RunError naming the file if it cannot be read."""
    try:
        return json.loads(path.read_bytes())
    except OSError as error:
        raise RunError(f"{path}: cannot be read: {_reason(error)}") from error
    except ValueError as error:
        raise RunError(f"{path}: is damaged ({error}); delete it and {AGAIN}") from error


def check_format(path: Path, content: Any) -> None:
    """Refuse a file of a newer sweep, or one that is no object. Raises RunError."""
    found = content.get("format") if isinstance(content, dict) else None
    if not isinstance(found, int):
        raise RunError(f"{path}: is not a file of sweep; choose another folder")
    if found > FORMAT:
        version = content.get("engine_version", "unknown")
        raise RunError(
            f"{path}: written in format {found} by sweep {version}, but this sweep reads up to "
            f"format {FORMAT}; upgrade sweep, or choose another folder"
        )


def load_manifest(folder: Path) -> Manifest:
    """The manifest of a finished run. Raises RunError if there is none or it cannot be trusted."""
    path = folder / MANIFEST_NAME
    if not folder.exists():
        raise RunError(f"{folder}: there is no such folder; start a run with `sweep run`")
    if not folder.is_dir():
        raise RunError(f"{folder}: is a file, not the folder of a run")
    if not path.exists():
        if (folder / "facts").is_dir():
            what = f"the run is not finished; {AGAIN} to finish it (finished parts are kept)"
        else:
            what = "no run was written here"
        raise RunError(f"{folder}: has no {MANIFEST_NAME}: {what}")
    content = read_json(path)
    check_format(path, content)
    try:
        fields = dict(content)
        fields["parts"] = tuple(Part(**part) for part in content["parts"])
        fields["tables"] = {name: Entry(**entry) for name, entry in content["tables"].items()}
        return Manifest(**fields)
    except (TypeError, KeyError, AttributeError) as error:
        raise RunError(
            f"{path}: is damaged ({error}); delete it and {AGAIN}: finished parts are kept"
        ) from error


def fault(folder: Path, entry: Entry, *, read: bool) -> str | None:
    """What is wrong with a file of a run, or None; `read` compares the SHA-256 of its bytes too."""
    path = folder / entry.file
    try:
        size = path.stat().st_size
    except FileNotFoundError:
        return "is missing"
    except OSError as error:
        return f"cannot be read: {_reason(error)}"
    if size != entry.size_bytes:
        return f"holds {size:,} bytes, but {entry.size_bytes:,} were written"
    if read:
        try:
            with path.open("rb") as handle:
                found = hashlib.file_digest(handle, "sha256").hexdigest()
        except OSError as error:
            return f"cannot be read: {_reason(error)}"
        if found != entry.sha256:
            return "does not hold the bytes that were written (its SHA-256 differs)"
    return None


def require_intact(folder: Path, manifest: Manifest, *, read: bool = False) -> None:
    """Check every file the manifest names: sizes, and with `read` every byte. Raises RunError."""
    faults = [
        f"{folder / entry.file}: {found}"
        for entry in (*manifest.parts, *manifest.tables.values())
        if (found := fault(folder, entry, read=read))
    ]
    if faults:
        shown = faults[:5] + ([f"and {len(faults) - 5} more files"] if len(faults) > 5 else [])
        remedy = "it recomputes only what is damaged" if manifest.parts else "it starts afresh"
        raise RunError("\n".join(shown) + f"\n{AGAIN} (`sweep run`): {remedy}")


def write_durably(path: Path, data: Any, *, sync: bool = True, tag: str = "") -> None:
    """Write bytes to a temporary name, sync, rename: the file is whole or not there.

    A rename survives a power cut only after `sync_folder`; without `sync` neither do the bytes.
    Processes that may write the same file at a time have each a `tag` of their own.
    Raises RunError that says what to do if the disk is full or the folder cannot be written.
    """
    partial = path.with_name(
        f"{path.name}.{tag}{PARTIAL_SUFFIX}" if tag else path.name + PARTIAL_SUFFIX
    )
    try:
        with partial.open("wb", buffering=0) as handle:
            view = memoryview(data).cast("B")
            while view:
                view = view[handle.write(view) :]
            if sync:
                os.fsync(handle.fileno())
        partial.replace(path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise write_error(path, error) from error


def sync_folder(folder: Path) -> None:
    """Make the renames in a folder survive a power cut. Raises RunError if the disk fails."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # some network file systems refuse
            raise write_error(folder, error) from error
    finally:
        os.close(handle)


def write_error(path: Path, error: OSError) -> RunError:
    """A failed write as a message with its remedy."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        remedy = f"free some space there, then {AGAIN}: it keeps the finished parts"
        return RunError(f"{path}: the disk is full; {remedy}")
    if error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
        return RunError(
            f"{path}: cannot be written: {_reason(error)}; "
            f"choose another folder, or make this one writable"
        )
    return RunError(f"{path}: cannot be written: {_reason(error)}")


def _reason(error: OSError) -> str:
    return (error.strerror or str(error)).lower()
