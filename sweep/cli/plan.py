"""`sweep plan`: what a spec would decide, write and take, without deciding anything."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from sweep.cli.output import json_option, write_json

if TYPE_CHECKING:
    from sweep.plan import Plan
    from sweep.spec import Spec

# Bytes of a row in Parquet (zstd) and what the database adds, measured on the shipped specs: keep =
# "best" also has a row in the database for nearly every row of the facts.
_ROW_BYTES = {"best": 9.0, "feasible": 4.0, "all": 3.0}
# The other tables and an almost empty database.
_FIXED_BYTES = 4e6
# Start-up, tables and database of a run, on the machine of speed.SHIPPED_RATE_PER_S.
_FIXED_S = 2.0


@click.command(
    name="plan",
    short_help="Say what a spec would decide, write and take.",
    epilog="Example: sweep plan my-sweep.toml",
)
@click.argument("spec_path", metavar="SPEC", type=click.Path(path_type=Path))
@click.option("--threads", type=click.IntRange(1, 1024), metavar="N", help="Threads of the run.")
@json_option
def command(spec_path: Path, threads: int | None, as_json: bool) -> None:
    """Say what SPEC would decide, write and take, without deciding anything."""
    from sweep.catalogs import load_catalogs
    from sweep.cli.speed import known_speed, usable_threads
    from sweep.plan import build_plan
    from sweep.spec import load_spec

    spec = load_spec(spec_path)
    plan = build_plan(spec, load_catalogs([Path(entry) for entry in spec.hardware.catalogs]))
    threads = threads or usable_threads()
    speed = known_speed(spec.results.keep)
    sizes = _sizes(plan)
    sizes |= {
        "threads": threads,
        "seconds": _FIXED_S + plan.scenarios / (speed.rate_per_s * threads),
        "scenarios_per_s": speed.rate_per_s * threads,
        "speed_measured_here": speed.measured,
    }
    if as_json:
        write_json(sizes)
        return
    for line in _lines(spec, plan, sizes):
        click.echo(line)


def _sizes(plan: Plan) -> dict[str, Any]:
    keep = plan.spec.results.keep
    # Without deciding, nobody knows how many are feasible: at most all of them.
    rows = plan.pairs if keep == "best" else plan.scenarios
    dates = [offer.as_of for offer in plan.offers if offer.as_of is not None]
    return {
        "name": plan.spec.name,
        "questions": len(plan.workloads) * len(plan.spec.axes["train_tokens"]),
        "workloads": len(plan.workloads),
        "models": len(plan.shapes),
        "setups": len(plan.setups),
        "shapes": len(plan.hardware_shapes),
        "gpus": len({shape.gpu for shape in plan.hardware_shapes}),
        "offers": len(plan.offers),
        "providers": len({offer.provider for offer in plan.offers}),
        "offers_oldest": min(dates, default=None),
        "offers_newest": max(dates, default=None),
        "knobs": plan.knob_count,
        "scenarios": plan.scenarios,
        "keep": keep,
        "rows": rows,
        "bytes": rows * _ROW_BYTES[keep] + _FIXED_BYTES,
    }


def _lines(spec: Spec, plan: Plan, sizes: dict[str, Any]) -> list[str]:
    from sweep.report.words import count_of
    from sweep.spec_fields import VARIABLES
    from sweep.units import format_bytes, format_count, format_seconds

    keys = {variable.column: variable.key for variable in VARIABLES}
    tokens = len(spec.axes["train_tokens"])
    axes = [
        count_of(sizes["models"], "model"),
        *(
            f"{len(values)} {keys[name]}"
            for name, values in spec.axes.items()
            if name not in ("model", "train_tokens") and len(values) > 1
        ),
        *([f"{tokens} sizes of data"] if tokens > 1 else []),
    ]
    most = "at most " if sizes["keep"] == "feasible" else ""
    measured = "as the last run here" if sizes["speed_measured_here"] else "a shipped figure"
    kinds = f"{count_of(sizes['shapes'], 'kind')} of node with {count_of(sizes['gpus'], 'GPU')}"
    sellers = count_of(sizes["providers"], "provider")
    if sizes["offers_newest"]:
        sellers += f", the newest of {sizes['offers_newest']}"
    rate = f"{format_count(sizes['scenarios_per_s'])} scenarios/s ({measured})"
    lines = [
        ("questions", f"{sizes['questions']:,}", " x ".join(axes)),
        ("setups", f"{sizes['setups']:,}", f"{kinds}, up to {spec.hardware.max_gpus:,} GPUs"),
        ("offers", f"{sizes['offers']:,}", sellers),
        ("knobs", f"{sizes['knobs']:,}", "combinations, those no model or setup can use included"),
        ("scenarios", f"{sizes['scenarios']:,}", "to decide"),
        ("rows", f"{sizes['rows']:,}", f'{most}with keep = "{sizes["keep"]}"'),
        ("disk", format_bytes(sizes["bytes"]), f"{most}for results and database"),
        (
            "time",
            format_seconds(sizes["seconds"]),
            f"with {count_of(sizes['threads'], 'thread')} at {rate}",
        ),
    ]
    width = max(len(value) for _, value, _ in lines)
    return [
        f"{spec.name} ({spec.path})",
        *(f"  {label:<10} {value:>{width}}  {text}" for label, value, text in lines),
    ]
