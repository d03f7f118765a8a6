"""`sweep validate`: predictions against measured points, and how far off they are."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from sweep.cli.output import columns, console, json_option, write_json

if TYPE_CHECKING:
    from sweep.evidence.predict import Prediction


@click.command(
    name="validate",
    short_help="Compare predictions with measured memory or published throughput.",
    epilog="Example: sweep validate --what time    or: sweep validate my-points.csv --estimators",
)
@click.argument("points", metavar="[POINTS.csv]", required=False, type=click.Path(path_type=Path))
@click.option(
    "--what",
    type=click.Choice(("memory", "time")),
    default="memory",
    show_default=True,
    help="Peak memory, or throughput.",
)
@click.option(
    "--estimators", is_flag=True, help="Also show how far rules of thumb are off (memory only)."
)
@click.option("--worst", default=10, show_default=True, type=click.IntRange(0, 1000), metavar="N",
              help="Worst predictions listed, with their terms.")  # fmt: skip
@json_option
def command(points: Path | None, what: str, estimators: bool, worst: int, as_json: bool) -> None:
    """Predict every measured point, of the shipped evidence or of POINTS.csv, and print the errors.

    Errors are signed, predicted over measured less one: median, 90th percentile, worst, by stack,
    method, GPU count and source; then how many false and missed fits there are, and the worst
    predictions. Points whose batches were not full-length are shown apart.

    With --what time the points are published training runs: errors of tokens/s by method and GPU,
    stack, parallelism, scale and source, how often the faster and the cheaper of two setups is named
    right, and the worst predictions with their terms.
    """
    if what == "time":
        if estimators:
            raise click.UsageError("--estimators: rules of thumb speak of memory, not of time")
        _validate_time(points, worst, as_json)
        return
    from sweep.catalogs import load_catalogs
    from sweep.evidence.predict import predict_point
    from sweep.evidence.summary import read_evidence, summary_lines, summary_values

    catalogs = load_catalogs()
    predictions: list[Prediction] = [
        predict_point(point, catalogs) for point in read_evidence(points, catalogs)
    ]
    if as_json:
        found: dict[str, Any] = summary_values(
            predictions, estimators=estimators, worst_count=worst
        )
        write_json(found)
        return
    out = console()
    for line in summary_lines(predictions, columns(), estimators=estimators, worst_count=worst):
        out.print(line)


def _validate_time(points: Path | None, worst: int, as_json: bool) -> None:
    from sweep.catalogs import load_catalogs
    from sweep.evidence.run_summary import read_runs, run_summary_lines, run_summary_values
    from sweep.evidence.runs import predict_runs

    catalogs = load_catalogs()
    predictions = predict_runs(read_runs(points, catalogs), catalogs)
    if as_json:
        write_json(run_summary_values(predictions, catalogs, worst))
        return
    out = console()
    for line in run_summary_lines(predictions, catalogs, columns(), worst):
        out.print(line)
