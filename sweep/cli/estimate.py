"""`sweep estimate`: a table of scenarios in, their predicted memory or throughput out."""

from __future__ import annotations

from pathlib import Path

import click

from sweep.cli.output import json_option, say, write_json


@click.command(
    name="estimate",
    short_help="Predict the memory or the throughput of every row of a file.",
    epilog="Example: sweep estimate points.csv --out predictions.csv",
)
@click.argument("points", metavar="POINTS.csv", type=click.Path(path_type=Path))
@click.option(
    "--what",
    type=click.Choice(("memory", "time")),
    default="memory",
    show_default=True,
    help="Peak memory, or throughput.",
)
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE",
              help="Write the predictions here instead of stdout.")  # fmt: skip
@click.option(
    "--estimators",
    is_flag=True,
    help="Add what the rules of thumb say of memory, a column each [GiB].",
)
@json_option
def command(points: Path, what: str, out: Path | None, estimators: bool, as_json: bool) -> None:
    """Predict peak memory for every row of POINTS.csv, in order.

    The file has the columns of the evidence catalog (id, model, method, stack, engine, micro_batch,
    seq_len, ...; README, "Measured points"). Each prediction is three peaks of one GPU in GiB
    (allocated, reserved, what the device shows), the band of the one its `measure` names, and whether
    it fits the GPU; a row that cannot be predicted says why.

    With --what time the file has the columns of catalogs/evidence/throughput.csv (id, model, method,
    gpu_type, gpu_count, framework, seq_len, micro_batch, ...), and each prediction is tokens/s of one
    GPU with its band.
    """
    if what == "time":
        if estimators:
            raise click.UsageError("--estimators: rules of thumb speak of memory, not of time")
        _estimate_time(points, out, as_json)
        return
    from sweep.catalogs import load_catalogs
    from sweep.evidence.points import read_points
    from sweep.evidence.predict import predict_point
    from sweep.evidence.tables import prediction_row, write_predictions

    rows = read_points(points)
    catalogs = load_catalogs()
    predictions = [predict_point(point, catalogs) for point in rows]
    if as_json:
        write_json([prediction_row(one) for one in predictions])
    text = write_predictions(predictions, estimators=estimators)
    if out:
        out.write_text(text, encoding="utf-8", newline="")
    elif not as_json:
        click.echo(text, nl=False)
    known = sum(1 for one in predictions if one.figures)
    where = f" in {out}" if out else ""
    say(f"{known} of {len(predictions)} rows predicted{where}; the others say why")


def _estimate_time(points: Path, out: Path | None, as_json: bool) -> None:
    from sweep.catalogs import load_catalogs
    from sweep.evidence.points import read_points
    from sweep.evidence.run_summary import prediction_row, write_run_predictions
    from sweep.evidence.runs import predict_runs

    predictions = predict_runs(read_points(points), load_catalogs())
    if as_json:
        write_json([prediction_row(one) for one in predictions])
    text = write_run_predictions(predictions)
    if out:
        out.write_text(text, encoding="utf-8", newline="")
    elif not as_json:
        click.echo(text, nl=False)
    known = sum(1 for one in predictions if one.tokens_per_s is not None)
    where = f" in {out}" if out else ""
    say(f"{known} of {len(predictions)} rows predicted{where}; the others say why")
