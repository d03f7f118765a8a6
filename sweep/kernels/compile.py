"""How kernels are compiled and where the compiled code is kept: never stale, never in the way."""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import llvmlite
import numba
import numpy as np


def kernel_hash() -> str:
    """A hash of every kernel source and of the versions that compile it.

    Numba's own cache does not see edits in imported files (numba #1833), so the cache folder is
    named by this instead.
    """
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(path.name.encode())
        digest.update(path.read_bytes())
    for version in (numba.__version__, llvmlite.__version__, np.__version__):
        digest.update(version.encode())
    return digest.hexdigest()[:16]


def _usable(folder: Path) -> bool:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return True
    except OSError:
        return False


def _cache_folder() -> Path | None:
    """The user's cache folder for these kernels, a private temporary one, or None."""
    given = os.environ.get("XDG_CACHE_HOME")
    named = f"sweep-kernels-{kernel_hash()}"
    folders = [Path(tempfile.gettempdir()) / f"{named}-{os.getuid()}"]
    with contextlib.suppress(RuntimeError):  # no home directory
        folders.insert(0, (Path(given) if given else Path.home() / ".cache") / "sweep" / named)
    return next((folder for folder in folders if _usable(folder)), None)


CACHE_FOLDER = _cache_folder()
if CACHE_FOLDER is not None:
    numba.config.CACHE_DIR = str(CACHE_FOLDER)


def kernel(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile a loop over index ranges: no GIL, division as the processor does it."""
    return numba.njit(nogil=True, error_model="numpy", cache=CACHE_FOLDER is not None)(function)


def scalar(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile one formula, to be called by kernels (and by `explain`)."""
    return numba.njit(nogil=True, error_model="numpy", cache=CACHE_FOLDER is not None)(function)
