"""results.duckdb: built from the files a manifest names, repaired when its folder has moved."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import duckdb

from sweep.columns import COLUMNS, DIMENSIONS, FACTS, TABLE_TITLES, TABLES, VIEWS, arrow_schema
from sweep.errors import RunError
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
from sweep.results.queries import (
    FILLED,
    ONE_KNOB,
    VIEW_FILES,
    definitions_hash,
    fill_sql,
    quoted,
    view_sql,
    views_text,
)

DATABASE_NAME = "results.duckdb"
VIEWS_NAME = "views.sql"
# The oldest storage format still written: DuckDB 1.0 and later read it.
STORAGE_VERSION = "v1.0.0"
MEMORY_LIMIT = "512MB"
# Questions x shapes grouped at once, at about 250 bytes each.
FILL_GROUPS = 600_000


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
        build(partial, folder, manifest, threads)
        partial.replace(path)
    except OSError as error:
        raise write_error(path, error) from error
    finally:
        partial.unlink(missing_ok=True)
        partial.with_name(partial.name + ".wal").unlink(missing_ok=True)
    write_durably(folder / VIEWS_NAME, views_text(folder, manifest).encode())
    return path


def ready(folder: Path, manifest: Manifest, threads: int = 0) -> Path | None:
    """The database in the run's folder, built or repaired if need be; None if it cannot be written.

    A folder that was moved is repaired in place: only the paths to the facts change.
    """
    path = folder / DATABASE_NAME
    found, wanted = _state(path), _wanted(folder)
    if found == wanted:
        return path
    try:
        if found and (found[0], found[2]) == (wanted[0], wanted[2]):
            _point_to(path, folder, manifest)
            return path
        return build_database(folder, threads=threads)
    except RunError:
        require_intact(folder, manifest)
        return None


def refresh_offers(
    folder: Path | str, columns: Mapping[str, Any], *, not_covered: int | None = None
) -> bool:
    """Make every view rank by these offers; returns whether they differ from those ranked so far.

    The facts and the run's own offers.parquet stay; building the database anew goes back to those.
    Raises RunError if the database is in use or cannot be written.
    """
    import pyarrow as pa  # a tenth of the time of `top`, which needs it for new prices alone

    folder = Path(folder)
    path = ready(folder, load_manifest(folder))
    if path is None:
        raise RunError(f"{folder / DATABASE_NAME}: cannot be written; copy the folder elsewhere")
    schema = arrow_schema("offers")
    new_offers = pa.table([pa.array(columns[f.name], f.type) for f in schema], schema=schema)
    with connect(path) as connection:
        connection.register("new_offers", new_offers)
        differing = (
            "SELECT count(*) FROM ("
            "(SELECT * FROM offers EXCEPT ALL SELECT * FROM new_offers) UNION ALL "
            "(SELECT * FROM new_offers EXCEPT ALL SELECT * FROM offers))"
        )
        same = connection.execute(differing).fetchall() == [(0,)]
        stored = connection.execute("SELECT offers_not_covered FROM run").fetchall()
        if same and not_covered in (None, stored[0][0]):
            return False
    connection = connect(path, writable=True)
    try:
        connection.register("new_offers", new_offers)
        connection.begin()
        connection.execute("DELETE FROM offers")
        connection.execute("INSERT INTO offers SELECT * FROM new_offers")
        connection.execute("UPDATE run SET offers_as_of = (SELECT max(as_of) FROM offers)")
        if not_covered is not None:
            connection.execute("UPDATE run SET offers_not_covered = $1", [not_covered])
        connection.commit()
    except duckdb.Error as error:
        raise _database_error(path, error) from error
    finally:
        connection.close()
    return True


def build(path: Path, folder: Path, manifest: Manifest, threads: int) -> None:
    """Build the database of a run at a path that is free."""
    connection = connect(path, threads, writable=True)
    try:
        for name in DIMENSIONS:
            file = _glob_safe(folder / manifest.tables[name].file)
            connection.execute(f"CREATE TABLE {name} AS SELECT * FROM read_parquet({file})")
        _require_columns(connection, folder)
        _create_facts(connection, folder, manifest)
        for name in VIEW_FILES:
            connection.execute(view_sql(name))
            if name == FILLED[0]:
                _fill(connection)
        connection.execute(
            "CREATE TABLE built_from AS SELECT $1 AS manifest_sha256, $2 AS folder, $3 AS views",
            list(_wanted(folder)),
        )
        _comment(connection)
    except duckdb.Error as error:
        require_intact(folder, manifest, read=True)
        raise _database_error(path, error) from error
    finally:
        connection.close()


def _require_columns(connection: duckdb.DuckDBPyConnection, folder: Path) -> None:
    """Raise RunError if the tables lack a column of today's: an earlier sweep wrote them."""
    found = set(
        connection.execute(
            "SELECT table_name, column_name FROM duckdb_columns() WHERE NOT internal"
        ).fetchall()
    )
    for name in DIMENSIONS:
        for column in TABLES[name]:
            if (name, column) not in found:
                raise RunError(
                    f"{folder}: an earlier version of sweep wrote this run (its {name} have no "
                    f"{column}); run its spec into the same folder again: what is decided stays"
                )


def _create_facts(connection: duckdb.DuckDBPyConnection, folder: Path, manifest: Manifest) -> None:
    files = ", ".join(_glob_safe(folder / part.file) for part in manifest.parts)
    connection.execute(f"CREATE OR REPLACE VIEW facts AS SELECT * FROM read_parquet([{files}])")


def _fill(connection: duckdb.DuckDBPyConnection) -> None:
    """Fill best_by_shape by ranges of workloads, whatever the run's size in the same memory."""
    counts = connection.execute(
        "SELECT (SELECT count(*) FROM workloads), (SELECT count(*) FROM questions), "
        "(SELECT count(DISTINCT shape) FROM setups), max_usd IS NOT NULL, "
        "keep = 'best' AND objective = 'usd' FROM run"
    ).fetchall()
    workloads, questions, shapes, budget, one_knob = counts[0]
    best = ONE_KNOB if one_knob else FILLED[0]
    groups_per_workload = max(1, questions * shapes // max(1, workloads))
    step = max(1, FILL_GROUPS // groups_per_workload)
    for first in range(0, workloads, step):
        last = min(first + step, workloads) - 1
        connection.execute(fill_sql(best, first, last))
        # With a budget any answer may turn out too expensive, so that its misses are wanted too.
        if budget or connection.execute(f"FROM unanswered_of({first}, {last}) LIMIT 1").fetchall():
            connection.execute(fill_sql("near_misses", first, last))


def _comment(connection: duckdb.DuckDBPyConnection) -> None:
    """Say in the database what each table, view and column is, with units."""
    connection.begin()  # each of some 800 comments would else be synced to disk
    titles = TABLE_TITLES | {name: title for name, (title, _) in VIEWS.items()}
    for name, title in titles.items():
        kind = "VIEW" if name == FACTS or (name in VIEWS and name not in FILLED) else "TABLE"
        connection.execute(f"COMMENT ON {kind} {name} IS {quoted(title)}")
    found = connection.execute(
        "SELECT table_name, column_name FROM duckdb_columns() WHERE NOT internal"
    ).fetchall()
    for table, column in found:
        if column in COLUMNS:
            text = quoted(COLUMNS[column].comment())
            connection.execute(f'COMMENT ON COLUMN "{table}"."{column}" IS {text}')
    connection.commit()


def _point_to(path: Path, folder: Path, manifest: Manifest) -> None:
    """Make the database of a moved folder read the facts where they are now."""
    connection = connect(path, writable=True)
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


def connect(path: Path, threads: int = 0, *, writable: bool = False) -> duckdb.DuckDBPyConnection:
    """Open the database. Raises RunError if another program has it open for writing."""
    config: dict[str, Any] = {"memory_limit": MEMORY_LIMIT}
    if threads:
        config["threads"] = threads
    if writable:
        config["storage_compatibility_version"] = STORAGE_VERSION
        config["preserve_insertion_order"] = False
    try:
        return duckdb.connect(str(path), read_only=not writable, config=config)
    except duckdb.Error as error:
        raise _database_error(path, error) from error


def _database_error(path: Path, error: duckdb.Error) -> RunError:
    words = str(error).split("\n", 1)[0]
    if "lock" in words.lower():
        return RunError(f"{path}: is open in another program; close it there and {AGAIN}")
    return RunError(f"{path}: {words}; if it is damaged, delete it and {AGAIN}")


def _wanted(folder: Path) -> tuple[str, str, str]:
    """What a database of this folder has to be built from."""
    manifest = hashlib.sha256((folder / MANIFEST_NAME).read_bytes()).hexdigest()
    return manifest, str(folder.resolve()), definitions_hash()


def _glob_safe(path: Path) -> str:
    """A path as an SQL string in which no character is a wildcard."""
    return quoted(re.sub(r"([*?\[])", r"[\1]", str(path.resolve())))
