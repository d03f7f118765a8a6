"""The lock of a run folder: one writing process at a time, or shards beside each other; the system's."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import socket
from pathlib import Path

from sweep.errors import FolderInUse, RunError
from sweep.manifest import write_error
from sweep.shards import Shard

LOCK_NAME = "run.lock"
SHARD_LOCKS = "shard-*.lock"
_NO_LOCKS = (errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK)


class RunLock:
    """Held from construction to `release`. Raises FolderInUse while others hold it, else RunError.

    The whole folder belongs to one process, or shares of it to shards: these hold `run.lock` together
    and a lock of their own each. Locks are the system's (flock), so a killed process leaves files
    but no lock.
    """

    def __init__(self, folder: Path, shard: Shard | None = None) -> None:
        self._held: list[tuple[Path, int, int]] = []
        if shard is None:
            self._hold(folder / LOCK_NAME, fcntl.LOCK_EX)
            return
        self._hold(folder / LOCK_NAME, fcntl.LOCK_SH)
        try:
            self._hold(folder / f"shard-{shard.tag}.lock", fcntl.LOCK_EX, f"shard {shard}: ")
        except BaseException:
            self.release()
            raise

    def _hold(self, path: Path, kind: int, who: str = "") -> None:
        self._held.append((path, _take(path, kind, who), kind))

    def release(self) -> None:
        """Give the lock back and remove its file; harmless the second time."""
        while self._held:
            path, handle, kind = self._held.pop()
            # A shared file stays: other shards hold it, and the next whole run removes it.
            if kind == fcntl.LOCK_EX:
                path.unlink(missing_ok=True)
            os.close(handle)


def _take(path: Path, kind: int, who: str = "") -> int:
    while True:
        try:
            handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise write_error(path, error) from error
        try:
            fcntl.flock(handle, kind | fcntl.LOCK_NB)
        except BlockingIOError as error:
            owner = _owner(path, handle)
            os.close(handle)
            raise FolderInUse(
                f"{path.parent}: {who}{owner} writing here; wait until that is done, "
                f"or choose another folder"
            ) from error
        except OSError as error:
            os.close(handle)
            if error.errno in _NO_LOCKS:
                raise RunError(
                    f"{path}: this file system has no locks (flock); write to a local folder, and "
                    f"bring shards together with `sweep finish --from`"
                ) from error
            raise write_error(path, error) from error
        # Its former holder may have removed the file between our open and our lock.
        try:
            current = path.stat().st_ino == os.fstat(handle).st_ino
        except FileNotFoundError:
            current = False
        if current:
            break
        os.close(handle)
    # What a dead holder of a shared lock left would name the wrong process.
    holder = {"pid": os.getpid(), "host": socket.gethostname()} if kind == fcntl.LOCK_EX else {}
    try:
        os.ftruncate(handle, 0)
        os.pwrite(handle, json.dumps(holder).encode(), 0)
    except OSError as error:
        os.close(handle)
        raise write_error(path, error) from error
    return handle


def _owner(path: Path, handle: int) -> str:
    """Who holds a lock, as far as its file says, with the verb that follows."""
    try:
        content = json.loads(os.pread(handle, 4096, 0))
        return f"process {content['pid']} on {content['host']} is"
    except (ValueError, KeyError, TypeError):
        pass
    names = sorted(found.stem.removeprefix("shard-") for found in path.parent.glob(SHARD_LOCKS))
    shards = ", ".join(name.replace("-of-", "/") for name in names[:8])
    more = f" and {len(names) - 8} more" if len(names) > 8 else ""
    return f"shards ({shards}{more}) are" if names else "another process is"
