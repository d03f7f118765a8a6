"""The lock of a run folder: one writing process at a time, freed by the system when it dies."""

from __future__ import annotations

import fcntl
import json
import os
import socket
from pathlib import Path

from sweep.errors import RunError
from sweep.manifest import write_error

LOCK_NAME = "run.lock"


class RunLock:
    """Held from construction to `release`. Raises RunError while another process holds it.

    The lock is the system's (flock), so a killed process leaves a file but no lock.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / LOCK_NAME
        self._handle = self._take()

    def _take(self) -> int:
        while True:
            try:
                handle = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            except OSError as error:
                raise write_error(self._path, error) from error
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                owner = _owner(handle)
                os.close(handle)
                raise RunError(
                    f"{self._path.parent}: {owner} is writing here; wait until it is done, "
                    f"or choose another folder"
                ) from error
            except OSError as error:
                os.close(handle)
                raise write_error(self._path, error) from error
            # Its former holder may have removed the file between our open and our lock.
            try:
                current = self._path.stat().st_ino == os.fstat(handle).st_ino
            except FileNotFoundError:
                current = False
            if current:
                break
            os.close(handle)
        owner = json.dumps({"pid": os.getpid(), "host": socket.gethostname()})
        try:
            os.ftruncate(handle, 0)
            os.pwrite(handle, owner.encode(), 0)
        except OSError as error:
            os.close(handle)
            raise write_error(self._path, error) from error
        return handle

    def release(self) -> None:
        """Give the lock back and remove its file; harmless the second time."""
        if self._handle >= 0:
            self._path.unlink(missing_ok=True)
            os.close(self._handle)
            self._handle = -1


def _owner(handle: int) -> str:
    try:
        content = json.loads(os.pread(handle, 4096, 0))
        return f"process {content['pid']} on {content['host']}"
    except (ValueError, KeyError, TypeError):
        return "another process"
