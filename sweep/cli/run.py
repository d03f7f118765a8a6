"""`sweep run`: decide every scenario of a spec into a folder, then print the ranking."""

from __future__ import annotations

import dataclasses
import datetime as dt
import os
import shlex
import signal
import sys
import threading
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

import click

from sweep import vocabulary
from sweep.cli import INTERRUPTED, NOTHING_FEASIBLE
from sweep.cli.output import json_option, say

if TYPE_CHECKING:
    from sweep.manifest import Manifest
    from sweep.plan import Plan
    from sweep.progress import Progress
    from sweep.spec import Spec


@click.command(
    name="run",
    short_help="Decide every scenario of a spec.",
    epilog="Example: sweep run my-sweep.toml --out outputs/my-sweep --threads 4",
)
@click.argument("spec_path", metavar="SPEC", type=click.Path(path_type=Path))
@click.option("--out", "folder", required=True, metavar="DIR", type=click.Path(path_type=Path),
              help="Folder of the results; a run begun there is finished.")  # fmt: skip
@click.option("--threads", type=click.IntRange(1, 1024), metavar="N",
              help="Threads; as many as processors if not given. The results do not depend on it.")  # fmt: skip
@click.option("--keep", type=click.Choice(vocabulary.KEEPS),
              help="Rows written, in place of what the spec says.")  # fmt: skip
@click.option("--fresh", is_flag=True, help="Start over, whatever run the folder holds.")
@click.option("--no-ranking", is_flag=True, help="Print no ranking: nothing on stdout.")
@click.option("--quiet", is_flag=True, help="The same, and no progress either.")
@click.option(
    "--fail-infeasible", is_flag=True, help="Exit with 3 if nothing works for any question."
)
@json_option
def command(
    spec_path: Path,
    folder: Path,
    threads: int | None,
    keep: str | None,
    fresh: bool,
    no_ranking: bool,
    quiet: bool,
    fail_infeasible: bool,
    as_json: bool,
) -> int | None:
    """Decide every scenario of SPEC into the folder DIR, then print the ranking.

    Interrupted once (Ctrl-C), it finishes the parts it is at; the same command goes on from there.
    Interrupted twice, it stops at once; finished parts stay.
    """
    from sweep.cli.speed import usable_threads
    from sweep.report.words import count_of
    from sweep.rerank import prices_sha256, remember_prices
    from sweep.spec import load_spec

    spec = load_spec(spec_path)
    if keep:
        spec = dataclasses.replace(spec, results=dataclasses.replace(spec.results, keep=keep))
    threads = threads or usable_threads()
    prices = prices_sha256(spec, dt.date.today())
    plan = _plan(spec)
    if not quiet:
        say(
            f"{spec.name}: {count_of(plan.scenarios, 'scenario')}, "
            f"{count_of(len(plan.workloads), 'workload')} on "
            f"{count_of(len(plan.setups), 'setup')}, {count_of(threads, 'thread')}"
        )
    outcome = _run(plan, folder, threads, fresh=fresh, quiet=quiet)
    if outcome is None:
        return INTERRUPTED
    manifest, progress = outcome

    from sweep.cli.top import MOST_LISTED, show_ranking, write_ranking
    from sweep.ranking import Filters, rank
    from sweep.results import open_results

    with open_results(folder) as results:
        remember_prices(folder, spec_path, prices, spec.results.top)
        if not quiet:
            say(_what_was_decided(manifest, progress, folder))
        silent = (quiet or no_ranking) and not as_json
        if silent and not fail_infeasible:
            return None
        most = None if as_json else MOST_LISTED
        ranking = rank(results, Filters(), places=spec.results.top, most=most)
    if as_json:
        write_ranking(ranking, _facts(manifest, progress, folder))
    elif not silent:
        show_ranking(ranking)
    return NOTHING_FEASIBLE if fail_infeasible and not ranking.answered else None


def _plan(spec: Spec) -> Plan:
    from sweep.catalogs import load_catalogs
    from sweep.plan import build_plan

    return build_plan(spec, load_catalogs([Path(entry) for entry in spec.hardware.catalogs]))


def _run(
    plan: Plan, folder: Path, threads: int, *, fresh: bool, quiet: bool
) -> tuple[Manifest, Progress] | None:
    """The engine with progress and signals around it; None if it was interrupted."""
    from sweep import engine
    from sweep.cli.speed import remember_speed
    from sweep.kernels.compile import CACHE_FOLDER
    from sweep.progress import Progress

    compiled = CACHE_FOLDER is not None and any(CACHE_FOLDER.rglob("*.nbi"))
    if not (compiled or quiet):
        say("compiling the kernels, which takes about 10 s (once for this version of sweep)")
    stop = threading.Event()
    progress = Progress(None if quiet else sys.stderr, color=not os.environ.get("NO_COLOR"))
    try:
        with _Signals(stop, quiet=quiet), progress:
            manifest = engine.run(
                plan, folder, threads=threads, progress=progress, stop=stop, resume=not fresh
            )
    except engine.Interrupted:
        arguments = " ".join(shlex.quote(word) for word in sys.argv[1:] if word != "--fresh")
        say(
            f"interrupted: {progress.done:,} of {progress.total:,} scenarios are decided and kept "
            f"in {folder}; to go on: sweep {arguments}"
        )
        return None
    if compiled:
        decided = progress.done - progress.before
        remember_speed(plan.spec.results.keep, decided, progress.seconds, threads)
    return manifest, progress


class _Signals:
    """While it lasts, the first Ctrl-C or SIGTERM sets `stop`, the second ends the process at once.

    That is safe: files are written under another name and renamed, the lock is the system's.
    """

    def __init__(self, stop: threading.Event, *, quiet: bool) -> None:
        self._stop = stop
        self._quiet = quiet
        self._before: dict[int, Any] = {}

    def __enter__(self) -> None:
        for number in (signal.SIGINT, signal.SIGTERM):
            self._before[number] = signal.signal(number, self._asked)

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _asked(self, _number: int, _frame: FrameType | None) -> None:
        if self._stop.is_set():
            os._exit(INTERRUPTED)
        self._stop.set()
        if not self._quiet:
            # Not through click or print: a handler may interrupt either halfway.
            os.write(2, b"\nfinishing the parts at hand; again to stop at once\n")


def _facts(manifest: Manifest, progress: Progress, folder: Path) -> dict[str, Any]:
    return {
        "folder": str(folder),
        "scenarios": manifest.scenarios,
        "scenarios_decided_now": progress.done - progress.before,
        "rows": manifest.rows,
        "verdicts": dict(manifest.verdicts),
        "seconds": progress.seconds,
        "scenarios_per_s": progress.rate_per_s,
        "threads": manifest.threads,
        "bytes": sum(part.size_bytes for part in manifest.parts),
    }


def _what_was_decided(manifest: Manifest, progress: Progress, folder: Path) -> str:
    from sweep.units import format_bytes, format_count, format_seconds

    size = format_bytes(sum(part.size_bytes for part in manifest.parts))
    rows = f"{manifest.rows:,} rows ({size}) in {folder}"
    if progress.done == progress.before:
        return f"{manifest.scenarios:,} scenarios were decided before; {rows}"
    return (
        f"{manifest.scenarios:,} scenarios decided in {format_seconds(progress.seconds)} "
        f"({format_count(progress.rate_per_s)}/s); {rows}"
    )
