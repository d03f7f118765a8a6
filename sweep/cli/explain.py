"""`sweep explain`: one scenario of a run taken apart, with formulas and sources."""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from sweep.cli.filters import filter_options, read_filters
from sweep.cli.output import columns, console, json_option, write_json

if TYPE_CHECKING:
    from rich.text import Text

    from sweep.explain import Explanation


@click.command(
    name="explain",
    short_help="Take one scenario apart: bytes, seconds, formulas.",
    epilog="Example: sweep explain outputs/my-sweep --model Qwen2.5-7B --method qlora --text-gb 1",
)
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
@filter_options
@click.option(
    "--setup", type=click.IntRange(0), metavar="N", help="Number of a setup, instead of the best."
)
@click.option(
    "--knob",
    type=click.IntRange(0),
    metavar="N",
    help="Number of a knob combination of that setup.",
)
@click.option("--short", is_flag=True, help="Leave out formulas and sources.")
@json_option
def command(
    folder: Path, setup: int | None, knob: int | None, short: bool, as_json: bool, **given: Any
) -> None:
    """Take one scenario of the finished run in DIR apart.

    It prints the bytes of every term and phase and the seconds of every term, each with its formula
    and source. The scenario is the best of the question that the filters name, or that of --setup.
    """
    from sweep.explain import explain_row
    from sweep.ranking import choose, questions
    from sweep.results import open_results

    if knob is not None and setup is None:
        raise click.UsageError("--knob goes with --setup")
    with open_results(folder) as results:
        filters = read_filters(results, given)
        chosen = choose(questions(results), filters)
    offers = {
        "gpu": filters.gpu, "provider": filters.provider, "region": filters.region,
        "price_model": filters.price_model, "instance_type": filters.instance_type,
    }  # fmt: skip
    # A setup is named by its number: where it is sold does not matter.
    wanted = (
        {} if setup is not None else {name: glob for name, glob in offers.items() if glob != "*"}
    )
    found = explain_row(
        folder, question=chosen[0]["question"], filters=wanted, setup=setup, knob=knob
    )
    if as_json:
        write_json(found.to_dict())
        return
    out = console()
    for line in _lines(found, len(chosen), columns(), short=short):
        out.print(line)


def _lines(found: Explanation, questions: int, width: int, *, short: bool) -> Iterator[Text]:
    from rich.text import Text

    from sweep.report import words

    row = found.row
    first = " (the first of them)" if questions > 1 else ""
    yield Text.assemble(
        (row["model"], "bold"),
        (f"  {row['method']}", "bold cyan"),
        f"  {words.tokens(row['train_tokens'])}, question {row['question']}{first}",
    )
    where = [words.machine(row), words.count_of(row["node_count"], "node")]
    if row.get("provider"):
        where.append(f"{words.rented(row)}, {row['region']}")
    where.append(f"setup {row['setup']}, knob {row['knob']}")
    for parts in (where, words.knob_words(row)):
        for text in textwrap.wrap(", ".join(parts), width - 2):
            yield Text(f"  {text}")
    yield Text(
        f"  verdict: {found.verdict}",
        style="bold green" if row["verdict_text"] == "fits" else "yellow",
    )
    for remark in found.remarks:
        yield Text(f"  {remark}", style="yellow")
    terms = found.lines()
    label_width = max(len(label) for _, label, _, _, _ in terms)
    value_width = max(len(value) for _, _, value, _, _ in terms)
    usual = _usual_sources(terms)
    section = None
    for name, label, value, formula, source in terms:
        if name != section:
            section = name
            yield Text("")
            shared = "" if short else f"  [{usual[name]}]"
            yield Text.assemble((name, "bold"), (shared, "dim"))
        line = Text(f"  {label:<{label_width}}  {value:>{value_width}}")
        if label == "total":
            line.stylize("bold")
        if short:
            yield line
            continue
        why = formula if source == usual[name] or _is_sum(formula) else f"{formula}  [{source}]"
        room = width - line.cell_len - 2
        if len(why) <= room:
            line.append(f"  {why}", style="dim")
            yield line
        else:
            yield line
            for text in textwrap.wrap(why, width - 6):
                yield Text(f"      {text}", style="dim")


def _is_sum(formula: str) -> bool:
    return formula == "sum of the above"


def _usual_sources(terms: Sequence[tuple[str, str, str, str, str]]) -> dict[str, str]:
    """The source most terms of a section share: it is said once, beside the section's name."""
    found: dict[str, Counter[str]] = {}
    for name, _, _, formula, source in terms:
        found.setdefault(name, Counter()).update([] if _is_sum(formula) else [source])
    return {name: counts.most_common(1)[0][0] if counts else "" for name, counts in found.items()}
