"""What lies in a folder before a run writes there: nothing, this run's own parts, or another's."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable
from fnmatch import fnmatchcase
from pathlib import Path

from sweep.columns import DIMENSIONS
from sweep.errors import RunError, SpecError
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
from sweep.run_lock import LOCK_NAME, SHARD_LOCKS
from sweep.shards import Shard, parse_shard

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
        done = _finished_parts(folder, identity, part_count, range(part_count), manifest)
        if manifest and (len(done) < part_count or _any_fault(folder, manifest)):
            manifest = None
    for name in _FOLDERS:
        (folder / name).mkdir(exist_ok=True)
    _remove_partial_files(folder)
    for path in folder.glob(SHARD_LOCKS):
        path.unlink(missing_ok=True)  # of dead shards: while one lives, the folder is not taken
    return done, manifest


def take_shard(folder: Path, identity: RunIdentity, part_count: int, shard: Shard) -> list[Part]:
    """The finished parts of a shard, in a folder other shards may be writing to.

    Marks a new folder as this run's. Raises RunError if the folder is another's.
    """
    known = folder / IDENTITY_NAME
    if not known.exists():
        other = _other_files(folder)
        if not known.exists():  # else another shard began meanwhile, and the files are its own
            if other:
                raise _not_ours(folder, other)
            _write_identity(folder, identity, part_count, tag=shard.tag)
    manifest = _former_manifest(folder)
    remedy = "choose another folder with --out, or delete this one before the first shard starts"
    _refuse_other_run(folder, identity, part_count, manifest, remedy)
    for name in _FOLDERS:
        (folder / name).mkdir(exist_ok=True)
    _remove_partial_files(folder, shard)
    return _finished_parts(folder, identity, part_count, shard.parts(part_count), manifest)


def is_begun(folder: Path) -> bool:
    """Whether a run, whichever, was begun in a folder."""
    return (folder / IDENTITY_NAME).exists()


def require_same_run(folder: Path, identity: RunIdentity, part_count: int) -> None:
    """Refuse a folder that holds no parts of this run. Raises RunError."""
    if not folder.is_dir():
        raise RunError(f"{folder}: there is no such folder")
    if not is_begun(folder):
        raise RunError(f"{folder}: no run was begun here: it has no {IDENTITY_NAME}")
    remedy = "give the spec, catalogs and version of sweep it was begun with"
    _refuse_other_run(folder, identity, part_count, _former_manifest(folder), remedy)


def finished_part(folder: Path, identity: RunIdentity, part_count: int, index: int) -> Part | None:
    """A part with a receipt of this run, of the size it was written with; None if there is none."""
    found = _receipt(folder, identity, part_count, index)
    return found[0] if found and fault(folder, found[0], read=False) is None else None


def part_fault(folder: Path, identity: RunIdentity, part_count: int, index: int) -> str | None:
    """What is wrong with a part that has a receipt of this run; None without either."""
    found = _receipt(folder, identity, part_count, index)
    return fault(folder, found[0], read=True) if found else None


def copy_part(source: Path, folder: Path, part: Part) -> str | None:
    """Copy a part and its receipt from another folder of the same run; what is wrong with it, or None.

    Raises RunError if the disk or the folder fails.
    """
    try:
        data = (source / part.file).read_bytes()
        receipt = (source / receipt_file(part.index)).read_bytes()
    except OSError as error:
        return f"cannot be read: {(error.strerror or str(error)).lower()}"
    if hashlib.sha256(data).hexdigest() != part.sha256:
        return "does not hold the bytes that were written (its SHA-256 differs)"
    write_durably(folder / part.file, data)
    write_durably(folder / receipt_file(part.index), receipt, sync=False)
    return None


def shard_count(folder: Path, identity: RunIdentity, part_count: int) -> int | None:
    """Of how many shards most of the parts here are, by their receipts; None if of none."""
    receipts = (_receipt(folder, identity, part_count, index) for index in range(part_count))
    counts = Counter(found[1].count for found in receipts if found and found[1])
    return counts.most_common(1)[0][0] if counts else None


def _write_identity(folder: Path, identity: RunIdentity, part_count: int, *, tag: str = "") -> None:
    content = {
        "format": FORMAT,
        "engine_version": identity.engine_version,
        "hashes": identity.hashes(),
        "part_count": part_count,
    }
    write_durably(folder / IDENTITY_NAME, json.dumps(content, indent=1).encode(), tag=tag)


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
    folder: Path,
    identity: RunIdentity,
    part_count: int,
    manifest: Manifest | None,
    remedy: str = "choose another folder with --out, or start this one over with --fresh",
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
            f"one; {remedy}"
        )


def _refuse_other_files(folder: Path) -> None:
    if other := _other_files(folder):
        raise _not_ours(folder, other)


def _other_files(folder: Path) -> list[str]:
    """Files of a folder without an identity that no beginning run leaves there."""
    known = (".*", LOCK_NAME, SHARD_LOCKS, *_FOLDERS, f"{IDENTITY_NAME}*{PARTIAL_SUFFIX}")
    names = [path.name for path in folder.iterdir()]
    other = [name for name in names if not any(fnmatchcase(name, glob) for glob in known)]
    for name in _FOLDERS:
        if (folder / name).is_dir():
            other += [f"{name}/{path.name}" for path in (folder / name).iterdir()]
    return other


def _not_ours(folder: Path, other: list[str]) -> RunError:
    return RunError(
        f"{folder}: holds files that are no run of sweep ({', '.join(sorted(other)[:3])}); "
        f"choose an empty or a new folder"
    )


def _receipt(
    folder: Path, identity: RunIdentity, part_count: int, index: int
) -> tuple[Part, Shard | None] | None:
    """A part and the shard that computed it, as its receipt tells; None without one of this very run."""
    try:
        content = json.loads((folder / receipt_file(index)).read_bytes())
        run, given = content.pop("run"), content.pop("shard")
        shard = parse_shard(given) if given else None
        del content["format"], content["knobs"]
        part = Part(**content)
    except (OSError, ValueError, TypeError, KeyError, AttributeError, SpecError):
        return None
    if part.index != index or run != identity.sha256(part_count):
        return None
    return part, shard


def _finished_parts(
    folder: Path,
    identity: RunIdentity,
    part_count: int,
    indices: Iterable[int],
    manifest: Manifest | None,
) -> list[Part]:
    """Of these parts those with a receipt that still have the size they were written with.

    Of a finished run every byte is compared too: whoever runs it again wants it repaired.
    """
    done = []
    for index in indices:
        # No receipt, or none that can be believed: the part is computed again.
        found = _receipt(folder, identity, part_count, index)
        if found and fault(folder, found[0], read=manifest is not None) is None:
            done.append(found[0])
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


def _remove_partial_files(folder: Path, shard: Shard | None = None) -> None:
    """Remove what was being written when a process died: whichever it was, or this shard's."""
    ending = f".{shard.tag}{PARTIAL_SUFFIX}" if shard else PARTIAL_SUFFIX
    names = (*_ROOT_FILES, MANIFEST_NAME, IDENTITY_NAME)
    for glob in (*(f"{name}*" for name in names), *(f"{name}/part-*" for name in _FOLDERS)):
        for path in folder.glob(glob + ending):
            path.unlink(missing_ok=True)
