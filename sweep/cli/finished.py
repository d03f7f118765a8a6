"""What `sweep run` and `sweep finish` share: the plan of a spec, and what they show of a finished run."""

from __future__ import annotations

import dataclasses
import datetime as dt
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sweep.cli import NOTHING_FEASIBLE
from sweep.cli.output import say

if TYPE_CHECKING:
    from sweep.manifest import Manifest
    from sweep.plan import Plan
    from sweep.progress import Progress
    from sweep.spec import Spec


@dataclass(frozen=True)
class Planned:
    """A spec with its plan and the hash of the price files the plan's offers are from."""

    spec: Spec
    plan: Plan
    prices: str


@dataclass(frozen=True)
class Wanted:
    """What to show: `--no-ranking`, `--quiet`, `--json`; whether to fail if nothing is feasible."""

    no_ranking: bool
    quiet: bool
    as_json: bool
    fail_infeasible: bool


def plan_spec(path: Path, keep: str | None) -> Planned:
    """The plan of a spec file; `keep` in place of the spec's own. Raises SweepError."""
    from sweep.catalogs import load_catalogs
    from sweep.plan import build_plan
    from sweep.rerank import prices_sha256
    from sweep.spec import load_spec

    spec = load_spec(path)
    if keep:
        spec = dataclasses.replace(spec, results=dataclasses.replace(spec.results, keep=keep))
    prices = prices_sha256(spec, dt.date.today())
    catalogs = load_catalogs([Path(entry) for entry in spec.hardware.catalogs])
    return Planned(spec, build_plan(spec, catalogs), prices)


def show_finished(
    planned: Planned, folder: Path, manifest: Manifest, progress: Progress | None, wanted: Wanted
) -> int | None:
    """Say what was decided and print the ranking; `progress` is that of the deciding, if any."""
    from sweep.cli.top import MOST_LISTED, show_ranking, write_ranking
    from sweep.ranking import Filters, rank
    from sweep.rerank import remember_prices
    from sweep.results import open_results

    spec = planned.spec
    with open_results(folder) as results:
        remember_prices(folder, spec.path, planned.prices, spec.results.top)
        if not wanted.quiet:
            say(_what_was_decided(manifest, progress, folder))
        silent = (wanted.quiet or wanted.no_ranking) and not wanted.as_json
        if silent and not wanted.fail_infeasible:
            return None
        most = None if wanted.as_json else MOST_LISTED
        ranking = rank(results, Filters(), places=spec.results.top, most=most)
    if wanted.as_json:
        write_ranking(ranking, _facts(manifest, progress, folder))
    elif not silent:
        show_ranking(ranking)
    return NOTHING_FEASIBLE if wanted.fail_infeasible and not ranking.answered else None


def _facts(manifest: Manifest, progress: Progress | None, folder: Path) -> dict[str, Any]:
    return {
        "folder": str(folder),
        "scenarios": manifest.scenarios,
        "scenarios_decided_now": progress.done - progress.before if progress else 0,
        "rows": manifest.rows,
        "verdicts": dict(manifest.verdicts),
        "seconds": progress.seconds if progress else manifest.seconds,
        "scenarios_per_s": progress.rate_per_s if progress else 0.0,
        "threads": manifest.threads,
        "bytes": sum(part.size_bytes for part in manifest.parts),
    }


def _what_was_decided(manifest: Manifest, progress: Progress | None, folder: Path) -> str:
    from sweep.units import format_bytes, format_count, format_seconds

    size = format_bytes(sum(part.size_bytes for part in manifest.parts))
    rows = f"{manifest.rows:,} rows ({size}) in {folder}"
    if progress is None or progress.done == progress.before:
        return f"{manifest.scenarios:,} scenarios were decided before; {rows}"
    return (
        f"{manifest.scenarios:,} scenarios decided in {format_seconds(progress.seconds)} "
        f"({format_count(progress.rate_per_s)}/s); {rows}"
    )
