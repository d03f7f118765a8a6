"""What lies in a folder before a run writes there: nothing, this run's own parts, or another's."""

from __future__ import annotations

import json
from pathlib import Path

from sweep.columns import DIMENSIONS
from sweep.errors import RunError
from sweep.manifest import (
    FORMAT,
    MANIFEST_NAME,
    PARTIAL_SUFFIX,
    Manifest,
    Part,
    RunIdentity,
    check_format,
    fault,
    load_manifest,
    sync_folder,
    write_durably,
    write_error,
)
from sweep.run_lock import LOCK_NAME

IDENTITY_NAME = "identity.json"
# Receipts have a folder of their own, so that readers of Parquet can be pointed at facts.
_FOLDERS = ("facts", "receipts")
_ROOT_FILES = (*(f"{table}.parquet" for table in DIMENSIONS), "results.duckdb", "views.sql")


def part_file(index: int) -> str:
    """Where a part lies in its run folder."""
    return f"facts/part-{index:05d}.parquet"


def receipt_file(index: int) -> str:
    """Where a part's receipt lies: counts and hash, so that a resumed run need not read it."""
    return f"receipts/part-{index:05d}.json"


def make(folder: Path) -> None:
    """Make the folder if there is none. Raises RunError if it cannot be one."""
    if folder.exists() and not folder.is_dir():
        raise RunError(f"{folder}: is a file; choose a folder for the results")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        sync_folder(folder)
    except FileExistsError as error:
        raise RunError(f"{error.filename}: is a file; choose another folder") from error
    except NotADirectoryError as error:
        raise RunError(f"{folder}: a part of this path is a file; choose another folder") from error
    except OSError as error:
        raise write_error(folder, error) from error


def take(
    folder: Path, identity: RunIdentity, part_count: int, *, fresh: bool = False
) -> tuple[list[Part], Manifest | None]:
    """Finished parts in the folder, and the manifest if this very run is finished and whole.

    Marks a new folder as this run's; with `fresh` also one of an earlier run, whose files it
    removes. Raises RunError if the folder is another's.
    """
    manifest: Manifest | None = None
    done: list[Part] = []
    if not (folder / IDENTITY_NAME).exists():
        _refuse_other_files(folder)
        _write_identity(folder, identity, part_count)
    elif fresh:
        _clear(folder)
        _write_identity(folder, identity, part_count)
    else:
        manifest = _former_manifest(folder)
        _refuse_other_run(folder, identity, part_count, manifest)
        _write_identity(folder, identity, part_count)
        done = _finished_parts(folder, part_count, manifest)
        if manifest and (len(done) < part_count or _any_fault(folder, manifest)):
            manifest = None
    for name in _FOLDERS:
        (folder / name).mkdir(exist_ok=True)
    _remove_partial_files(folder)
    return done, manifest


def _write_identity(folder: Path, identity: RunIdentity, part_count: int) -> None:
    content = {
        "format": FORMAT,
        "engine_version": identity.engine_version,
        "hashes": identity.hashes(),
        "part_count": part_count,
    }
    write_durably(folder / IDENTITY_NAME, json.dumps(content, indent=1).encode())


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


def _refuse_other_run(
    folder: Path, identity: RunIdentity, part_count: int, manifest: Manifest | None
) -> None:
    path = folder / IDENTITY_NAME
    try:
        before = json.loads(path.read_bytes())
    except ValueError:
        before = None
    if isinstance(before, dict) and isinstance(before.get("hashes"), dict):
        check_format(path, before)
    elif manifest:
        before = {"hashes": manifest.hashes, "part_count": len(manifest.parts)}
    else:
        raise RunError(f"{path}: is damaged; choose another folder, or start over with --fresh")
    found, hashes = before["hashes"], identity.hashes()
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
        state = "a finished run" if manifest else "an unfinished run"
        raise RunError(
            f"{folder}: holds {state} of {' and '.join(differing)}, which is not mixed with this "
            f"one; choose another folder with --out, or start this one over with --fresh"
        )


def _refuse_other_files(folder: Path) -> None:
    known = {LOCK_NAME, *_FOLDERS, IDENTITY_NAME + PARTIAL_SUFFIX}
    other = [path.name for path in folder.iterdir() if path.name not in known]
    other = [name for name in other if not name.startswith(".")]
    for name in _FOLDERS:
        if (folder / name).is_dir():
            other += [f"{name}/{path.name}" for path in (folder / name).iterdir()]
    if other:
        raise RunError(
            f"{folder}: holds files that are no run of sweep ({', '.join(sorted(other)[:3])}); "
            f"choose an empty or a new folder"
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
    """Remove an earlier run's files, the manifest first, and nothing else."""
    (folder / MANIFEST_NAME).unlink(missing_ok=True)
    for name in _FOLDERS:
        for path in (folder / name).glob("part-*"):
            path.unlink(missing_ok=True)
    for name in _ROOT_FILES:
        (folder / name).unlink(missing_ok=True)


def _remove_partial_files(folder: Path) -> None:
    for name in (*_ROOT_FILES, MANIFEST_NAME, IDENTITY_NAME):
        (folder / (name + PARTIAL_SUFFIX)).unlink(missing_ok=True)
    for name in _FOLDERS:
        for path in (folder / name).glob(f"part-*{PARTIAL_SUFFIX}"):
            path.unlink(missing_ok=True)
