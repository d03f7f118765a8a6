"""`sweep sql`: ask a finished run in SQL."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from sweep.cli.output import console, json_option, say, write_json
from sweep.errors import RunError, nearest

if TYPE_CHECKING:
    from sweep.results import NamedQuery, Results

# Rows a table shows; --csv and --json write all.
MOST_ROWS = 200
_BATCH_ROWS = 10_000


@click.command(
    name="sql",
    short_help="Ask a finished run in SQL.",
    epilog='Example: sweep sql outputs/my-sweep "SELECT model, usd FROM cheapest WHERE rank = 1"',
)
@click.argument("folder", metavar="DIR", required=False, type=click.Path(path_type=Path))
@click.argument("query", metavar="[QUERY]", required=False)
@click.option("--file", "file", metavar="FILE", type=click.Path(path_type=Path, allow_dash=True),
              help="Read the query from a file; - is stdin.")  # fmt: skip
@click.option("--name", metavar="NAME", help="A query that ships with sweep; see --list.")
@click.option("--list", "listing", is_flag=True, help="List the queries that ship with sweep.")
@click.option("--set", "variables", multiple=True, metavar="NAME=VALUE",
              help="A variable of the query: getvariable('NAME').")  # fmt: skip
@click.option("--csv", "as_csv", is_flag=True, help="Write CSV to stdout.")
@json_option
def command(
    folder: Path | None,
    query: str | None,
    file: Path | None,
    name: str | None,
    listing: bool,
    variables: tuple[str, ...],
    as_csv: bool,
    as_json: bool,
) -> None:
    """Ask the finished run in DIR in SQL (DuckDB's, read only).

    Its views are scenarios, cheapest, frontier, rejected, nearest and priced; `DESCRIBE cheapest` or
    docs/columns.md say what is in them. A table shows the first 200 rows, --csv and --json all.
    """
    if listing:
        _list_queries(as_json)
        return
    if folder is None:
        raise click.UsageError("which run? give its folder: sweep sql DIR QUERY")
    given = [word for word in (query, file, name) if word is not None]
    if len(given) != 1:
        raise click.UsageError("give one of QUERY, --file and --name (see --list)")
    if as_csv and as_json:
        raise click.UsageError("give one of --csv and --json")
    text = _named(name).text if name else query if query is not None else _read(file)
    values = _variables(variables, _named(name) if name else None)

    from sweep.results import open_results

    with open_results(folder) as results:
        names, rows = _ask(results, text, values)
        if as_json:
            _write_json(names, rows)
        elif as_csv:
            _write_csv(names, rows)
        else:
            _write_table(names, rows)


def _list_queries(as_json: bool) -> None:
    from sweep.results import named_queries

    queries = named_queries()
    if as_json:
        write_json(
            [
                {
                    "name": one.name,
                    "about": one.comment,
                    "variables": one.variables,
                    "sql": one.text,
                }
                for one in queries.values()
            ]
        )
        return
    width = max(map(len, queries))
    for one in queries.values():
        click.echo(f"{one.name:<{width}}  {one.title}")
        if one.variables:
            click.echo(f"{'':<{width}}  --set {', '.join(one.variables)}")


def _named(name: str) -> NamedQuery:
    from sweep.results import named_queries, named_query

    known = named_queries()
    if name not in known:
        close = nearest(name, known)
        hint = f"did you mean {close!r}?" if close else f"there are: {', '.join(known)}"
        raise click.BadParameter(f"no query is named {name!r}; {hint}", param_hint="--name")
    return named_query(name)


def _read(file: Path | None) -> str:
    if file is None or str(file) == "-":
        return sys.stdin.read()
    try:
        return file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise click.BadParameter(f"{file}: {reason.lower()}", param_hint="--file") from error


def _variables(given: tuple[str, ...], query: NamedQuery | None) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for one in given:
        name, equals, text = one.partition("=")
        if not equals or not name.isidentifier():
            raise click.BadParameter(f"found {one!r}, allowed NAME=VALUE", param_hint="--set")
        if query is not None and name not in query.variables:
            close = nearest(name, query.variables)
            hint = f"did you mean {close!r}?" if close else f"it has: {', '.join(query.variables)}"
            raise click.BadParameter(
                f"{query.name} has no variable {name!r}; {hint}", param_hint="--set"
            )
        values[name] = _value(text)
    return values


def _value(text: str) -> Any:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def _ask(
    results: Results, text: str, values: dict[str, Any]
) -> tuple[list[str], Iterator[tuple[Any, ...]]]:
    """The columns and rows of a query, read as they are wanted: a result may be larger than memory."""
    import duckdb

    try:
        for name, value in values.items():
            results.connection.execute(f"SET VARIABLE {name} = $1", [value])
        cursor = results.connection.execute(text)
    except (duckdb.ParserException, duckdb.BinderException, duckdb.CatalogException) as error:
        raise click.UsageError(f"SQL: {error}") from error
    except duckdb.Error as error:
        raise RunError(f"SQL: {error}") from error

    def rows() -> Iterator[tuple[Any, ...]]:
        try:
            while batch := cursor.fetchmany(_BATCH_ROWS):
                yield from batch
        except duckdb.Error as error:
            raise RunError(f"SQL: {error}") from error

    return [column[0] for column in cursor.description or ()], rows()


def _write_json(names: list[str], rows: Iterator[tuple[Any, ...]]) -> None:
    from sweep.cli.output import json_text

    click.echo("[", nl=False)
    for number, row in enumerate(rows):
        start = ",\n " if number else "\n "
        click.echo(start + json_text(dict(zip(names, row, strict=True)), indent=None), nl=False)
    click.echo("\n]")


def _write_csv(names: list[str], rows: Iterator[tuple[Any, ...]]) -> None:
    import csv

    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(names)
    writer.writerows(rows)


def _write_table(names: list[str], rows: Iterator[tuple[Any, ...]]) -> None:
    from sweep.report.tables import table_lines

    shown = list(itertools.islice(rows, MOST_ROWS))
    if not names:
        return
    out = console()
    for line in table_lines(names, shown):
        out.print(line)
    if next(rows, None) is not None:
        say(f"the first {MOST_ROWS} rows; --csv and --json write all")
