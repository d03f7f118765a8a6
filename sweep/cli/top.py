"""`sweep top`: the ranking of a finished run, by today's prices."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from sweep.cli import NOTHING_FEASIBLE
from sweep.cli.filters import filter_options, read_filters
from sweep.cli.output import columns, console, json_option, json_text, say
from sweep.errors import RunError

if TYPE_CHECKING:
    from sweep.ranking import Filters, Ranking

# Questions printed at most: beyond that, filters serve better than scrolling.
MOST_LISTED = 200


@click.command(
    name="top",
    short_help="Rank the setups of a finished run.",
    epilog="Example: sweep top outputs/my-sweep --model Qwen2.5-7B --method qlora",
)
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
@filter_options
@click.option("--limit", type=click.IntRange(1, 10000), metavar="N",
              help="Setups of each question, in place of what the spec says (3 if it does not).")  # fmt: skip
@click.option(
    "--all-offers", is_flag=True, help="Rank every offer, not the cheapest of each kind of node."
)
@click.option("--full/--list", "full", default=None,
              help="Every setup in full, or three lines a question (the default for more than 4).")  # fmt: skip
@click.option("--wide", is_flag=True, help="A table with every figure, one line a setup.")
@click.option("--keep-prices", is_flag=True, help="Rank by the prices last used.")
@click.option(
    "--fail-infeasible", is_flag=True, help="Exit with 3 if nothing works for any question."
)
@json_option
def command(
    folder: Path,
    limit: int | None,
    all_offers: bool,
    full: bool | None,
    wide: bool,
    keep_prices: bool,
    fail_infeasible: bool,
    as_json: bool,
    **given: Any,
) -> int | None:
    """Rank the setups of the finished run in DIR: the best of each question and the runner-up.

    Where nothing works, it says which limit failed, by how much, and what would work without it.
    Prices are those of the catalogs today: after an edit of an offer the ranking follows, without a
    new sweep.
    """
    from sweep.ranking import rank
    from sweep.rerank import places_shown
    from sweep.results import open_results

    if not keep_prices:
        refresh_prices(folder)
    with open_results(folder) as results:
        filters = read_filters(results, given)
        most = None if as_json else MOST_LISTED
        ranking = rank(
            results,
            filters,
            places=limit or places_shown(folder),
            every_offer=all_offers,
            most=most,
        )
    if not any(answer.ranked or answer.nearest for answer in ranking.answers):
        _require_offers(filters)
    if as_json:
        write_ranking(ranking)
    else:
        show_ranking(ranking, full=full, wide=wide)
    return NOTHING_FEASIBLE if fail_infeasible and not ranking.answered else None


def refresh_prices(folder: Path) -> None:
    """Bring a run's offers up to date, and say so where that changes anything."""
    from sweep.manifest import load_manifest
    from sweep.rerank import reprice

    load_manifest(folder)  # what is wrong with the run itself is said without a word on prices
    try:
        found = reprice(folder)
    except RunError as error:
        say(f"{error}\nranked by the prices the run last used")
        return
    if found is not None and (text := str(found)):
        say(text)


def show_ranking(ranking: Ranking, *, full: bool | None = None, wide: bool = False) -> None:
    """A ranking on stdout, for people."""
    from sweep.report.tables import wide_lines
    from sweep.report.terminal import ranking_lines

    out = console()
    for line in wide_lines(ranking) if wide else ranking_lines(ranking, columns(), full=full):
        out.print(line)
    left = ranking.asked - len(ranking.answers)
    if left:
        say(
            f"{left:,} more questions; narrow them with --model, --method, ... or take all as --json"
        )


def write_ranking(ranking: Ranking, further: Mapping[str, Any] | None = None) -> None:
    """A ranking as one JSON object on stdout, question by question: it may be large."""
    head = {
        **(further or {}),
        "run": dict(ranking.run),
        "prices": dict(ranking.prices),
        "asked": ranking.asked,
        "answered": ranking.answered,
    }
    click.echo(json_text(head)[:-2] + ',\n "questions": [', nl=False)
    for number, answer in enumerate(ranking.answers):
        found = {**answer.question, "ranking": answer.ranked, "nearest": answer.nearest}
        click.echo(f"{',' if number else ''}\n  {json_text(found, indent=None)}", nl=False)
    click.echo("\n ]\n}")


def _require_offers(filters: Filters) -> None:
    """Say so if no offer matches all filters together: then there is nothing to rank."""
    names = {name.removesuffix("s"): glob for name, glob in filters.among_offers().items()}
    given = [f"--{name.replace('_', '-')} {glob}" for name, glob in names.items() if glob != "*"]
    if given:
        raise click.UsageError(f"no offer of this run matches {' and '.join(given)} together")
