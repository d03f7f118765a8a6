"""A finished run, asked in SQL: `open_results` trusts its manifest and nothing else."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar

import duckdb

from sweep.errors import RunError, nearest
from sweep.manifest import Manifest, load_manifest, require_intact
from sweep.results import database
from sweep.results.database import build_database, refresh_offers
from sweep.results.queries import NamedQuery, named_queries, named_query

if TYPE_CHECKING:
    import polars as pl
    import pyarrow as pa

T = TypeVar("T")


class Results:
    """An open run. Not for several threads at once; made by `open_results`."""

    def __init__(
        self,
        connection: duckdb.DuckDBPyConnection,
        folder: Path,
        manifest: Manifest,
        scratch: Path | None = None,
    ) -> None:
        self.connection = connection
        self.folder = folder
        self.manifest = manifest
        self._scratch = scratch

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
        """Close the database; the files stay."""
        self.connection.close()
        if self._scratch:
            shutil.rmtree(self._scratch, ignore_errors=True)

    def sql(self, query: str, parameters: Any = None) -> pl.DataFrame:
        """The result of one SQL query. Raises RunError with DuckDB's words if it fails."""
        import polars as pl  # only for those who want a frame: it costs the start-up of `top`

        frame = pl.from_arrow(self.arrow(query, parameters))
        assert isinstance(frame, pl.DataFrame)
        return frame

    def arrow(self, query: str, parameters: Any = None) -> pa.Table:
        """The same as an Arrow table."""

        def run() -> pa.Table:
            return self.connection.sql(query, params=parameters).to_arrow_table()

        return self._run(run)

    def rows(self, query: str, parameters: Any = None) -> list[dict[str, Any]]:
        """The same as a list of rows."""

        def run() -> list[dict[str, Any]]:
            cursor = self.connection.execute(query, parameters)
            names = [column[0] for column in cursor.description or ()]
            return [dict(zip(names, row, strict=True)) for row in cursor.fetchall()]

        return self._run(run)

    def named(self, name: str, **variables: Any) -> pl.DataFrame:
        """The result of a named query; variables left out take the query's own defaults.

        Raises RunError for a name or a variable that does not exist, with the nearest that does.
        """
        query = named_query(name)
        for variable in variables:
            if variable not in query.variables:
                known = ", ".join(query.variables)
                close = nearest(variable, query.variables)
                hint = f"; did you mean {close!r}?" if close else ""
                raise RunError(f"{name}: has no variable {variable!r} (it has: {known}){hint}")
        try:
            for variable, value in variables.items():
                self.connection.execute(f"SET VARIABLE {variable} = $1", [value])
            return self.sql(query.text)
        finally:
            for variable in variables:
                self.connection.execute(f"RESET VARIABLE {variable}")

    def _run(self, query: Callable[[], T]) -> T:
        try:
            return query()
        except duckdb.Error as error:
            # Blame the file rather than the query if one has gone or changed meanwhile.
            damaged = isinstance(error, duckdb.IOException | duckdb.InvalidInputException)
            require_intact(self.folder, self.manifest, read=damaged)
            raise RunError(f"SQL: {error}") from error


def open_results(folder: Path | str, *, threads: int = 0) -> Results:
    """Open a finished run for queries, building or repairing its database first where needed.

    Only the manifest is trusted: files it names must be there in the size they were written.
    Raises RunError if the run is not finished, damaged, or of a newer sweep.
    """
    folder = Path(folder)
    manifest = load_manifest(folder)
    require_intact(folder, manifest)
    path = database.ready(folder, manifest, threads)
    if path is not None:
        return Results(database.connect(path, threads), folder, manifest)
    # A folder that cannot be written can still be read: the database goes elsewhere.
    scratch = Path(tempfile.mkdtemp(prefix="sweep-"))
    try:
        path = scratch / database.DATABASE_NAME
        database.build(path, folder, manifest, threads)
        return Results(database.connect(path, threads), folder, manifest, scratch)
    except BaseException:
        shutil.rmtree(scratch, ignore_errors=True)
        raise


__all__ = [
    "NamedQuery",
    "Results",
    "build_database",
    "named_queries",
    "named_query",
    "open_results",
    "refresh_offers",
]
