"""`sweep run`: decide every scenario of a spec, or one shard of them, into a folder."""

from __future__ import annotations

import os
import shlex
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, TypeVar

import click

from sweep import vocabulary
from sweep.cli import INTERRUPTED
from sweep.cli.finished import Planned, Wanted, plan_spec, show_finished
from sweep.cli.output import json_option, say, write_json
from sweep.errors import SpecError
from sweep.shards import Shard, parse_shard

if TYPE_CHECKING:
    from sweep.engine import ShardResult
    from sweep.manifest import Manifest
    from sweep.progress import Progress

T = TypeVar("T")


def _read_shard(ctx: click.Context, parameter: click.Parameter, text: str | None) -> Shard | None:
    try:
        return parse_shard(text) if text is not None else None
    except SpecError as error:
        raise click.BadParameter(str(error), ctx, parameter) from error


@click.command(
    name="run",
    short_help="Decide every scenario of a spec.",
    epilog="Example: sweep run my-sweep.toml --out outputs/my-sweep --threads 4",
)
@click.argument("spec_path", metavar="SPEC", type=click.Path(path_type=Path))
@click.option("--out", "folder", required=True, metavar="DIR", type=click.Path(path_type=Path),
              help="Folder of the results; a run begun there is finished.")  # fmt: skip
@click.option("--shard", metavar="i/n", callback=_read_shard,
              help="Decide one of n shares of the run, i from 0 to n - 1; then `sweep finish`.")  # fmt: skip
@click.option("--on", type=click.Choice(["ray"]),
              help="Decide on a Ray cluster; all its nodes see DIR.")  # fmt: skip
@click.option("--address", metavar="ADDRESS",
              help="The cluster's; else RAY_ADDRESS, the one on this machine, or a new one.")  # fmt: skip
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
    shard: Shard | None,
    on: str | None,
    address: str | None,
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

    With --shard i/n it decides one of n shares, prints no ranking, and `sweep finish` makes a run of
    them all. Shards may run at the same time, in one folder they all see or each in its own.
    """
    from sweep.cli.speed import usable_threads
    from sweep.report.words import count_of

    if shard and fresh:
        raise click.UsageError(
            "--fresh would remove the parts of the other shards: delete the folder before the first"
        )
    if shard and fail_infeasible:
        raise click.UsageError("--fail-infeasible goes with `sweep finish`: a shard ranks nothing")
    if on and (shard or threads):
        raise click.UsageError(
            f"--{'shard' if shard else 'threads'} does not go with --on: each processor of the "
            "cluster takes shards"
        )
    if address and not on:
        raise click.UsageError("--address is that of a Ray cluster: it goes with --on ray")
    planned = plan_spec(spec_path, keep)
    plan = planned.plan
    threads = threads or usable_threads()
    if not quiet:
        say(
            f"{planned.spec.name}{f', shard {shard}' if shard else ''}: "
            f"{count_of(plan.scenarios, 'scenario')}, "
            f"{count_of(len(plan.workloads), 'workload')} on "
            f"{count_of(len(plan.setups), 'setup')}, "
            f"{'on Ray' if on else count_of(threads, 'thread')}"
        )
    wanted = Wanted(no_ranking, quiet, as_json, fail_infeasible)
    if shard:
        next_words = _finish_words(spec_path, folder, keep)
        return _run_shard(planned, folder, shard, threads, next_words, wanted)
    from sweep import engine

    def work(progress: Progress, stop: threading.Event) -> Manifest:
        if on:
            from sweep.on_ray import run_on_ray

            return run_on_ray(
                plan, folder, address=address, progress=progress, stop=stop, resume=not fresh
            )
        return engine.run(
            plan, folder, threads=threads, progress=progress, stop=stop, resume=not fresh
        )

    outcome = _watched(work, planned, folder, 0 if on else threads, quiet=quiet)
    if outcome is None:
        return INTERRUPTED
    manifest, progress = outcome
    return show_finished(planned, folder, manifest, progress, wanted)


def _run_shard(
    planned: Planned, folder: Path, shard: Shard, threads: int, then: str, wanted: Wanted
) -> int | None:
    from sweep import engine

    def work(progress: Progress, stop: threading.Event) -> ShardResult:
        return engine.run_shard(
            planned.plan, folder, shard, threads=threads, progress=progress, stop=stop
        )

    outcome = _watched(work, planned, folder, threads, quiet=wanted.quiet)
    if outcome is None:
        return INTERRUPTED
    found, progress = outcome
    if not wanted.quiet:
        say(_what_the_shard_did(found, progress, folder, then))
    if wanted.as_json:
        write_json(
            {
                "folder": str(folder),
                "shard": shard.index,
                "shards": shard.count,
                "parts": found.parts,
                "parts_of_all": found.part_count,
                "scenarios": found.scenarios,
                "scenarios_decided_now": progress.done - progress.before,
                "rows": found.rows,
                "seconds": progress.seconds,
                "scenarios_per_s": progress.rate_per_s,
                "threads": threads,
                "bytes": found.size_bytes,
                "next": then,
            }
        )
    return None


def _finish_words(spec_path: Path, folder: Path, keep: str | None) -> str:
    words = ["sweep", "finish", str(spec_path), "--out", str(folder)]
    return shlex.join([*words, "--keep", keep] if keep else words)


def _watched(
    work: Callable[[Progress, threading.Event], T],
    planned: Planned,
    folder: Path,
    threads: int,
    *,
    quiet: bool,
) -> tuple[T, Progress] | None:
    """The engine with progress and signals around it; None if it was interrupted.

    `threads` are this process's own; with 0 others decide, which says nothing of its speed.
    """
    from sweep import engine
    from sweep.cli.speed import remember_speed
    from sweep.kernels.compile import CACHE_FOLDER
    from sweep.progress import Progress

    compiled = CACHE_FOLDER is not None and any(CACHE_FOLDER.rglob("*.nbi"))
    if threads and not (compiled or quiet):
        say("compiling the kernels, which takes about 10 s (once for this version of sweep)")
    stop = threading.Event()
    progress = Progress(None if quiet else sys.stderr, color=not os.environ.get("NO_COLOR"))
    try:
        with _Signals(stop, quiet=quiet), progress:
            found = work(progress, stop)
    except engine.Interrupted:
        arguments = " ".join(shlex.quote(word) for word in sys.argv[1:] if word != "--fresh")
        say(
            f"interrupted: {progress.done:,} of {progress.total:,} scenarios are decided and kept "
            f"in {folder}; to go on: sweep {arguments}"
        )
        return None
    if threads and compiled:
        decided = progress.done - progress.before
        remember_speed(planned.spec.results.keep, decided, progress.seconds, threads)
    return found, progress


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


def _what_the_shard_did(found: ShardResult, progress: Progress, folder: Path, then: str) -> str:
    from sweep.units import format_bytes, format_count, format_seconds

    rows = f"{found.rows:,} rows ({format_bytes(found.size_bytes)}) in {folder}"
    what = f"shard {found.shard}: {found.parts} of {found.part_count} parts, "
    what += f"{found.scenarios:,} scenarios"
    if not found.parts:
        what = f"shard {found.shard}: has nothing to do, the run has {found.part_count} parts"
        rows = "others have them"
    elif progress.done == progress.before:
        what += " were decided before"
    else:
        what += f" decided in {format_seconds(progress.seconds)}"
        what += f" ({format_count(progress.rate_per_s)}/s)"
    return f"{what}; {rows}\nwhen all {found.shard.count} shards are done: {then}"
