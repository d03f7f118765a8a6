"""A run on a Ray cluster: shards as tasks, receipts as their results, the files in a folder all nodes see."""

from __future__ import annotations

import re
import signal
import socket
import threading
import time
from pathlib import Path
from typing import Any

from sweep import engine, sink
from sweep.engine import Interrupted, Progress, ShardResult
from sweep.errors import FolderInUse, RunError
from sweep.manifest import Manifest
from sweep.plan import Plan
from sweep.shards import Shard

# Shards for each processor of the cluster: a lost node costs little, and the last ones end together.
SHARDS_PER_CPU = 4
# How often Ray starts a task anew when the node or the process under it dies.
_RETRIES = 10
# A task started anew may find the lock of its dead forerunner for as long as a file server keeps it.
_LOCK_WAIT_S = 120.0
# To see whether anything listens at an address [s].
_CONNECT_S = 5.0
_INSTALL = "Ray is not installed; install it with: pip install 'sweep[ray]'"


def _decide_shard(plan: Plan, folder: Path, shard: Shard) -> ShardResult:
    """The task: one shard on one thread. Raises RunError as the engine does."""
    until = time.monotonic() + _LOCK_WAIT_S
    while True:
        try:
            return engine.run_shard(plan, folder, shard, threads=1)
        except FolderInUse:
            if time.monotonic() > until:
                raise
            time.sleep(1.0)


def run_on_ray(
    plan: Plan,
    folder: Path,
    *,
    address: str | None = None,
    progress: Progress | None = None,
    stop: threading.Event | None = None,
    resume: bool = True,
) -> Manifest:
    """Run a plan on a Ray cluster into a folder that all its nodes see, and finish it here.

    `address` is the cluster's; without it that of RAY_ADDRESS, the one on this machine, or a new one.
    Without `resume` the files of an earlier run there are removed first.
    What tasks of dead nodes had finished stays; Ray starts the tasks themselves elsewhere. Raises
    RunError for what is wrong with the folder or the cluster, Interrupted when `stop` was set.
    """
    try:
        import ray
    except ImportError as error:
        raise RunError(_INSTALL) from error

    folder = folder.resolve()
    stop = stop or threading.Event()
    connected_before = ray.is_initialized()
    if not connected_before:
        _connect(ray, address)
    try:
        parts = len(engine.chunks(plan))
        # Refuses the folder of another run here already, and not in each task.
        with sink.open_run(folder, engine.identity(plan), part_count=parts, resume=resume):
            pass
        cpus = max(1, int(ray.cluster_resources().get("CPU", 1)))
        count = min(SHARDS_PER_CPU * cpus, parts)
        task = ray.remote(num_cpus=1, max_retries=_RETRIES)(_decide_shard)
        shared_plan = ray.put(plan)
        waiting = [task.remote(shared_plan, folder, Shard(index, count)) for index in range(count)]
        _collect(ray, waiting, plan.scenarios, progress, stop)
    finally:
        if not connected_before:
            ray.shutdown()
    return engine.finish(plan, folder)


def _connect(ray: Any, address: str | None) -> None:
    """Join the cluster at an address, or start one. Raises RunError if nothing answers there."""
    found = re.fullmatch(r"(.+):(\d{1,5})", address or "")
    if found and "://" not in found[1]:
        # Ray itself tries for minutes.
        try:
            socket.create_connection((found[1].strip("[]"), int(found[2])), _CONNECT_S).close()
        except OSError as error:
            raise RunError(
                f"Ray: nothing answers at {address}: {(error.strerror or str(error)).lower()}; "
                f"`ray status --address {address}` tells more"
            ) from error
    handler = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(address=address, logging_level="warning", log_to_driver=False)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise RunError(f"Ray: no cluster at {address or 'RAY_ADDRESS'}: {error}") from error
    # Ray puts a handler of its own in place, which would end the process at once.
    if handler is not None and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, handler)


def _collect(
    ray: Any,
    waiting: list[Any],
    total: int,
    progress: Progress | None,
    stop: threading.Event,
) -> None:
    """Wait for all tasks; with the first failure or when asked to stop, none is left running."""
    done = 0
    if progress:
        progress(done, total)
    try:
        while waiting and not stop.is_set():
            ready, waiting = ray.wait(waiting, num_returns=1, timeout=0.2)
            for result in ready:
                done += ray.get(result).scenarios
            if progress:
                progress(done, total)
    except ray.exceptions.RayTaskError as error:
        cause = error.cause
        raise cause if isinstance(cause, RunError) else RunError(f"Ray: {error}") from error
    except ray.exceptions.RayError as error:
        raise RunError(f"Ray: {error}; finished parts are kept, run the same again") from error
    finally:
        for task in waiting:
            ray.cancel(task, force=True)
    if waiting:
        raise Interrupted
