"""A ranking as lines for a terminal, a pipe or a file: rows in, text out; no SQL, no physics."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.text import Text

from sweep.report import words

if TYPE_CHECKING:
    from sweep.ranking import Answer, Ranking

Row = Mapping[str, Any]
# Up to this many questions are shown in full, more as a list.
MOST_CARDS = 4
_GAP = "  "
_HARD_SPACE = "\u00a0"
# Characters that knobs beside an answer must have for most of them to be read.
_LEAST_KNOBS = 44
_RENTED = "rented as (a node)"


def ranking_lines(ranking: Ranking, width: int, *, full: bool | None = None) -> Iterator[Text]:
    """The ranking in lines of at most `width`: in full for few questions, as a list for many.

    `full` decides it: every rank with its needs and knobs, or three lines a question.
    """
    if full is None:
        full = ranking.asked <= MOST_CARDS
    shared, varying = _axes(ranking.answers)
    yield from _header(ranking, shared, width)
    if full:
        for answer in ranking.answers:
            yield Text("")
            yield from _card(answer, ranking.run, varying, width)
    else:
        yield from _list(ranking, varying, width)
    yield from _legend(ranking, full, width)


def _axes(answers: Sequence[Answer]) -> tuple[dict[str, str], list[str]]:
    """The axis values that do not vary among the questions, and the names of those that do."""
    fixed = [words.extra_axes(answer.question) for answer in answers]
    names = list(dict.fromkeys(name for one in fixed for name in one))
    shared, varying = {}, []
    for name in names:
        values = {one[name] for one in fixed if name in one}  # absent: it says nothing there
        if len(values) == 1:
            shared[name] = values.pop()
        else:
            varying.append(name)
    return shared, varying


def _header(ranking: Ranking, shared: Mapping[str, str], width: int) -> Iterator[Text]:
    run, prices = ranking.run, ranking.prices
    limits = ["cheapest first" if run["objective"] == "usd" else "fastest first"]
    if run["deadline_hours"] is not None:
        limits.append(f"within {words.hours_in_words(run['deadline_hours'])}")
    if run["max_usd"] is not None:
        limits.append(f"for at most {words.money(run['max_usd'])}")
    limits.append(f"{run['memory_headroom']:.0%} of GPU memory kept free")
    limits += [f"{name} {value}" for name, value in shared.items()]
    name = f"{run['name']}:"
    for number, line in enumerate(_flow(name, limits, width)):
        text = Text(line)
        text.stylize("bold", 0, len(name) if number == 0 else 0)
        yield text
    facts = [f"{words.count_of(ranking.asked, 'question')}, {ranking.answered:,} with an answer"]
    if len(ranking.answers) < ranking.asked:
        facts.append(f"the first {len(ranking.answers):,} shown")
    if prices["offers"]:
        sellers = words.count_of(prices["providers"], "provider")
        facts.append(f"{prices['offers']:,} prices of {sellers}")
        if prices["newest"] is not None:
            facts.append(f"the newest seen {prices['newest']}")
    yield from (Text(line, style="dim") for line in _flow("", facts, width))


def _flow(label: str, items: Iterable[str], width: int) -> Iterator[str]:
    """A label and items, lines broken between items."""
    line = label
    for item in items:
        if not line or line == label:
            line = f"{line} {item}".lstrip()
        elif len(line) + len(item) + 3 > width:
            yield f"{line},"
            line = item
        else:
            line = f"{line}, {item}"
    yield line


def _label(question: Row, varying: Sequence[str]) -> str:
    axes = words.extra_axes(question)
    parts = [words.data_size(question["train_text_gb"])]
    parts += [f"{name} {axes[name]}" for name in varying if name in axes]
    return " ".join(parts)


# The list: three lines a question -----------------------------------------------------------------


def _list(ranking: Ranking, varying: Sequence[str], width: int) -> Iterator[Text]:
    answers = ranking.answers
    labels = [_label(answer.question, varying) for answer in answers]
    best = [answer.ranked[0] for answer in answers if answer.ranked]
    # Labels of many axes take a line of their own.
    label_width = max(map(len, [*labels, "text"]))
    label_width = label_width if label_width <= max(14, width // 6) else 0
    gpu_width = max((len(words.machine(row)) for row in best), default=4)
    node_width = max((len(f"{row['node_count']:,}") for row in best), default=0)
    node_width = max(node_width, len("nodes"))
    usd_width = max([len(words.money(row["usd"])) for row in best] + [len("usd")])
    fixed = 1 + label_width + gpu_width + node_width + len("hours") + usd_width + 5 * len(_GAP)
    rented_width = max([len(words.rented(row)) for row in best] + [len(_RENTED)])
    rented_width = max(min(rented_width, width - fixed), 8)
    indent = " " * (1 + (label_width or 2) + len(_GAP))
    knob_width = width - fixed - rented_width - len(_GAP)
    knobs_beside = knob_width >= _LEAST_KNOBS
    shown = _details_that_fit(answers, width - len(indent), knobs_beside)

    def line(label: str, gpus: str, nodes: str, where: str, hours: str, usd: str) -> str:
        cells = [
            f" {label:<{label_width}}", f"{gpus:<{gpu_width}}", f"{nodes:>{node_width}}",
            f"{_cut(where, rented_width):<{rented_width}}", f"{hours:>5}", f"{usd:>{usd_width}}",
        ]  # fmt: skip
        return _GAP.join(cells)

    yield Text("")
    head = line("text" if label_width else "", "GPUs", "nodes", _RENTED, "hours", "usd")
    yield Text(head + (f"{_GAP}how" if knobs_beside else ""), style="dim")
    group = None
    for answer, said in zip(answers, labels, strict=True):
        question, label = answer.question, said
        if (question["model"], question["method"]) != group:
            group = (question["model"], question["method"])
            if answer is not answers[0]:
                yield Text("")
            yield Text.assemble(
                (question["model"], "bold"), (f"  {question['method']}", "bold cyan")
            )
        if not label_width:
            yield Text(f" {label}")
            label = ""
        if not answer.ranked:
            start = f" {label:<{label_width}}{_GAP}"
            yield from _nothing(answer, start, indent, width, most=2)
            continue
        row = answer.ranked[0]
        text = line(
            label, words.machine(row), f"{row['node_count']:,}", words.rented(row),
            words.hours(row["hours"]), words.money(row["usd"]),
        )  # fmt: skip
        how = _GAP + _cut(words.knob_codes(row), knob_width) if knobs_beside else ""
        yield Text.assemble(
            (text[:-usd_width], ""), (text[-usd_width:], "bold green"), (how, "dim")
        )
        yield Text(_cut(indent + _certainty(answer, ranking.run), width), style="dim")
        details = _details(answer)
        found = "; ".join(details[name] for name in shown if details.get(name))
        yield Text(_cut(indent + found, width), style="dim")


# What stands under each answer, most important first, and in the order it is written.
_BY_IMPORTANCE = ("needs", "seen", "memory", "knobs")
_IN_ORDER = ("needs", "memory", "knobs", "seen")


def _details(answer: Answer) -> dict[str, str]:
    row = answer.ranked[0]
    return {
        "needs": words.needs(row),
        "memory": words.memory(row),
        "knobs": words.knob_codes(row),
        "seen": f"price of {row['as_of']}" if row["as_of"] is not None else "own price",
    }


def _certainty(answer: Answer, run: Row) -> str:
    """The band of an answer and its runner-up: a tie where the evidence does not tell them apart."""
    row = answer.ranked[0]
    late = f" {words.LATE}" if row["may_be_late"] else ""
    dear = f" {words.DEAR}" if row["may_be_dear"] else ""
    text = f"{words.hours_band(row)}{late}, {words.money_band(row)}{dear}"
    ties = [other for other in answer.ranked[1:] if other["tie"]]
    if other := next(iter(ties or answer.ranked[1:]), None):
        measure = "hours" if run["objective"] == "hours" else "usd"
        more = words.percent_more(other[measure], row[measure])
        word = "tie" if ties else "next"
        text += f"; {word} {more}: {words.machine(other)}, {other['provider']}"
    elif row["tie"]:
        text += "; tie"
    return text


def _details_that_fit(answers: Sequence[Answer], width: int, knobs_beside: bool) -> list[str]:
    """The details that fit into one line for nearly every question, so that lines look alike."""
    found = [_details(answer) for answer in answers if answer.ranked]
    shown: list[str] = []
    for name in _BY_IMPORTANCE:
        if name == "knobs" and knobs_beside:
            continue
        tried = [*shown, name]
        lengths = sorted(sum(len(one.get(n, "")) + 2 for n in tried) - 2 for one in found)
        if lengths and lengths[int(len(lengths) * 0.95)] <= width:
            shown = tried
    shown = shown or list(_BY_IMPORTANCE[:1])
    return [name for name in _IN_ORDER if name in shown]


# Cards: every rank of a question in full ----------------------------------------------------------


def _card(answer: Answer, run: Row, varying: Sequence[str], width: int) -> Iterator[Text]:
    question = answer.question
    axes = words.extra_axes(question)
    head = [
        f"{words.data_size(question['train_text_gb'])} of text",
        words.tokens(question["train_tokens"]),
        *(f"{name} {axes[name]}" for name in varying if name in axes),
        f"question {question['question']}",
    ]
    title = Text.assemble((question["model"], "bold"), (f"  {question['method']}", "bold cyan"))
    rest = _GAP + ", ".join(head)
    if title.cell_len + len(rest) <= width:
        title.append(rest)
        yield title
    else:
        yield title
        yield Text("  " + _cut(", ".join(head), width - 2))
    if not answer.ranked:
        yield from _nothing(answer, " ", "   ", width, most=8)
        return
    measure = "hours" if run["objective"] == "hours" else "usd"
    best = answer.ranked[0][measure]
    rank_width = len(str(len(answer.ranked)))
    gpu_width = max(len(_gpus(row)) for row in answer.ranked)
    usd_width = max(len(words.money(row["usd"])) for row in answer.ranked)
    for row in answer.ranked:
        more = "" if row is answer.ranked[0] else words.percent_more(row[measure], best)
        more += ", tie" if more and row["tie"] else ""
        price = f"{words.money(row['usd']):>{usd_width}}"
        front = f" {row['rank']:>{rank_width}}{_GAP}"
        middle = f"{_GAP}{words.hours(row['hours']):>5} h{_GAP}{_gpus(row):<{gpu_width}}{_GAP}"
        room = width - len(front) - len(price) - len(middle) - (len(more) + 2 if more else 0)
        line = Text.assemble(front, (price, "bold green"), middle)
        line.append(_cut(words.rented(row), max(room, 12)))
        if more:
            line.append(f"{_GAP}{more}", style="dim")
        yield line
        facts = _facts(row)
        for label, fact in facts.items():
            start = f"{' ' * len(front)}{label:<8}"
            if row is not answer.ranked[0] and fact == _facts(answer.ranked[0])[label]:
                fact = "as above"
            for text in _wrap(fact, start, " " * len(start), width):
                found = Text(text)
                found.stylize("dim", 0, len(start) if text.startswith(start) else 0)
                yield found
    for text in _wrap(words.ties(answer.ranked), " ", " ", width):
        yield Text(text, style="yellow")


def _gpus(row: Row) -> str:
    return f"{words.machine(row)}, {words.count_of(row['node_count'], 'node')}"


def _facts(row: Row) -> dict[str, str]:
    price = [f"{words.money(row['usd_per_hour'])} a node-hour", row["price_model"], row["region"]]
    if row["currency"] != "USD":
        price[0] += f" ({row['price_per_hour']:,.2f} {row['currency']})"
    price.append(words.billing(row))
    price.append("own" if row["as_of"] is None else f"seen {row['as_of']}")
    if row["same_price"] > 1:
        price.append(f"{words.count_of(row['same_price'], 'offer')} at this price")
    free = "free" if row["headroom_gib"] >= 0 else "short"
    doubts = "".join(f", {doubt}" for doubt in words.doubts(row))
    band = f"{words.gib(row['allocated_low_gib'])} to {words.gib(row['allocated_high_gib'])}"
    found = {
        "band": [f"{words.money_band(row)}", f"{words.hours_band(row)}{doubts}"],
        "price": price,
        "memory": [
            f"{words.gib(row['allocated_gib'])} GiB a GPU allocated at peak ({band})",
            f"{words.gib(row['peak_gib'])} needed",
            f"{words.gib(row['usable_gib'])} usable",
            f"{words.gib(abs(row['headroom_gib']))} {free}",
        ],
        "how": [
            *words.knob_words(row),
            f"{row['gradient_accumulation']} x accumulated = global batch {row['global_batch']}",
        ],
        "node": words.needs_and_has(row),
    }
    # Lines break between the parts, not within them.
    return {
        label: ", ".join(part.replace(" ", _HARD_SPACE) for part in parts)
        for label, parts in found.items()
    }


# Where nothing works ------------------------------------------------------------------------------

# Limits that are no matter of more or less.
_ABSOLUTE = ("unsupported", "no_layout")


def _nothing(answer: Answer, start: str, indent: str, width: int, most: int) -> Iterator[Text]:
    """Which limit failed, by how much, and what would work without it."""
    if not answer.nearest:
        yield Text(f"{start}nothing works, and nothing comes near", style="yellow")
        return
    lead, style = f"{start}nothing works: ", "yellow"
    said: set[Any] = set()
    for row in answer.nearest[:most]:
        limit = row["limit_name"]
        # What other GPUs cannot do matters only where it is all there is to say.
        if (limit, row["setup"], row.get("offer")) in said or (limit in _ABSOLUTE and said):
            continue
        if limit not in said:
            text = lead + words.limit_in_words(row)
            yield from (Text(line, style=style) for line in _wrap(text, "", indent, width))
            lead, style = f"{indent}or ", ""
        said |= {limit, (limit, row["setup"], row.get("offer"))}
        if limit in _ABSOLUTE:
            continue
        label = "closest"
        if limit in ("past_deadline", "over_budget"):
            label = "fastest" if row["closest_by"] == "hours" else "cheapest"
        text = f"{indent}  {label}: {words.what_works(row)}"
        yield from (Text(line) for line in _wrap(text, "", indent + "    ", width))


# Around -------------------------------------------------------------------------------------------


def _legend(ranking: Ranking, full: bool, width: int) -> Iterator[Text]:
    if full or not ranking.answers:
        return
    rows = [answer.ranked[0] for answer in ranking.answers if answer.ranked]
    notes = []
    if any(words.needs(row).count(words.LACKS) for row in rows):
        notes.append(f"{words.LACKS} the node has less (attach a volume, or choose another)")
    if any(words.ASSUMED in words.needs(row) for row in rows):
        notes.append(f"{words.ASSUMED} the node's network is assumed")
    if any(row["may_be_late"] for row in rows):
        notes.append(f"{words.LATE} the high end of the band is past the deadline")
    if any(row["may_be_dear"] for row in rows):
        notes.append(f"{words.DEAR} the high end of the band is over the budget")
    if any(row["tie"] for row in rows):
        notes.append("tie: within the band of the prediction, not a winner by evidence")
    if rows:
        notes.append("needs are per node")
    notes.append("narrow it with --model, --method, ... for prices, knobs and runners-up in full")
    yield Text("")
    for line in _wrap("; ".join(notes), "", "", width):
        yield Text(line, style="dim")


def _wrap(text: str, start: str, indent: str, width: int) -> list[str]:
    lines = textwrap.wrap(
        text,
        max(width, 40),
        initial_indent=start,
        subsequent_indent=indent,
        break_long_words=False,
        break_on_hyphens=False,
    )
    return [line.replace(_HARD_SPACE, " ") for line in lines]


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else text[: max(width - 1, 1)] + "…"
