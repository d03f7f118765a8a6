"""A finished run as a DuckDB database: built from the files its manifest names, asked in SQL."""

from __future__ import annotations

import hashlib
import re
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar

import duckdb
import pyarrow as pa

from sweep.columns import COLUMNS, DIMENSIONS, FACTS, TABLE_TITLES, arrow_schema
from sweep.errors import RunError, nearest
from sweep.manifest import (
    AGAIN,
    MANIFEST_NAME,
    PARTIAL_SUFFIX,
    Manifest,
    load_manifest,
    require_intact,
    write_durably,
    write_error,
)

if TYPE_CHECKING:
    import polars as pl

_SQL_FOLDER = Path(__file__).parent / "sql"
DATABASE_NAME = "results.duckdb"
VIEWS_NAME = "views.sql"
# The oldest storage format still written: DuckDB 1.0 and later read it.
STORAGE_VERSION = "v1.0.0"
MEMORY_LIMIT = "512MB"
# In the order they build on one another.
VIEW_FILES = (
    "scenarios",
    "best_by_shape",
    "prices",
    "priced",
    "cheapest",
    "frontier",
    "rejected",
    "nearest",
)
T = TypeVar("T")
_FRAGMENT = re.compile(r"\{widened (\w+)(?:: ([\w, ]+))?\}")
_VARIABLE = re.compile(r"getvariable\('(\w+)'\)")


@dataclass(frozen=True)
class NamedQuery:
    """A query that ships with sweep: its comment, its text, the variables it reads."""

    name: str
    title: str
    comment: str
    text: str
    variables: tuple[str, ...]


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
            relation = self.connection.sql(query, params=parameters)
            return pa.table({}) if relation is None else relation.to_arrow_table()

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
    path, scratch = folder / DATABASE_NAME, None
    state = _state(path)
    wanted = (_manifest_hash(folder), str(folder.resolve()), _definitions_hash())
    if state != wanted:
        try:
            if state and state[0] == wanted[0] and state[2] == wanted[2]:
                _point_to(path, folder, manifest)
            else:
                build_database(folder, threads=threads)
        except RunError:
            # A folder that cannot be written can still be read: the database goes elsewhere.
            scratch = Path(tempfile.mkdtemp(prefix="sweep-"))
            path = scratch / DATABASE_NAME
            _build(path, folder, manifest, threads)
    return Results(_connect(path, threads, read_only=True), folder, manifest, scratch)


def build_database(folder: Path | str, *, threads: int = 0) -> Path:
    """Write results.duckdb and views.sql of a finished run; returns the database's path.

    Offers come from the run's own offers.parquet again. Raises RunError if a file is damaged or the
    folder cannot be written.
    """
    folder = Path(folder)
    manifest = load_manifest(folder)
    require_intact(folder, manifest)
    path = folder / DATABASE_NAME
    partial = path.with_name(DATABASE_NAME + PARTIAL_SUFFIX)
    try:
        partial.unlink(missing_ok=True)
        _build(partial, folder, manifest, threads)
        partial.replace(path)
    except OSError as error:
        raise write_error(path, error) from error
    finally:
        partial.unlink(missing_ok=True)
        partial.with_name(partial.name + ".wal").unlink(missing_ok=True)
    write_durably(folder / VIEWS_NAME, views_text(folder, manifest).encode())
    return path


def refresh_offers(folder: Path | str, columns: Mapping[str, Any]) -> None:
    """Replace the offers in the database, so that every view ranks by the new prices.

    The facts and the run's own offers.parquet stay. Raises RunError if the database is in use or
    cannot be written.
    """
    folder = Path(folder)
    open_results(folder).close()
    schema = arrow_schema("offers")
    new_offers = pa.table([pa.array(columns[f.name], f.type) for f in schema], schema=schema)
    connection = _connect(folder / DATABASE_NAME, 0, read_only=False)
    try:
        connection.register("new_offers", new_offers)
        connection.begin()
        connection.execute("DELETE FROM offers")
        connection.execute("INSERT INTO offers SELECT * FROM new_offers")
        connection.commit()
    except duckdb.Error as error:
        raise _database_error(folder / DATABASE_NAME, error) from error
    finally:
        connection.close()


def views_text(folder: Path, manifest: Manifest) -> str:
    """The SQL that makes the same tables and views in any DuckDB, from the Parquet files."""
    head = (
        "-- Tables and views of this run, as in results.duckdb. In the duckdb shell:\n"
        "--   SET VARIABLE folder = '/where/this/folder/is';\n"
        "--   .read /where/this/folder/is/views.sql\n"
    )
    default = _quoted(str(folder.resolve()))
    head += f"SET VARIABLE folder = coalesce(getvariable('folder'), {default});\n"
    start = "getvariable('folder') || '/'"
    statements = [head]
    for name in DIMENSIONS:
        file = _quoted(manifest.tables[name].file)
        statements.append(
            f"CREATE OR REPLACE TABLE {name} AS SELECT * FROM read_parquet({start} || {file});\n"
        )
    files = ",\n    ".join(f"{start} || {_quoted(part.file)}" for part in manifest.parts)
    statements.append(
        f"CREATE OR REPLACE VIEW facts AS SELECT * FROM read_parquet([\n    {files}\n]);\n"
    )
    return "\n".join([*statements, *(view_sql(name) for name in VIEW_FILES)])


def view_sql(name: str) -> str:
    """The statements of a file of views, with the formulas of widened.sql put in their places."""
    fragment = _sql_file("views/widened.sql")

    def widened(match: re.Match[str]) -> str:
        rows, columns = match.groups()
        handed_on = f"{columns}," if columns else ""
        return fragment.replace("{rows}", rows).replace("{columns}", handed_on)

    return _FRAGMENT.sub(widened, _sql_file(f"views/{name}.sql"))


def named_queries() -> dict[str, NamedQuery]:
    """The queries that ship with sweep, by name."""
    names = sorted(path.stem for path in (_SQL_FOLDER / "named").glob("*.sql"))
    return {name: _read_query(name) for name in names}


def named_query(name: str) -> NamedQuery:
    """One of them. Raises RunError for an unknown name, with the nearest known one."""
    known = named_queries()
    if name not in known:
        close = nearest(name, known)
        hint = f"; did you mean {close!r}?" if close else ""
        raise RunError(f"no query is named {name!r} (there are: {', '.join(known)}){hint}")
    return known[name]


def _read_query(name: str) -> NamedQuery:
    text = _sql_file(f"named/{name}.sql")
    lines = [line[2:].strip() for line in text.split("\n") if line.startswith("--")]
    variables = tuple(dict.fromkeys(_VARIABLE.findall(text)))
    return NamedQuery(name, lines[0].rstrip("."), "\n".join(lines), text, variables)


def _build(path: Path, folder: Path, manifest: Manifest, threads: int) -> None:
    connection = _connect(path, threads, read_only=False)
    try:
        for name in DIMENSIONS:
            file = _glob_safe(folder / manifest.tables[name].file)
            connection.execute(f"CREATE TABLE {name} AS SELECT * FROM read_parquet({file})")
        _create_facts(connection, folder, manifest)
        for name in VIEW_FILES:
            connection.execute(view_sql(name))
        connection.execute(
            "CREATE TABLE built_from AS SELECT $1 AS manifest_sha256, $2 AS folder, $3 AS views",
            [_manifest_hash(folder), str(folder.resolve()), _definitions_hash()],
        )
        _comment(connection)
    except duckdb.Error as error:
        require_intact(folder, manifest, read=True)
        raise _database_error(path, error) from error
    finally:
        connection.close()


def _create_facts(
    connection: duckdb.DuckDBPyConnection, folder: Path, manifest: Manifest
) -> None:
    files = ", ".join(_glob_safe(folder / part.file) for part in manifest.parts)
    connection.execute(f"CREATE OR REPLACE VIEW facts AS SELECT * FROM read_parquet([{files}])")


def _comment(connection: duckdb.DuckDBPyConnection) -> None:
    """Say in the database what each table, view and column is, with units."""
    for name, title in TABLE_TITLES.items():
        kind = "VIEW" if name == FACTS else "TABLE"
        connection.execute(f"COMMENT ON {kind} {name} IS {_quoted(title)}")
    found = connection.execute(
        "SELECT table_name, column_name FROM duckdb_columns() WHERE NOT internal"
    ).fetchall()
    for table, column in found:
        if column in COLUMNS:
            text = _quoted(COLUMNS[column].comment())
            connection.execute(f'COMMENT ON COLUMN "{table}"."{column}" IS {text}')


def _point_to(path: Path, folder: Path, manifest: Manifest) -> None:
    """Make the database of a moved folder read the facts where they are now."""
    connection = _connect(path, 0, read_only=False)
    try:
        connection.begin()
        _create_facts(connection, folder, manifest)
        connection.execute("UPDATE built_from SET folder = $1", [str(folder.resolve())])
        connection.commit()
    except duckdb.Error as error:
        raise _database_error(path, error) from error
    finally:
        connection.close()


def _state(path: Path) -> tuple[str, str, str] | None:
    """What the database was built from, or None if there is none that can be read."""
    if not path.exists():
        return None
    try:
        with duckdb.connect(str(path), read_only=True) as connection:
            row = connection.execute("SELECT manifest_sha256, folder, views FROM built_from")
            found = row.fetchone()
    except duckdb.Error:
        return None
    return (found[0], found[1], found[2]) if found else None


def _connect(path: Path, threads: int, *, read_only: bool) -> duckdb.DuckDBPyConnection:
    config: dict[str, Any] = {"memory_limit": MEMORY_LIMIT}
    if threads:
        config["threads"] = threads
    if not read_only:
        config["storage_compatibility_version"] = STORAGE_VERSION
        config["preserve_insertion_order"] = False
    try:
        return duckdb.connect(str(path), read_only=read_only, config=config)
    except duckdb.Error as error:
        raise _database_error(path, error) from error


def _database_error(path: Path, error: duckdb.Error) -> RunError:
    words = str(error).split("\n", 1)[0]
    if "lock" in words.lower():
        return RunError(f"{path}: is open in another program; close it there and {AGAIN}")
    return RunError(f"{path}: {words}; if it is damaged, delete it and {AGAIN}")


def _manifest_hash(folder: Path) -> str:
    return hashlib.sha256((folder / MANIFEST_NAME).read_bytes()).hexdigest()


def _definitions_hash() -> str:
    text = "\n".join(view_sql(name) for name in VIEW_FILES)
    return hashlib.sha256(text.encode()).hexdigest()


def _sql_file(name: str) -> str:
    return (_SQL_FOLDER / name).read_text(encoding="utf-8")


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def _glob_safe(path: Path) -> str:
    """A path as an SQL string in which no character is a wildcard."""
    return _quoted(re.sub(r"([*?\[])", r"[\1]", str(path.resolve())))
