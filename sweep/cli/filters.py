"""The filters of `top` and `explain`: options in, names and question numbers of a run out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

import click

from sweep.errors import nearest

if TYPE_CHECKING:
    from sweep.ranking import Filters
    from sweep.results import Results

_OPTIONS = (
    click.option("--model", "models", multiple=True, metavar="NAME", help="Model: name or glob."),
    click.option("--method", "methods", multiple=True, metavar="NAME", help="full, lora, qlora."),
    click.option("--gpu", metavar="NAME", help="GPU: name, part of one, or glob."),
    click.option("--provider", metavar="NAME", help="Provider: name or glob."),
    click.option("--region", metavar="NAME", help="Region: name, part of one, or glob."),
    click.option("--price-model", metavar="NAME", help="on_demand, spot, reserved_1y, ..."),
    click.option("--instance", metavar="NAME", help="Instance type: name, part of one, or glob."),
    click.option("--text-gb", multiple=True, type=float, metavar="GB", help="Amount of text."),
    click.option("--tokens", multiple=True, type=float, metavar="N", help="Amount of tokens."),
    click.option("--seq-len", "seq_lens", multiple=True, type=int, metavar="N", help="Tokens per sequence."),
    click.option("--question", "questions", multiple=True, type=int, metavar="N", help="Number of a question."),
)  # fmt: skip
_LIKE_OFFER = ("gpu", "provider", "region", "price_model", "instance")


def filter_options(function: Any) -> Any:
    """The filters, as options of a command."""
    for option in reversed(_OPTIONS):
        function = option(function)
    return function


def read_filters(results: Results, given: Mapping[str, Any]) -> Filters:
    """The filters as names that the run knows. Raises BadParameter for one that matches nothing."""
    from sweep.ranking import Filters, choose, known_names, questions

    rows = questions(results)
    known = known_names(results)
    offers = {
        name: _like_one(f"--{name.replace('_', '-')}", given[name], known.get(name, []))
        for name in _LIKE_OFFER
        if given[name]
    }
    if "instance" in offers:
        offers["instance_type"] = offers.pop("instance")
    filters = Filters(
        questions=tuple(given["questions"]),
        models=_models(given["models"], rows),
        methods=tuple(_among("--method", word, rows, "method") for word in given["methods"]),
        seq_lens=tuple(given["seq_lens"]),
        text_gb=tuple(given["text_gb"]),
        tokens=tuple(given["tokens"]),
        **offers,
    )
    if rows and not choose(rows, filters):
        raise click.UsageError(_why_none(rows, filters))
    return filters


def _like_one(option: str, word: str, known: Sequence[str]) -> str:
    """A glob over the run's names: the word itself, or, if it is no name, any name it is a part of."""
    folded = word.casefold()
    for pattern in (folded, f"*{folded}*"):
        if any(fnmatchcase(name.casefold(), pattern) for name in known):
            return pattern
    raise click.BadParameter(_unknown(word, known), param_hint=option)


def _among(option: str, word: str, rows: Sequence[Mapping[str, Any]], column: str) -> str:
    known = list(dict.fromkeys(str(row[column]) for row in rows))
    for name in known:
        if name.casefold() == word.casefold():
            return name
    raise click.BadParameter(_unknown(word, known), param_hint=option)


def _models(wanted: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    """Models by key, Hugging Face id or glob; if none is so called, by a part of the key."""
    ids = {row["model"]: row["hf_id"] for row in rows}
    found: dict[str, None] = {}
    for word in wanted:
        folded = word.casefold()
        for pattern in (folded, f"*{folded}*"):
            matching = [
                model
                for model, hf_id in ids.items()
                if fnmatchcase(model.casefold(), pattern)
                or fnmatchcase((hf_id or "").casefold(), pattern)
            ]
            if matching:
                break
        else:
            raise click.BadParameter(_unknown(word, list(ids)), param_hint="--model")
        found.update(dict.fromkeys(matching))
    return tuple(found)


def _unknown(word: str, known: Sequence[str]) -> str:
    text = f"found {word!r}, which is not in this run"
    close = nearest(word, known)
    if close:
        return f"{text}; did you mean {close!r}?"
    shown = ", ".join(known[:12]) + (", ..." if len(known) > 12 else "")
    return f"{text}; it has: {shown}"


def _why_none(rows: Sequence[Mapping[str, Any]], filters: Filters) -> str:
    """Which filter leaves no question, with the values there are."""
    from dataclasses import replace

    from sweep.ranking import Filters, choose

    for name, column in (
        ("questions", "question"), ("models", "model"), ("methods", "method"),
        ("seq_lens", "seq_len"), ("text_gb", "train_text_gb"), ("tokens", "train_tokens"),
    ):  # fmt: skip
        alone = replace(Filters(), **{name: getattr(filters, name)})
        if not choose(rows, alone):
            values = sorted({row[column] for row in rows})
            if name == "questions":
                return f"--question: this run has the questions {values[0]} to {values[-1]}"
            shown = ", ".join(f"{value:g}" for value in values[:20])
            return f"--{name.replace('_', '-').removesuffix('s')}: this run has {shown}"
    return "no question of this run matches all of these filters together"
