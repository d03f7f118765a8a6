"""Plain tables: every figure of a ranking or a query under its column's name, nothing cut."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from rich.text import Text

if TYPE_CHECKING:
    from sweep.ranking import Ranking

_GAP = "  "
_WIDE = tuple(
    name
    for line in (
        "question rank model method seq_len train_text_gb train_tokens provider instance_type region",
        "price_model gpu gpu_count node_count hours hours_low hours_high",
        "usd usd_low usd_high tie may_be_late may_be_dear billed_hours usd_per_hour as_of peak_gib limit_gib",
        "headroom_gib stack precision quantization optimizer zero_stage dp tp pp cp ep micro_batch",
        "gradient_accumulation global_batch checkpointing offload cpu_cores_needed cpu_cores",
        "host_ram_needed_gib host_ram_gib disk_needed_gb local_nvme_gb network_needed_gbps",
        "network_gbps tokens_per_s usd_per_million_tokens same_price source setup knob limit_name need",
        "have",
    )
    for name in line.split()
)


def wide_lines(ranking: Ranking) -> Iterator[Text]:
    """One line a setup with every figure under its column's name, for wide screens and `less -S`."""
    rows = [
        {**answer.question, **row}
        for answer in ranking.answers
        for row in (answer.ranked or answer.nearest)
    ]
    names = [name for name in _WIDE if any(row.get(name) is not None for row in rows)]
    yield from table_lines(names, [[row.get(name) for name in names] for row in rows])


def table_lines(names: Sequence[str], rows: Sequence[Sequence[Any]]) -> Iterator[Text]:
    """Rows under their column names, numbers to the right; nothing is cut."""
    cells = [[_cell(value) for value in row] for row in rows]
    widths = [max([len(name), *(len(row[i]) for row in cells)]) for i, name in enumerate(names)]
    right = [any(isinstance(row[i], int | float) for row in rows) for i in range(len(names))]

    def line(row: Sequence[str]) -> str:
        return _GAP.join(
            f"{cell:>{width}}" if number else f"{cell:<{width}}"
            for cell, width, number in zip(row, widths, right, strict=True)
        ).rstrip()

    yield Text(line(names), style="bold")
    for row in cells:
        yield Text(line(row))


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.0f}" if value == int(value) and abs(value) < 1e15 else f"{value:.6g}"
    return " ".join(str(value).split())
