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
    short_help="Compare predictions with measured memory.",
    epilog="Example: sweep validate    or: sweep validate my-points.csv --estimators",
)
@click.argument("points", metavar="[POINTS.csv]", required=False, type=click.Path(path_type=Path))
@click.option("--estimators", is_flag=True, help="Also show how far rules of thumb are off.")
@click.option("--worst", default=10, show_default=True, type=click.IntRange(0, 1000), metavar="N",
              help="Worst predictions listed, with their terms.")  # fmt: skip
@json_option
def command(points: Path | None, estimators: bool, worst: int, as_json: bool) -> None:
    """Predict every measured point, of the shipped evidence or of POINTS.csv, and print the errors.

    Errors are signed, predicted over measured less one: median, 90th percentile, worst, by stack,
    method, GPU count and source; then how many false and missed fits there are, and the worst
    predictions. Points whose batches were not full-length are shown apart.
    """
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
