"""What `sweep top` asks of a finished run: each question with its best setups, or what came nearest."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
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
    """The answers, in the order of the spec, with the run's settings and the age of its prices."""

    run: Row
    prices: Row
    answers: tuple[Answer, ...]

    def first(self, most: int) -> Ranking:
        """The same with no more than so many questions."""
        return replace(self, answers=self.answers[:most])

    @property
    def answered(self) -> int:
        """Questions for which something works."""
        return sum(bool(answer.ranked) for answer in self.answers)


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
    results: Results, filters: Filters, *, places: int = 2, every_offer: bool = False
) -> Ranking:
    """The best `places` setups of each matching question, and the nearest misses where none works.

    Each kind of node appears once, at its cheapest offer; with `every_offer` once for each offer.
    """
    chosen = choose(questions(results), filters)
    offers = filters.among_offers()
    name = "every_offer" if every_offer else "ranked"
    wanted = {"questions": [row["question"] for row in chosen]}
    ranked = _by_question(results.rows(_sql(name), {**wanted, **offers, "places": places}))
    open_questions = [question for question in wanted["questions"] if question not in ranked]
    nearest: dict[int, tuple[Row, ...]] = {}
    if open_questions:
        nearest = _by_question(results.rows(_sql("nearest"), {"questions": open_questions}))
    # What has an answer elsewhere, but none among the offers asked for.
    left = [question for question in open_questions if question not in nearest]
    if left:
        nearest |= _by_question(results.rows(_sql("nearest_among"), {"questions": left, **offers}))
    return Ranking(
        run=results.rows("SELECT * FROM run")[0],
        prices=results.rows(_sql("prices"))[0],
        answers=tuple(
            Answer(row, ranked.get(row["question"], ()), nearest.get(row["question"], ()))
            for row in chosen
        ),
    )


def _by_question(rows: Sequence[Row]) -> dict[int, tuple[Row, ...]]:
    found: dict[int, list[Row]] = {}
    for row in rows:
        found.setdefault(row["question"], []).append(row)
    return {question: tuple(group) for question, group in found.items()}


def _sql(name: str) -> str:
    return (_SQL_FOLDER / f"{name}.sql").read_text(encoding="utf-8")
