"""Is the time of a sweep linear in its scenarios, and its memory constant? From 10^6 to 10^10 of them.

    python benchmarks/scaling.py --plot benchmarks/scaling.svg

Each size is the `everything` plan with fewer or more models, lengths and batches, run in a process of its
own with compiled kernels. Prints a table for benchmarks/README.md; the plot needs the extra `report`.
Takes some minutes, several GB of disk in a temporary folder, and the machine for itself.
"""

from __future__ import annotations

import argparse
import json
import re
import tempfile
from dataclasses import dataclass
from pathlib import Path

from processes import SPECS, sweep_process

# Of the axes of everything.toml, by size: what stands there in place of it.
SIZES: tuple[dict[str, object], ...] = (
    {"models": ["Llama-3-8B"], "methods": ["full"], "seq_lens": [2048, 4096]},
    {"models": ["Llama-3-8B"]},
    {"models": ["Llama-3*"]},
    {"models": ["Llama-*", "Qwen*"]},
    {},
    {"global_batches": [16, 32, 64, 128, 256, 512, 1024, 2048]},
)


@dataclass(frozen=True)
class Measured:
    """One run: what it decided and wrote, and what it took."""

    scenarios: int
    rows: int
    engine_s: float
    wall_s: float
    peak_bytes: int


def spec_of(changes: dict[str, object]) -> str:
    """The text of everything.toml with other axes."""
    text = (SPECS / "everything.toml").read_text().replace("#:schema sweep.schema.json\n", "")
    for name, values in changes.items():
        text, count = re.subn(rf"(?m)^{name} = .*$", f"{name} = {json.dumps(values)}", text)
        assert count == 1, name
    return text


def measure(cache: Path, folder: Path, changes: dict[str, object]) -> Measured:
    """Run one size into a folder of its own."""
    folder.mkdir()
    spec = folder / "spec.toml"
    spec.write_text(spec_of(changes))
    ended = sweep_process(
        cache, folder / "report.json", "run", spec, "--out", folder / "run", "--quiet"
    )
    manifest = json.loads((folder / "run/manifest.json").read_text())
    return Measured(
        manifest["scenarios"],
        manifest["rows"],
        manifest["seconds"],
        ended.wall_s,
        ended.peak_bytes,
    )


def table(found: list[Measured]) -> str:
    """The runs as Markdown."""
    lines = [
        "| scenarios | rows | engine | scenarios/s | whole process | peak memory |",
        "|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {m.scenarios:,} | {m.rows:,} | {m.engine_s:.2f} s | {m.scenarios / m.engine_s / 1e6:.0f} M "
        f"| {m.wall_s:.1f} s | {m.peak_bytes / 2**20:.0f} MiB |"
        for m in found
    ]
    return "\n".join(lines)


def plot(found: list[Measured], path: Path) -> None:
    """Seconds over scenarios on logarithmic axes, with the straight line through the largest run."""
    import altair as alt
    import polars as pl

    last = found[-1]
    points = pl.DataFrame(
        [{"scenarios": m.scenarios, "seconds": m.engine_s, "what": "engine"} for m in found]
        + [{"scenarios": m.scenarios, "seconds": m.wall_s, "what": "whole process"} for m in found]
    )
    ends = (found[0].scenarios, last.scenarios)
    linear = pl.DataFrame(
        {"scenarios": ends, "seconds": [last.engine_s * n / last.scenarios for n in ends]}
    )
    x = alt.X("scenarios:Q", scale=alt.Scale(type="log"), axis=alt.Axis(format="~s"))
    y = alt.Y("seconds:Q", scale=alt.Scale(type="log"), title="seconds")
    kind = alt.Color("what:N", title=None, scale=alt.Scale(range=["#0072b2", "#d55e00"]))
    measured = alt.Chart(points).mark_line(point=True).encode(
        x=x, y=y, color=kind, shape=alt.Shape("what:N", title=None)
    )  # fmt: skip
    straight = alt.Chart(linear).mark_line(strokeDash=[4, 4], color="#888888").encode(x=x, y=y)
    title = "Time of a sweep; dashed: proportional to the largest"
    (straight + measured).properties(width=420, height=260, title=title).save(str(path))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--plot", type=Path, help="file of the plot (.svg or .png)")
    parser.add_argument("--largest", type=float, default=1e11, help="leave out larger runs")
    options = parser.parse_args()
    found = []
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        sweep_process(scratch / "cache", scratch / "report.json", "warmup")
        for number, changes in enumerate(SIZES):
            run = measure(scratch / "cache", scratch / str(number), changes)
            found.append(run)
            print(
                f"{run.scenarios:,} scenarios in {run.engine_s:.2f} s, {run.wall_s:.1f} s in all",
                flush=True,
            )
            if run.scenarios * 5 > options.largest:
                break
    print(table(found))
    if options.plot:
        plot(found, options.plot)


if __name__ == "__main__":
    main()
