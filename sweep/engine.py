"""The conductor: chunks of the product on a thread pool over compiled kernels, part by part to the sink."""

from __future__ import annotations

import hashlib
import json
import platform
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import numpy as np

from sweep import sink
from sweep.columns import FACTS, NO_KNOB, VERDICTS, arrow_schema
from sweep.kernels.best import choose_best
from sweep.kernels.compile import kernel_hash
from sweep.kernels.decide import (
    ALLOCATED,
    DEVICE,
    HOST,
    MEASURES,
    NETWORK_PER_TOKEN,
    SECONDS_PER_TOKEN,
)
from sweep.kernels.every import decide_all
from sweep.kernels.tables import Verdict
from sweep.manifest import Manifest, RunIdentity
from sweep.plan import Plan, dimensions
from sweep.plan.setups import setup_columns
from sweep.shards import Shard
from sweep.spec import Spec, canonical

# A part holds about this many rows (all, feasible) or decides about this many scenarios (best), and no
# more rows than the first: large enough to keep columns long, small enough for a few dozen megabytes
# a thread. Parts follow from the plan alone, never from threads, so that the same input gives the
# same bytes.
PART_ROWS = 1 << 20
PART_SCENARIOS = 1 << 22
# Larger plans get larger parts, so that their number stays manageable.
MOST_PARTS = 512
# Progress as (scenarios decided, scenarios in all).
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Chunk:
    """What one part decides: workloads [first, last) on the classes [first_class, last_class)."""

    first: int
    last: int
    first_class: int
    last_class: int
    scenarios: int


def version() -> str:
    """The installed version of the engine."""
    return metadata.version("sweep")


def chunks(plan: Plan) -> list[Chunk]:
    """How a plan is cut into parts: whole workloads, or classes of one workload too large for that."""
    sizes = plan.class_sizes
    by_class = plan.candidates * sizes
    totals = by_class.sum(axis=1)
    pairs = len(plan.setups)
    class_count = len(sizes)
    keep_best = plan.spec.results.keep == "best"
    target = max(PART_SCENARIOS, int(totals.sum()) // MOST_PARTS)
    found: list[Chunk] = []
    first, gathered, rows = 0, 0, 0
    for w, total in enumerate(totals):
        size = int(total)
        more = pairs if keep_best else size
        full = gathered + size > target or rows + more > PART_ROWS
        if w > first and full:
            found.append(Chunk(first, w, 0, class_count, gathered))
            first, gathered, rows = w, 0, 0
        if not keep_best and size > PART_ROWS:
            found += _class_chunks(w, by_class[w])
            first, gathered, rows = w + 1, 0, 0
            continue
        gathered += size
        rows += more
    if first < len(totals):
        found.append(Chunk(first, len(totals), 0, class_count, gathered))
    return found


def _class_chunks(w: int, by_class: np.ndarray) -> list[Chunk]:
    found = []
    start, gathered = 0, 0
    for k, size in enumerate(by_class):
        if k > start and gathered + size > PART_ROWS:
            found.append(Chunk(w, w + 1, start, k, gathered))
            start, gathered = k, 0
        gathered += int(size)
    found.append(Chunk(w, w + 1, start, len(by_class), gathered))
    return found


def identity(plan: Plan) -> RunIdentity:
    """What the bytes of a run depend on: the tables the kernels read, the kernels, the libraries.

    Prices, limits and amounts of data do not decide facts: catalogs and specs that differ only in
    them have the same identity, and a finished run takes the new ones over.
    """
    digest = hashlib.sha256()
    tables = plan.tables
    arrays = [*tables.workloads, *tables.layouts, *tables.splits, tables.models, tables.features]
    arrays += [*tables.forms, tables.programs, tables.cases, tables.stacks, tables.setups]
    arrays += [*tables.classes, *plan.choices.table]
    for array in arrays:
        digest.update(str((array.shape, array.dtype.descr)).encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    for shape in plan.hardware_shapes:
        digest.update(repr(shape).encode())
    versions = {name: metadata.version(name) for name in ("numba", "numpy", "pyarrow")}
    versions["machine"] = platform.machine()
    return RunIdentity(
        spec=canonical(plan.spec),
        catalogs_sha256=digest.hexdigest(),
        kernels_sha256=kernel_hash(),
        versions=versions,
        engine_version=version(),
        deciding=_deciding(plan.spec),
    )


def _deciding(spec: Spec) -> str:
    """What of a spec decides facts beside the tables built from it: its variables, what is kept."""
    axes = {name: values for name, values in spec.axes.items() if name != "train_tokens"}
    meaning = {"axes": axes, "knobs": dict(spec.knobs), "keep": spec.results.keep}
    return json.dumps(meaning, sort_keys=True)


def _kernel_tables(plan: Plan) -> tuple[object, ...]:
    tables = plan.tables
    return (
        tables.workloads, plan.choices.table, tables.layouts, tables.splits, tables.models,
        tables.features, tables.forms, tables.programs, tables.cases, tables.stacks, tables.setups,
        tables.classes, len(plan.global_batches),
    )  # fmt: skip


def _columns(
    workload: np.ndarray,
    setup: np.ndarray,
    verdicts: np.ndarray,
    knobs: np.ndarray,
    measures: np.ndarray,
) -> dict[str, np.ndarray]:
    """Kernel output as the columns of the facts; the knob -1 (none) becomes NO_KNOB."""
    return {
        "workload": workload,
        "setup": setup,
        "knob": np.where(knobs < 0, NO_KNOB, knobs).astype(np.uint32),
        "verdict": verdicts,
        "seconds_per_token": measures[:, SECONDS_PER_TOKEN].astype(np.float32),
        "allocated_bytes": measures[:, ALLOCATED].astype(np.float32),
        "device_bytes": measures[:, DEVICE].astype(np.float32),
        "host_bytes": measures[:, HOST].astype(np.float32),
        "network_bytes_per_token": measures[:, NETWORK_PER_TOKEN].astype(np.float32),
    }


def decide_pairs(plan: Plan, first: int, last: int) -> dict[str, np.ndarray]:
    """The facts of workloads [first, last): one row per workload and setup."""
    setups = len(plan.setups)
    rows = (last - first) * setups
    verdicts = np.empty(rows, np.uint8)
    knobs = np.empty(rows, np.int64)
    measures = np.empty((rows, MEASURES))
    choose_best(
        first, last, *_kernel_tables(plan), plan.tables.kinds, plan.candidates[first:last], verdicts,
        knobs, measures,
    )  # fmt: skip
    workload = np.repeat(np.arange(first, last, dtype=np.uint32), setups)
    setup = np.tile(np.arange(setups, dtype=np.uint32), last - first)
    return _columns(workload, setup, verdicts, knobs, measures)


def decide_scenarios(plan: Plan, chunk: Chunk) -> dict[str, np.ndarray]:
    """The facts of every scenario of a chunk."""
    # In the order and the types of the file, which the kernel writes: nothing is left to convert.
    columns = {
        field.name: np.empty(chunk.scenarios, field.type.to_pandas_dtype())
        for field in arrow_schema(FACTS)
    }
    written = decide_all(
        chunk.first, chunk.last, chunk.first_class, chunk.last_class, *_kernel_tables(plan),
        plan.candidates[chunk.first : chunk.last], *columns.values(),
    )  # fmt: skip
    assert written == chunk.scenarios, (written, chunk.scenarios)
    return columns


def _feasible(plan: Plan, chunk: Chunk) -> dict[str, np.ndarray]:
    """Every fitting scenario of a chunk, and the nearest miss of each pair that has none."""
    everything = decide_scenarios(plan, chunk)
    fits = everything["verdict"] == Verdict.FITS
    classes = plan.tables.classes
    first_setup = classes.first[chunk.first_class]
    last_setup = classes.last[chunk.last_class - 1]
    pairs = decide_pairs(plan, chunk.first, chunk.last)
    here = (pairs["setup"] >= first_setup) & (pairs["setup"] < last_setup)
    misses = here & (pairs["verdict"] != Verdict.FITS)
    joined = {
        name: np.concatenate([everything[name][fits], pairs[name][misses]]) for name in everything
    }
    order = np.lexsort((joined["knob"], joined["setup"], joined["workload"]))
    return {name: column[order] for name, column in joined.items()}


def decide(plan: Plan, chunk: Chunk) -> dict[str, np.ndarray]:
    """The facts of one chunk, as the spec's `keep` wants them."""
    keep = plan.spec.results.keep
    if keep == "best":
        return decide_pairs(plan, chunk.first, chunk.last)
    return decide_scenarios(plan, chunk) if keep == "all" else _feasible(plan, chunk)


class Interrupted(Exception):
    """The run was asked to stop; what is finished stays, the same command goes on from there."""


def run(
    plan: Plan,
    folder: Path,
    *,
    threads: int,
    progress: Progress | None = None,
    stop: threading.Event | None = None,
    resume: bool = True,
) -> Manifest:
    """Run a plan into a folder, or finish one begun there; constant memory whatever the size.

    Raises RunError for what is wrong with the folder and Interrupted when `stop` was set.
    """
    parts = chunks(plan)
    total = plan.scenarios
    stop = stop or threading.Event()
    with sink.open_run(folder, identity(plan), part_count=len(parts), resume=resume) as output:
        if output.finished is None:
            _run_parts(plan, parts, output, threads, progress, stop, total)
        write_dimensions(plan, output)
        return output.commit(lambda ids: dimensions.knob_columns(plan, ids), threads=threads)


@dataclass(frozen=True)
class ShardResult:
    """What one shard has finished: its parts of all, their scenarios, rows and bytes."""

    shard: Shard
    parts: int
    part_count: int
    scenarios: int
    rows: int
    size_bytes: int


def run_shard(
    plan: Plan,
    folder: Path,
    shard: Shard,
    *,
    threads: int,
    progress: Progress | None = None,
    stop: threading.Event | None = None,
) -> ShardResult:
    """Decide the parts of one shard into a folder that other shards may be writing to as well.

    `finish` makes a run of it once all shards are there. Raises what `run` raises.
    """
    parts = chunks(plan)
    mine = shard.parts(len(parts))
    total = sum(parts[index].scenarios for index in mine)
    stop = stop or threading.Event()
    with sink.open_run(folder, identity(plan), part_count=len(parts), shard=shard) as output:
        _run_parts(plan, parts, output, threads, progress, stop, total)
        found = output.parts
    return ShardResult(
        shard=shard,
        parts=len(found),
        part_count=len(parts),
        scenarios=sum(part.scenarios for part in found),
        rows=sum(part.rows for part in found),
        size_bytes=sum(part.size_bytes for part in found),
    )


def finish(plan: Plan, folder: Path, sources: Sequence[Path] = ()) -> Manifest:
    """Make a run in `folder` of what its shards have written, there or into the folders `sources`.

    Reads every part and compares it with its hash. The manifest's seconds are those of finishing,
    its threads 0. Raises sink.Incomplete if parts are missing or damaged, RunError for what is wrong
    with a folder.
    """
    parts = chunks(plan)
    run_identity = identity(plan)
    for place in sources if sources and not sink.is_begun(folder) else (folder, *sources):
        sink.require_same_run(place, run_identity, len(parts))
    with sink.open_run(folder, run_identity, part_count=len(parts)) as output:
        output.check_parts()
        output.fetch_parts(sources)
        output.require_parts()
        write_dimensions(plan, output)
        return output.commit(lambda ids: dimensions.knob_columns(plan, ids))


def _run_parts(
    plan: Plan,
    parts: list[Chunk],
    output: sink.Run,
    threads: int,
    progress: Progress | None,
    stop: threading.Event,
    total: int,
) -> None:
    def work(index: int) -> int:
        if stop.is_set():
            return 0
        columns = decide(plan, parts[index])
        verdicts = np.bincount(columns["verdict"], minlength=len(VERDICTS))
        output.write_part(index, columns, parts[index].scenarios, verdicts)
        return parts[index].scenarios

    done_before = output.finished_parts
    todo = [index for index in output.indices if index not in done_before]
    done = output.finished_scenarios
    if progress:
        progress(done, total)
    with ThreadPoolExecutor(max(1, threads)) as pool:
        waiting: set[Future[int]] = {pool.submit(work, index) for index in todo}
        try:
            while waiting:
                finished, waiting = wait(waiting, timeout=0.2, return_when=FIRST_COMPLETED)
                for future in finished:
                    done += future.result()
                if progress:
                    progress(done, total)
        except BaseException:
            stop.set()
            for future in waiting:
                future.cancel()
            raise
    if stop.is_set():
        raise Interrupted


def write_dimensions(plan: Plan, output: sink.Run) -> None:
    """Write every table the facts' numbers point to, but the knobs (they follow from the parts)."""
    output.write_table("workloads", dimensions.workload_columns(plan))
    output.write_table("questions", dimensions.question_columns(plan))
    gpus = {shape.gpu: plan.gpus[shape.gpu] for shape in plan.hardware_shapes}
    output.write_table("setups", setup_columns(plan.setups, plan.hardware_shapes, plan.rates, gpus))
    offers, not_covered = dimensions.covered_offers(plan.hardware_shapes, plan.offers)
    output.write_table("offers", offers)
    output.write_table("models", dimensions.model_columns(plan))
    output.write_table(
        "run", dimensions.run_columns(plan.spec, plan.offers, not_covered, version())
    )


__all__ = [
    "Chunk",
    "Interrupted",
    "ShardResult",
    "chunks",
    "decide",
    "finish",
    "identity",
    "run",
    "run_shard",
    "version",
]
