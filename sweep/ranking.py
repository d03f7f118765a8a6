"""What `sweep top` asks of a finished run: each question with its best setups, or what came nearest."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sweep.results import Results

_SQL_FOLDER = Path(__file__).parent / "sql" / "ranking"
ANY = "*"
Row = Mapping[str, Any]


@dataclass(frozen=True)
class Filters:
    """Which questions to show, and among which offers to choose; empty and "*" leave all.

    The offer's fields are names or globs, case ignored. A question must match every field given.
    """

    questions: tuple[int, ...] = ()
    models: tuple[str, ...] = ()
    methods: tuple[str, ...] = ()
    seq_lens: tuple[int, ...] = ()
    text_gb: tuple[float, ...] = ()
    tokens: tuple[float, ...] = ()
    gpu: str = ANY
    provider: str = ANY
    region: str = ANY
    price_model: str = ANY
    instance_type: str = ANY

    def among_offers(self) -> dict[str, str]:
        """The filters on setups and offers, as the parameters of the queries."""
        return {
            "gpus": self.gpu,
            "providers": self.provider,
            "regions": self.region,
            "price_models": self.price_model,
            "instance_types": self.instance_type,
        }


@dataclass(frozen=True)
class Answer:
    """One question: its best setups in order, or, where there is none, the nearest misses."""

    question: Row
    ranked: tuple[Row, ...]
    nearest: tuple[Row, ...]


@dataclass(frozen=True)
class Ranking:
    """The first answers, in the order of the spec, with the run's settings and the age of its prices.

    Of `asked` matching questions `answered` have a setup that works; `answers` may hold fewer.
    """

    run: Row
    prices: Row
    asked: int
    answered: int
    answers: tuple[Answer, ...]


def questions(results: Results) -> list[dict[str, Any]]:
    """Every question of a run with its workload, in the order of the spec."""
    return results.rows(_sql("questions"))


def known_names(results: Results) -> dict[str, list[str]]:
    """What the filters on setups and offers can name: values by filter, each list sorted."""
    found: dict[str, list[str]] = {}
    for row in results.rows(_sql("names")):
        found.setdefault(row["filter"], []).append(row["value"])
    return found


def choose(rows: Sequence[Row], filters: Filters) -> list[Row]:
    """The questions that match; text and token amounts match within a millionth."""

    def close(value: float | None, wanted: Sequence[float]) -> bool:
        return value is not None and any(math.isclose(value, w, rel_tol=1e-6) for w in wanted)

    return [
        row
        for row in rows
        if (not filters.questions or row["question"] in filters.questions)
        and (not filters.models or row["model"] in filters.models)
        and (not filters.methods or row["method"] in filters.methods)
        and (not filters.seq_lens or row["seq_len"] in filters.seq_lens)
        and (not filters.text_gb or close(row["train_text_gb"], filters.text_gb))
        and (not filters.tokens or close(row["train_tokens"], filters.tokens))
    ]


def rank(
    results: Results,
    filters: Filters,
    *,
    places: int = 2,
    every_offer: bool = False,
    most: int | None = None,
) -> Ranking:
    """The best `places` setups of each matching question, and the nearest misses where none works.

    Each kind of node appears once, at its cheapest offer; with `every_offer` once for each offer. With
    `most`, only so many questions are looked at in detail.
    """
    every = questions(results)
    chosen = choose(every, filters)
    run = results.rows("SELECT * FROM run")[0]
    answers = tuple(answers_of(results, chosen[:most], filters, places, every_offer))
    answered = sum(bool(answer.ranked) for answer in answers)
    if len(answers) < len(chosen):
        name = "answered" if run["max_usd"] is None else "answered_in_budget"
        # A list of thousands that names every question there is takes longer than the counting.
        asked = None if len(chosen) == len(every) else chosen
        answered = _rows(results, name, asked, filters.among_offers())[0]["answered"]
    return Ranking(
        run=run,
        prices=results.rows(_sql("prices"))[0],
        asked=len(chosen),
        answered=answered,
        answers=answers,
    )


def answers_of(
    results: Results, chosen: Sequence[Row], filters: Filters, places: int, every_offer: bool
) -> Iterator[Answer]:
    """The answer of each of some questions, in their order."""
    offers = filters.among_offers()
    name = "every_offer" if every_offer else "ranked"
    ranked = _by_question(_rows(results, name, chosen, {**offers, "places": places}))
    left = [row for row in chosen if row["question"] not in ranked]
    nearest = _by_question(_rows(results, "nearest", left, {}))
    # What has an answer elsewhere, but none among the offers asked for.
    left = [row for row in left if row["question"] not in nearest]
    nearest |= _by_question(_rows(results, "nearest_among", left, offers))
    for row in chosen:
        yield Answer(row, ranked.get(row["question"], ()), nearest.get(row["question"], ()))


def _rows(
    results: Results, name: str, chosen: Sequence[Row] | None, parameters: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """The rows of a query about some questions, or about all (None): $questions in its text.

    As literals they reach the facts through every view: on 12 million facts that takes a tenth of the
    time of a list given as a parameter.
    """
    if chosen is None:
        numbers = "SELECT question FROM questions"
    elif chosen:
        numbers = ", ".join(str(int(row["question"])) for row in chosen)
    else:
        return []
    return results.rows(_sql(name).replace("$questions", numbers), dict(parameters) or None)


def _by_question(rows: Sequence[Row]) -> dict[int, tuple[Row, ...]]:
    found: dict[int, list[Row]] = {}
    for row in rows:
        found.setdefault(row["question"], []).append(row)
    return {question: tuple(group) for question, group in found.items()}


def _sql(name: str) -> str:
    return (_SQL_FOLDER / f"{name}.sql").read_text(encoding="utf-8")
