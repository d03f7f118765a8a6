"""The figures of a result row in words: money, hours, memory, knobs, needs, limits."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from sweep.units import MINUTE_S, format_count

Row = Mapping[str, Any]
# Marks a need that the machine does not meet, and a figure no source states.
LACKS, ASSUMED = "!", "?"
# Mark an answer whose high end is past the deadline, over the budget.
LATE, DEAR = "late?", "dear?"
_NEVER = "-"
_SEQUENCE_PARALLEL = "sequence parallel"


def money(usd: float | None) -> str:
    """'$0.47', '$23.80', '$1,003'."""
    if usd is None:
        return _NEVER
    return f"${usd:,.2f}" if usd < 1000.0 else f"${usd:,.0f}"


def hours(value: float | None) -> str:
    """'0.57', '21.2', '144'."""
    if value is None:
        return _NEVER
    if value < 9.995:
        return f"{value:.2f}"
    return f"{value:,.1f}" if value < 99.95 else f"{value:,.0f}"


def money_band(row: Row) -> str:
    """'$171 to $360': what a job may cost."""
    return f"{_round_money(row['usd_low'])} to {_round_money(row['usd_high'])}"


def hours_band(row: Row) -> str:
    """'6.11 to 12.9 h': how long a job may take."""
    return f"{hours(row['hours_low'])} to {hours(row['hours_high'])} h"


def _round_money(usd: float) -> str:
    """An uncertain amount: '$0.47', '$171', '$1,003'."""
    return money(usd) if usd < 99.995 else f"${usd:,.0f}"


def billing(row: Row) -> str:
    """By what steps it is billed: 'billed by the minute', 'billed by the second, at least 3,600 s'."""
    step, least = row["billing_granularity_s"], row["billing_minimum_s"]
    unit = {1.0: "by the second", 60.0: "by the minute", 3600.0: "by the hour"}.get(step)
    text = f"billed {unit or f'in steps of {step:,g} s'}"
    return f"{text}, at least {least:,g} s" if least > max(step, MINUTE_S) else text


def doubts(row: Row) -> list[str]:
    """What the high end of the band puts in doubt: ['may miss the deadline']."""
    found = ["may miss the deadline"] if row["may_be_late"] else []
    return found + (["may exceed the budget"] if row["may_be_dear"] else [])


def places(ranks: Sequence[int]) -> str:
    """Places of a ranking: '1-3', '1, 3', '1-2, 5'."""
    runs: list[list[int]] = []
    for rank in ranks:
        if runs and rank == runs[-1][-1] + 1:
            runs[-1].append(rank)
        else:
            runs.append([rank])
    return ", ".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs)


def ties(ranked: Sequence[Row]) -> str:
    """Which places the evidence does not tell apart; empty if the first is a winner by it."""
    if not ranked or not ranked[0]["tie"]:
        return ""
    tied = [row["rank"] for row in ranked if row["tie"]]
    if len(tied) == 1:
        return "a place not shown lies within the band of the prediction: not a winner by evidence"
    return f"places {places(tied)} lie within the band of the prediction: not a winner by evidence"


def hours_in_words(value: float | None) -> str:
    """'21.2 h', and days where hours would have to be divided: '3.2 days'."""
    if value is None:
        return _NEVER
    if value < 48.0:
        return f"{value:.3g} h"
    days = value / 24.0
    if days < 100.0:
        return f"{days:.3g} days"
    return f"{days:,.0f} days" if days < 1000.0 else f"{days / 365.25:,.3g} years"


def data_size(text_gb: float | None) -> str:
    """'1 MB', '2.5 GB', '10 TB'."""
    if text_gb is None:
        return _NEVER
    for unit, scale in (("TB", 1e3), ("GB", 1.0), ("MB", 1e-3)):
        if text_gb >= scale * 0.9999995:
            return f"{text_gb / scale:,.4g} {unit}"
    return f"{text_gb * 1e6:,.4g} kB"


def tokens(count: float) -> str:
    """'250 M tokens'."""
    return f"{format_count(count)} tokens"


def count_of(count: int, noun: str) -> str:
    """'1 node', '16 nodes'."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def gib(value: float | None) -> str:
    """'22.5'."""
    return _NEVER if value is None else f"{value:,.1f}"


def disk(size_gb: float) -> str:
    """'17 GB', '20.1 TB'."""
    return f"{size_gb:,.0f} GB" if size_gb < 1000.0 else f"{size_gb / 1000.0:,.1f} TB"


def gbps(rate: float) -> str:
    """'0.07 Gbit/s', '163 Gbit/s'."""
    return f"{rate:,.2g} Gbit/s" if rate < 10.0 else f"{rate:,.0f} Gbit/s"


def machine(row: Row) -> str:
    """'4 x RTX-A5000'."""
    return f"{row['gpu_count']:,} x {row['gpu']}"


def rented(row: Row) -> str:
    """'lambda gpu_8x_h100_sxm5', or what there is to say where nothing is sold."""
    if row.get("provider") is None:
        return "not sold in a ranked offer"
    return f"{row['provider']} {row['instance_type']}"


def percent_more(value: float, than: float) -> str:
    """'+6%', '+0%', or 'x 2.4' from twice on."""
    ratio = value / than if than else 1.0
    return f"+{(ratio - 1.0) * 100.0:.0f}%" if ratio < 2.0 else f"x {ratio:,.1f}"


def memory(row: Row) -> str:
    """'22.5 of 24.0 GiB'."""
    return f"{gib(row['peak_gib'])} of {gib(row['usable_gib'])} GiB"


def knob_words(row: Row) -> list[str]:
    """How the job is run, what does not apply left out: ['hf', 'bf16', 'zero 3', 'dp 8', ...]."""
    if row["stack"] is None:
        return []
    words = [row["stack"], row["precision"]]
    if row["quantization"] != "none":
        words.append(row["quantization"])
    words.append(row["optimizer"])
    words.append(f"zero {row['zero_stage']}")
    words.append(f"dp {row['dp']}")
    for degree in ("tp", "pp", "cp", "ep"):
        if row[degree] > 1:
            words.append(f"{degree} {row[degree]}")
    if row["sequence_parallel"]:
        words.append(_SEQUENCE_PARALLEL)
    words.append(f"micro-batch {row['micro_batch']}")
    words.append(f"checkpointing {row['checkpointing']}")
    if row["offload"] != "none":
        words.append(f"offload {row['offload']}")
    if row["attention"] != "flash":
        words.append(f"{row['attention']} attention")
    if row["cross_entropy"] != "plain":
        words.append(f"{row['cross_entropy']} loss")
    return words


def knob_codes(row: Row) -> str:
    """The same in short, for one line: 'hf bf16 zero3 dp8 tp2 mb4 ckpt-full'."""
    codes = []
    for word in knob_words(row):
        head, _, value = word.rpartition(" ")
        if head == "micro-batch":
            codes.append(f"mb{value}")
        elif head == "checkpointing":
            codes.append("" if value == "none" else f"ckpt-{value}")
        elif head in ("zero", "dp", "tp", "pp", "cp", "ep"):
            codes.append(f"{head}{value}")
        elif word == _SEQUENCE_PARALLEL:
            codes.append("sp")
        else:
            codes.append(word.replace(" ", "-"))
    return " ".join(filter(None, codes))


def needs(row: Row) -> str:
    """What one node must have, in short: '16 cores, 24 GiB, 17 GB disk!, 163 Gbit/s'."""
    parts = [f"{row['cpu_cores_needed']:g} cores{_mark(row['cpu_ok'])}"]
    if row["host_ram_needed_gib"] is not None:
        parts.append(f"{row['host_ram_needed_gib']:,.0f} GiB RAM{_mark(row['host_ram_ok'])}")
    parts.append(f"{disk(row['disk_needed_gb'])} disk{_mark(row['disk_ok'])}")
    if row["network_needed_gbps"]:
        assumed = ASSUMED if row["network_assumed"] else _mark(row["network_ok"])
        parts.append(f"{gbps(row['network_needed_gbps'])}{assumed}")
    return ", ".join(parts)


def needs_and_has(row: Row) -> list[str]:
    """The same with what the machine has, ? where no source says: ['16 cores (has 32)', ...]."""
    cores, ram, nvme = row["cpu_cores"], row["host_ram_gib"], row["local_nvme_gb"]
    silent = cores is None and ram is None and nvme is None

    def beside(need: str, has: str | None, ok: bool | None, remedy: str = "") -> str:
        if silent:
            return need
        lack = f" only{remedy}" if ok is False else ""
        return f"{need} (has {has or ASSUMED}{lack})"

    parts = [
        beside(
            f"{row['cpu_cores_needed']:g} CPU cores",
            None if cores is None else f"{cores:g}",
            row["cpu_ok"],
        )
    ]
    if row["host_ram_needed_gib"] is not None:
        parts.append(
            beside(
                f"{row['host_ram_needed_gib']:,.0f} GiB RAM",
                None if ram is None else f"{ram:,.0f}",
                row["host_ram_ok"],
            )
        )
    parts.append(
        beside(
            f"{disk(row['disk_needed_gb'])} disk",
            None if nvme is None else disk(nvme),
            row["disk_ok"],
            ": attach a volume",
        )
    )
    if row["network_needed_gbps"]:
        has = f"{row['network_gbps']:,.0f}"
        if row["network_assumed"]:
            has += " assumed"
        lack = " only" if row["network_ok"] is False else ""
        parts.append(f"{gbps(row['network_needed_gbps'])} network (has {has}{lack})")
    if silent:
        parts.append("what the machine has is not stated")
    return parts


def _mark(ok: bool | None) -> str:
    return LACKS if ok is False else ""


def extra_axes(question: Row) -> dict[str, str]:
    """What a question fixes beside model, method and data: {'seq_len': '4096', 'lora_rank': '64'}."""
    found = {"seq_len": str(question["seq_len"])}
    if question["images_per_sample"]:
        images = count_of(question["images_per_sample"], "image")
        found["images"] = f"{images} of {question['image_size']}"
    for name, value in json.loads(question["axes"]).items():
        if name == "lora_dropout" and not value:
            continue
        found[name] = f"{value:g}" if isinstance(value, float) else str(value)
    return found


def limit_in_words(row: Row) -> str:
    """Which limit failed and by how much, of one row of the nearest misses."""
    limit = row["limit_name"]
    if limit == "past_deadline" and row["need"] is not None:
        allowed = hours_in_words(row["have"])
        return f"past the deadline by {hours_in_words(row['short'])} ({allowed} allowed)"
    if limit == "over_budget":
        return f"over the budget by {money(row['short'])} ({money(row['have'])} allowed)"
    if limit in ("gpu_memory", "host_memory") and row["need"] is not None:
        what = "GPU memory" if limit == "gpu_memory" else "host memory"
        allowed = f"{gib(row['have'])} allowed" if row["have"] is not None else "unknown there"
        short = f" short by {gib(row['short'])} GiB" if row["short"] is not None else ""
        each = "each" if limit == "gpu_memory" else "a node"
        return f"{what}{short}: {gib(row['need'])} GiB {each}, {allowed}"
    absolute = {
        "no_price": "fits, but no ranked offer sells it",
        "unsupported": "the GPUs cannot do what was asked (data type or memory)",
        "no_layout": "no layout divides the model and the batch over the GPUs",
    }
    return absolute.get(limit) or str(limit).replace("_", " ")


def what_works(row: Row) -> str:
    """What would do if the limit of this row were lifted."""
    where = f"{machine(row)}, {count_of(row['node_count'], 'node')}"
    if row.get("provider") is not None:
        where += f", {rented(row)}"
    if row["limit_name"] in ("past_deadline", "over_budget", "no_price"):
        takes = [hours_in_words(row["hours"])]
        if row.get("usd") is not None:
            takes.append(money(row["usd"]))
        text = f"{', '.join(takes)} on {where}"
    else:
        text = where
        if row["hours"] is not None:
            text += f", in {hours_in_words(row['hours'])}"
    if row.get("gpus_for_deadline"):
        text += f"; in time with about {row['gpus_for_deadline']:,.0f} of them"
    return text
