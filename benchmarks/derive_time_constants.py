"""Derive the constants of the time model from the shipped runs: python benchmarks/derive_time_constants.py

A constant belongs to a stack, a GPU or a kernel class, never to a model or a source. Each starts from
what was measured or counted (its prior) and moves only as far as the published runs push it: a fit of
log throughput with a robust loss, in which sources of many similar rows weigh less a row. What was
measured directly (links, networks, memory bandwidth, ring latency) is not fitted.

    --leave-one-out   refit without each source in turn and print the errors on the source left out
    --write           put the values into catalogs/stack_constants.csv and catalogs/efficiencies.csv,
                      and, with --leave-one-out, the bands into catalogs/time_bands.csv
"""

from __future__ import annotations

import argparse
import csv
import datetime as dt
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sweep.catalogs import Catalogs, load_catalogs
from sweep.catalogs.folder import shipped_folder
from sweep.evidence.points import Point
from sweep.evidence.run_bands import LeftOut, time_bands
from sweep.evidence.run_errors import is_clean
from sweep.evidence.run_summary import read_runs
from sweep.evidence.run_words import timed_steps
from sweep.evidence.runs import Run, predict_runs
from sweep.kernels.candidate import step_seconds, time_terms
from sweep.kernels.compile import kernel
from sweep.kernels.decide import half_dtype
from sweep.kernels.tables import ROOM, pack
from sweep.plan.cases import build_case, case_table
from sweep.plan.programs import COMPUTE_DTYPES, program_table, stack_table
from sweep.plan.shapes import model_table

# Errors of this size and below count fully; larger ones less and less [relative].
_USUAL_ERROR = 0.06
# Rows of one source share what it does not say: a residual is divided by n to this power, so that n
# rows weigh as n^0.3.
_SOURCE_DISCOUNT = 0.35
_STEP = 1e-4
_ROUNDS = 40
# The share of the best shape's throughput that a GPU sustains over a whole step.
_SUSTAINED = 0.9


# Constants that only models with experts show.
_OF_EXPERTS = ("moe_efficiency", "moe_kernels", "permute_bytes", "ep_exposed")
_A100 = "A100-SXM-80GB|A100-SXM-40GB|A800-SXM-80GB"
_HOPPER = "H100-SXM-80GB|H200-SXM-141GB|H800-SXM-80GB"


@dataclass(frozen=True)
class Constant:
    """One fitted constant: where it stands, what it starts from and how far that may be off.

    `owners` are stacks of stack_constants.csv or rows of efficiencies.csv; `spread` is the standard
    deviation of the prior's logarithm.
    """

    table: str
    owners: tuple[str, ...]
    name: str
    prior: float
    spread: float


def _stacks(owners: str, name: str, prior: float, spread: float) -> Constant:
    return Constant("stack", tuple(owners.split()), name, prior, spread)


def _gpu(owners: str, name: str, prior: float, spread: float) -> Constant:
    return Constant("gpu", tuple(owners.split("|")), name, prior, spread)


def constants() -> list[Constant]:
    """Every fitted constant. Priors of matmuls: 0.9 x best-shape throughput (MAMF) over dense peak."""
    roots = "hf megatron"
    found = [
        _stacks(roots, "moe_efficiency", 0.95, 0.05),
        _stacks(roots, "tp_exposed", 0.6, 0.3),
        _stacks(roots, "dp_exposed", 0.28, 0.2),
        _stacks(roots, "ep_exposed", 1.0, 0.4),
        _stacks(roots, "step_exposed", 0.7, 0.4),
        _stacks(roots, "cast_bytes", 3.0, 0.4),
        _stacks(roots, "permute_bytes", 16.0, 0.5),
        _stacks(roots, "moe_kernels", 150.0, 0.3),
        _stacks(roots, "adapter_kernels", 6.0, 0.2),
        _stacks(f"{roots} nanotron", "unit_s", 1.5e-4, 0.5),
        _stacks("hf-fsdp1 hf-fused-fsdp1", "adapter_unit_s", 3e-4, 0.5),
        _stacks("hf-deepspeed", "kernels_per_layer", 150.0, 0.4),
        # 1: the kernels move what was counted.
        _stacks("hf", "elementwise_passes", 1.0, 0.2),
        _stacks("hf-fused", "elementwise_passes", 1.0, 0.2),
        _stacks("megatron nemo-automodel", "elementwise_passes", 1.0, 0.2),
        _stacks("torchtitan fms-fsdp nanotron", "elementwise_passes", 1.0, 0.2),
        _stacks("llm-foundry", "elementwise_passes", 1.0, 0.2),
        _stacks("hf", "wide_residual_bytes", 60.0, 0.5),
        _stacks("hf", "warmup_s", 20.0, 0.5),
        _stacks("hf-fsdp1 hf-fused-fsdp1", "warmup_s", 40.0, 0.5),
        _stacks("hf", "adapter_passes", 12.0, 0.3),
        _stacks("fsdp-qlora", "adapter_passes", 6.0, 0.3),
        _stacks("hf-fused", "adapter_passes", 3.0, 0.4),
        _stacks("megatron nemo-automodel", "adapter_passes", 5.0, 0.4),
        _stacks("hf", "kernels_per_layer", 83.0, 0.2),
        _stacks("hf-fused nemo-automodel", "kernels_per_layer", 50.0, 0.2),
        _stacks("megatron torchtitan fms-fsdp nanotron", "kernels_per_layer", 22.0, 0.2),
        _stacks("llm-foundry", "kernels_per_layer", 60.0, 0.2),
        _stacks("hf", "loss_traffic_bytes", 40.0, 0.4),
        _stacks(
            "hf-fused megatron torchtitan fms-fsdp nanotron nemo-automodel",
            "loss_traffic_bytes", 16.0, 0.4,
        ),
    ]  # fmt: skip
    for owners, mamf in (
        (_A100, 0.869), (_HOPPER, 0.803), ("GB200-186GB", 0.729),
        ("B200-SXM-180GB", 0.776), ("arch:Blackwell Ultra", 0.786), ("MI300X|arch:CDNA3", 0.511),
        ("MI325X", 0.604), ("arch:CDNA4", 0.626),
    ):  # fmt: skip
        found.append(_gpu(owners, "matmul_share", _SUSTAINED * mamf, 0.12))
    # 500 of 700 W; consumer parts: large matmuls close to peak.
    found.append(_gpu("H100-SXM-96GB", "matmul_share", 0.58, 0.12))
    found.append(_gpu("RTX-3090", "matmul_share", 0.9, 0.05))
    found.append(_gpu("RTX-4090", "matmul_share", 0.9, 0.05))
    for owners, mamf in (
        (_HOPPER, 0.709), ("GB200-186GB", 0.723), ("B200-SXM-180GB", 0.763),
        ("arch:Blackwell Ultra", 0.745), ("MI300X|arch:CDNA3", 0.511), ("MI325X", 0.604),
        ("arch:CDNA4", 0.626), ("H100-SXM-96GB", 0.555),
    ):  # fmt: skip
        found.append(_gpu(owners, "matmul8_share", _SUSTAINED * mamf, 0.15))
    for owners in ("GB200-186GB", "B200-SXM-180GB", "arch:Blackwell Ultra"):
        found.append(_gpu(owners, "matmul4_share", 0.45, 0.2))
    for owners, prior in (
        (_A100, 0.70), (_HOPPER, 0.45), ("H100-SXM-96GB", 0.40),
        ("GB200-186GB", 0.45), ("B200-SXM-180GB", 0.45), ("arch:Blackwell Ultra", 0.5),
        ("MI300X|arch:CDNA3", 0.3), ("MI325X", 0.34), ("arch:CDNA4", 0.34),
        ("RTX-3090", 0.6), ("RTX-4090", 0.6),
    ):  # fmt: skip
        found.append(_gpu(owners, "attention_share", prior, 0.2))
    found.append(_gpu(f"{_HOPPER}|H100-SXM-96GB", "attention_fa2_share", 0.31, 0.15))
    found.append(_gpu("MI300X|arch:CDNA3", "attention_fa2_share", 0.2, 0.2))
    found.append(_gpu(_A100, "attention_fa1_share", 0.38, 0.25))
    found.append(_gpu(f"{_HOPPER}|H100-SXM-96GB", "attention_fa1_share", 0.24, 0.25))
    return found


# Shares that are another's by the kernel they name: FlashAttention 2 is the best an Ampere or a
# consumer card has.
_SAME = {
    **{(gpu, "attention_fa2_share"): "attention_share" for gpu in _A100.split("|")},
    ("RTX-3090", "attention_fa2_share"): "attention_share",
    ("RTX-4090", "attention_fa2_share"): "attention_share",
}


@kernel
def _predict(models, programs, cases, stacks, sizes, rates, warmup, speeds):
    """Throughput [tokens/s per GPU] of every run; sizes i64 [N, 13], rates f64 [N, 8] in seconds."""
    out = np.zeros(ROOM)
    for i in range(sizes.shape[0]):
        n = sizes[i]
        time_terms(
            out, models[i], programs[i], cases[i], stacks[i], n[0], 0.0, n[1], n[2], n[3], n[4],
            n[5], n[6], n[7], n[8], n[9], n[10],
        )  # fmt: skip
        r = rates[i]
        seconds = step_seconds(out, r[0], r[1], r[2], r[3], r[4], r[5], r[6])
        speeds[i] = n[1] * n[0] / (seconds + warmup[i]) / n[3]


class Fit:
    """The runs in the kernels' tables, and the throughput that constants give them."""

    def __init__(self, runs: Sequence[Run], catalogs: Catalogs) -> None:
        self.runs = runs
        book = catalogs.stacks
        models, programs, cases, stacks, sizes = [], [], [], [], []
        for run in runs:
            scenario, program = run.scenario, run.scenario.program
            case = build_case(scenario.shape, program, scenario.seq_len, run.book, variants=())
            models.append(pack(model_table([scenario.shape])[0])[0])
            row = pack(program_table([program], [program.stack], run.book))[0]
            if scenario.root_trained:
                row["head_trained"] = 1
            programs.append(row)
            cases.append(pack(case_table([case], [0], run.book)[0])[0])
            stacks.append(pack(stack_table([program.stack], run.book))[0])
            tp, pp, cp, ep, sequence = scenario.layout
            sizes.append(
                [
                    scenario.seq_len, scenario.global_batch, scenario.micro_batch, scenario.gpus,
                    scenario.gpus_per_node, scenario.dp, tp, pp, cp, ep, int(sequence),
                ]
            )  # fmt: skip
        self.models, self.programs = np.array(models), np.array(programs)
        self.cases, self.stacks = np.array(cases), np.array(stacks)
        self.sizes = np.array(sizes, np.int64)
        self.gpu_rows = [
            run.gpu.key if run.gpu.key in book.efficiencies else f"arch:{run.gpu.arch}"
            for run in runs
        ]
        self.lineages = [run.book.stacks[run.scenario.program.stack].lineage for run in runs]
        self.timed = np.array([1.0 / (timed_steps(run.point) or np.inf) for run in runs])
        self.measured = np.array([run.point.number("derived_tokens_per_s_per_gpu") for run in runs])
        own = _own_rows(shipped_folder() / "stack_constants.csv")
        self.constants = constants()
        self.masks = [self._mask(one, own) for one in self.constants]
        self.routed = np.array([bool(run.scenario.shape.model.num_experts) for run in runs])
        counts = Counter(run.point["source"] for run in runs)
        self.weights = np.array(
            [float(counts[run.point["source"]]) ** -_SOURCE_DISCOUNT for run in runs]
        )
        self.weights *= 3.0
        self.prior = np.log([one.prior for one in self.constants])
        self.spread = np.array([one.spread for one in self.constants])

    def _mask(self, one: Constant, own: set[tuple[str, str]]) -> np.ndarray:
        """Which runs a constant speaks of: those whose nearest row of that name is its owner's."""
        if one.table == "gpu":
            return np.array([row in one.owners for row in self.gpu_rows])
        nearest = [
            next((stack for stack in lineage if (stack, one.name) in own), "")
            for lineage in self.lineages
        ]
        return np.array([stack in one.owners for stack in nearest])

    def predict(self, x: np.ndarray) -> np.ndarray:
        """Throughput of the runs under constants given by their logarithms [tokens/s per GPU]."""
        values = np.exp(x)
        stacks, programs = self.stacks.copy(), self.programs.copy()
        warmup = np.zeros(len(self.runs))
        shares: list[dict[str, float]] = [{} for _ in self.runs]
        for one, mask, value in zip(self.constants, self.masks, values, strict=True):
            if one.table == "gpu":
                for i in np.flatnonzero(mask):
                    shares[i][one.name] = value
                    if _SAME.get((self.gpu_rows[i], "attention_fa2_share")) == one.name:
                        shares[i]["attention_fa2_share"] = value
            elif one.name == "cast_bytes":
                narrow = mask & (programs["cast_bytes"] > 0.0)
                programs["cast_bytes"][narrow] = value
            elif one.name == "warmup_s":
                warmup[mask] = self.timed[mask] * value
            elif one.name == "loss_traffic_bytes":
                for i in np.flatnonzero(mask):
                    programs["loss_traffic_bytes"][i] *= value / self._loss_bytes(i)
            else:
                stacks[one.name][mask] = value
        rates = np.array([self._rates(i, share) for i, share in enumerate(shares)])
        speeds = np.empty(len(self.runs))
        _predict(self.models, programs, self.cases, stacks, self.sizes, rates, warmup, speeds)
        return speeds

    def _loss_bytes(self, i: int) -> float:
        run = self.runs[i]
        return float(run.book.stacks[run.scenario.program.stack].constants["loss_traffic_bytes"])

    def _rates(self, i: int, share: dict[str, float]) -> list[float]:
        """Seconds a FLOP or byte on a run's setup, its sustained shares replaced by the fitted ones."""
        run = self.runs[i]
        held = run.book.efficiency(run.gpu)
        dtype = COMPUTE_DTYPES.index(run.dtype)
        matmul = ("matmul_share",) * 3 + ("matmul8_share", "matmul4_share")
        kernels = ("attention_share", "attention_fa2_share", "attention_fa1_share")
        kernel = int(self.stacks[i]["attention_kernel"])

        def scaled(rate: float | None, name: str) -> float:
            assert rate is not None
            return rate * share.get(name, getattr(held, name)) / getattr(held, name)

        rates = run.rates
        half = int(half_dtype(dtype))
        return [
            1.0 / scaled(rates.peaks[dtype], matmul[dtype]),
            1.0 / scaled(rates.peaks[half], matmul[half]),
            1.0 / scaled(rates.attention_flop_per_s[kernel], kernels[kernel]),
            1.0 / rates.hbm_bytes_per_s,
            1.0 / rates.link_bytes_per_s,
            1.0 / rates.network_bytes_per_s,
            1.0 / rates.pcie_bytes_per_s,
        ]

    def residuals(self, x: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """Robust residuals of the chosen runs, then how far each constant left its prior."""
        error = np.log(self.predict(x)[rows] / self.measured[rows]) / _USUAL_ERROR
        robust = np.sign(error) * np.sqrt(2.0 * (np.sqrt(1.0 + error * error) - 1.0))
        return np.concatenate([self.weights[rows] * robust, (x - self.prior) / self.spread])

    def solve(self, rows: np.ndarray, start: np.ndarray) -> np.ndarray:
        """The constants that fit the chosen runs best.

        First all but those of experts, on models without; then those, on models with. What is not yet
        understood of experts does not leak into the rest.
        """
        of_experts = np.array([one.name in _OF_EXPERTS for one in self.constants])
        x = self._solve(rows & ~self.routed, start, ~of_experts)
        return self._solve(rows & self.routed, x, of_experts)

    def _solve(self, rows: np.ndarray, start: np.ndarray, free: np.ndarray) -> np.ndarray:
        """Levenberg-Marquardt over the constants that are free."""
        x, damping = start.copy(), 1e-2
        found = self.residuals(x, rows)
        columns = np.flatnonzero(free)
        for _ in range(_ROUNDS):
            jacobian = np.empty((len(found), len(columns)))
            for place, column in enumerate(columns):
                moved = x.copy()
                moved[column] += _STEP
                jacobian[:, place] = (self.residuals(moved, rows) - found) / _STEP
            normal, gradient = jacobian.T @ jacobian, jacobian.T @ found
            before = float(found @ found)
            for _ in range(8):
                trial_x = x.copy()
                trial_x[columns] += np.linalg.solve(
                    normal + damping * np.diag(np.diag(normal)), -gradient
                )
                trial = self.residuals(trial_x, rows)
                if float(trial @ trial) < before:
                    x, found, damping = trial_x, trial, damping / 4.0
                    break
                damping *= 4.0
            if before - float(found @ found) < 1e-6 * before:
                break
        return x


def _own_rows(path: Path) -> set[tuple[str, str]]:
    with path.open(newline="", encoding="utf-8") as handle:
        return {(row["stack"], row["name"]) for row in csv.DictReader(handle)}


def is_used(point: Point) -> bool:
    """Whether a run takes part in the fit: clean, or kept apart for its experts' forced balance."""
    return is_clean(point) or _shows_experts(point)


def _shows_experts(point: Point) -> bool:
    """Whether a run is left out of the errors only because its experts' load was balanced by force.

    Such runs say what kernels and exchange of experts cost: nothing else about their load is unknown.
    """
    return point["completeness"] == "A" and point["flags"] == "force_balanced_moe"


def _report(
    title: str, fit: Fit, predicted: np.ndarray, rows: np.ndarray, *groupings: np.ndarray
) -> None:
    """Print errors of the chosen runs by each grouping, then of all of them."""
    errors = (predicted / fit.measured - 1.0)[rows]
    print(title)
    groups = [("all", np.ones(len(errors), bool))]
    for grouping in groupings:
        names, counts = np.unique(grouping[rows], return_counts=True)
        groups += [(str(names[i]), grouping[rows] == names[i]) for i in np.argsort(-counts)]
    for name, mask in groups:
        mine = errors[mask]
        print(
            f"  {name:<32} {len(mine):>4} {np.median(mine):>+8.1%} {np.median(abs(mine)):>7.1%}"
            f" {np.quantile(abs(mine), 0.9):>7.1%}"
        )


def _digits(value: float) -> str:
    return f"{value:.3g}"


def write(found: Sequence[tuple[Constant, float]]) -> None:
    """Put the values into the catalogs, rounded to three digits."""
    shares = {
        (owner, one.name): value
        for one, value in found
        if one.table == "gpu"
        for owner in one.owners
    }
    of_stacks = {
        (owner, one.name): value
        for one, value in found
        if one.table == "stack"
        for owner in one.owners
    }
    _rewrite(
        shipped_folder() / "stack_constants.csv",
        lambda row: {"value": of_stacks.get((row["stack"], row["name"]))},
    )

    def efficiency(row: dict[str, str]) -> dict[str, float | None]:
        new = {name: shares.get((row["gpu"], name)) for name in row if name.endswith("_share")}
        for (gpu, name), other in _SAME.items():
            if gpu == row["gpu"]:
                new[name] = shares.get((gpu, other))
        return new

    _rewrite(shipped_folder() / "efficiencies.csv", efficiency)


def _rewrite(path: Path, change: Any) -> None:
    with path.open(newline="", encoding="utf-8") as handle:
        rows = list(csv.DictReader(handle))
    for row in rows:
        row |= {name: _digits(value) for name, value in change(row).items() if value is not None}
    with path.open("w", newline="", encoding="utf-8") as handle:
        writer = csv.DictWriter(handle, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def _left_out(runs: Sequence[Run], ratios: np.ndarray) -> list[LeftOut]:
    """The runs with measured over predicted time, and whether their GPU or stack is one source's."""
    sources_of: dict[str, set[str]] = {}
    for run in runs:
        for name in (run.gpu.key, run.scenario.program.stack):
            sources_of.setdefault(name, set()).add(run.point["source"])
    return [
        LeftOut(
            stack=run.scenario.program.stack,
            method=run.scenario.program.method,
            source=run.point["source"],
            model=run.scenario.shape.model.key,
            ratio=float(ratio),
            only_gpu=len(sources_of[run.gpu.key]) == 1,
            only_stack=len(sources_of[run.scenario.program.stack]) == 1,
            experts=bool(run.scenario.shape.model.num_experts),
        )
        for run, ratio in zip(runs, ratios, strict=True)
    ]


def write_bands(runs: Sequence[LeftOut]) -> None:
    """Put the bands of the left-out sources beside the other catalogs."""
    today = dt.date.today().isoformat()
    path = shipped_folder() / "time_bands.csv"
    with path.open("w", newline="", encoding="utf-8") as handle:
        writer = csv.writer(handle, lineterminator="\n")
        writer.writerow(
            (
                "stack",
                "method",
                "gpu",
                "low",
                "high",
                "points",
                "sources",
                "basis",
                "source",
                "checked",
            )
        )
        for band in time_bands(runs):
            writer.writerow(
                (
                    band.stack, band.method, band.gpu, band.low, band.high, band.points,
                    band.sources, band.basis, "sweep-evidence", today,
                )
            )  # fmt: skip


def main() -> None:
    """Fit on every clean run; print the constants and the errors."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--leave-one-out", action="store_true")
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    catalogs = load_catalogs()
    predictions = predict_runs(read_runs(None, catalogs), catalogs)
    known = [one for one in predictions if one.run and one.measured is not None]
    used = [one for one in known if is_used(one.point)]
    runs = [one.run for one in used if one.run is not None]
    fit = Fit(runs, catalogs)
    everything = np.ones(len(runs), bool)
    clean = np.array([is_clean(one.point) for one in used])
    sources = np.array([run.point["source"] for run in runs])
    kinds = np.array([f"{run.scenario.program.method} {run.gpu.arch}" for run in runs])
    x = fit.solve(everything, fit.prior)
    found = list(zip(fit.constants, np.exp(x), strict=True))
    for one, value in found:
        runs_of = int(fit.masks[fit.constants.index(one)].sum())
        print(
            f"{' '.join(one.owners):<60} {one.name:<20} {value:>10.4g}"
            f"  prior {one.prior:g}, {runs_of} runs"
        )
    _report("errors on the runs it was fitted to", fit, fit.predict(x), clean, sources, kinds)
    _report("runs of experts with forced balance", fit, fit.predict(x), ~clean, sources)
    if options.leave_one_out:
        left_out = np.empty(len(runs))
        for source in sorted(set(sources)):
            mine = sources == source
            left_out[mine] = fit.predict(fit.solve(~mine, x))[mine]
        _report("leaving out each source", fit, left_out, clean, sources, kinds)
        if options.write:
            ratios = left_out / fit.measured
            # Rows with balanced experts say how far those are off, nothing else.
            write_bands(
                [
                    one
                    for one, counted in zip(_left_out(runs, ratios), clean, strict=True)
                    if counted or one.experts
                ]
            )
    if options.write:
        write(found)


if __name__ == "__main__":
    main()
