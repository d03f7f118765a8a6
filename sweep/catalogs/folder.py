"""Where catalog files lie, and how a user's folder of the same files overlays the shipped one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sweep.catalogs.tables import Column, read_rows
from sweep.errors import CatalogError, Problem


def shipped_folder() -> Path:
    """The folder of the shipped catalogs: inside an installed wheel, or of a checkout.

    Raises CatalogError when neither holds them (a broken installation).
    """
    here = Path(__file__).resolve().parent
    for folder in (here / "data", here.parent.parent / "catalogs"):
        if (folder / "gpus.csv").is_file():
            return folder
    raise CatalogError(
        f"{here / 'data'}: catalog files: found none, allowed gpus.csv and its siblings; "
        "install the package again"
    )


def catalog_folders(user_folders: Sequence[Path] = ()) -> tuple[Path, ...]:
    """The shipped folder followed by the user's, later ones overlaying earlier ones.

    Raises CatalogError when a user's folder does not exist.
    """
    for folder in user_folders:
        if not folder.is_dir():
            raise CatalogError(f"{folder}: catalog folder: found no folder, allowed a folder")
    return (shipped_folder(), *user_folders)


def read_catalog(
    folders: Sequence[Path], name: str, columns: Sequence[Column], key: Sequence[str]
) -> tuple[list[dict[str, Any]], list[Problem]]:
    """The rows of one catalog file over all folders, with '_path' and '_line', and the problems.

    A later folder's row replaces an earlier one of the same key and stands in its place; new keys
    follow. A folder without the file adds nothing; no folder with it is a problem.
    """
    merged: dict[tuple[Any, ...], dict[str, Any]] = {}
    problems: list[Problem] = []
    paths = [folder / name for folder in folders if (folder / name).exists()]
    if not paths:
        where = ", ".join(str(folder) for folder in folders) or "no folder"
        return [], [Problem(where, f"file {name}", "no such file", "the catalog file")]
    for path in paths:
        rows, found = read_rows(path, columns, key)
        problems += found
        for row in rows:
            row["_path"] = path
            merged[tuple(row[part] for part in key)] = row
    return list(merged.values()), problems
