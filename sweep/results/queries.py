"""The SQL that ships with sweep: the views of a run, and the named queries over them."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path

from sweep.columns import DIMENSIONS
from sweep.errors import RunError, nearest
from sweep.manifest import Manifest

_FOLDER = Path(__file__).parent.parent / "sql"
# In the order they build on one another.
VIEW_FILES = (
    "scenarios",
    "rules_of_thumb",
    "prices",
    "best_by_shape",
    "priced",
    "cheapest",
    "frontier",
    "rejected",
    "nearest",
)
# Tables of the file best_by_shape, filled in this order before what follows reads them.
FILLED = ("best_by_shape", "near_misses")
# The same as the first, sooner, for the cheapest of one knob combination by question and setup.
ONE_KNOB = "best_by_shape_of_one_knob"
# Parts of statements that several views share, put in their places by `view_sql`.
_FRAGMENT = re.compile(r"\{(widened|costed) (\w+)(?:: ([\w, ]+))?\}")
_VARIABLE = re.compile(r"getvariable\('(\w+)'\)")


@dataclass(frozen=True)
class NamedQuery:
    """A query that ships with sweep: its comment, its text, the variables it reads."""

    name: str
    title: str
    comment: str
    text: str
    variables: tuple[str, ...]


def views_text(folder: Path, manifest: Manifest) -> str:
    """The SQL that makes the same tables and views in any DuckDB, from the Parquet files."""
    head = (
        "-- Tables and views of this run, as in results.duckdb. In the duckdb shell:\n"
        "--   SET VARIABLE folder = '/where/this/folder/is';\n"
        "--   .read /where/this/folder/is/views.sql\n"
    )
    default = quoted(str(folder.resolve()))
    head += f"SET VARIABLE folder = coalesce(getvariable('folder'), {default});\n"
    start = "getvariable('folder') || '/'"
    statements = [head]
    for name in DIMENSIONS:
        file = quoted(manifest.tables[name].file)
        statements.append(
            f"CREATE OR REPLACE TABLE {name} AS SELECT * FROM read_parquet({start} || {file});\n"
        )
    files = ",\n    ".join(f"{start} || {quoted(part.file)}" for part in manifest.parts)
    statements.append(
        f"CREATE OR REPLACE VIEW facts AS SELECT * FROM read_parquet([\n    {files}\n]);\n"
    )
    for name in VIEW_FILES:
        statements.append(view_sql(name))
        if name == FILLED[0]:
            statements += [fill_sql(table, 0, 2**32 - 1) for table in FILLED]
    return "\n".join(statements)


def fill_sql(name: str, first_workload: int, last_workload: int) -> str:
    """The statements that fill a table for a range of workloads, both ends included.

    `name` is one of FILLED, or ONE_KNOB.
    """
    text = _sql_file(f"views/fill_{name}.sql")
    return text.replace("{first}", str(first_workload)).replace("{last}", str(last_workload))


def view_sql(name: str) -> str:
    """The statements of a file of views, with widened.sql and costed.sql put in their places."""

    def filled(match: re.Match[str]) -> str:
        fragment, rows, columns = match.groups()
        handed_on = f"{columns}," if columns else ""
        text = _sql_file(f"views/{fragment}.sql")
        return text.replace("{rows}", rows).replace("{columns}", handed_on)

    return _FRAGMENT.sub(filled, _sql_file(f"views/{name}.sql"))


def named_queries() -> dict[str, NamedQuery]:
    """The queries that ship with sweep, by name."""
    names = sorted(path.stem for path in (_FOLDER / "named").glob("*.sql"))
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


def definitions_hash() -> str:
    """What tells one version of the views from another."""
    fills = [fill_sql(table, 0, 0) for table in (*FILLED, ONE_KNOB)]
    text = "\n".join([*map(view_sql, VIEW_FILES), *fills])
    return hashlib.sha256(text.encode()).hexdigest()


def _sql_file(name: str) -> str:
    return (_FOLDER / name).read_text(encoding="utf-8")


def quoted(text: str) -> str:
    """A text as an SQL string."""
    return "'" + text.replace("'", "''") + "'"
