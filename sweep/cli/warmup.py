"""`sweep warmup`: compile the kernels now, so that the first run need not."""

from __future__ import annotations

import time

import click

from sweep.cli.output import json_option, say, write_json

# Every way of keeping rows goes through the kernels; one model on every machine is enough for that.
_SPEC = """
spec_version = 1
[axes]
models = ["GPT-2"]
seq_lens = [512]
[hardware]
node_counts = [1]
max_gpus = 1
"""


@click.command(name="warmup", short_help="Compile the kernels now.", epilog="Example: sweep warmup")
@json_option
def command(as_json: bool) -> None:
    """Compile the kernels and keep them in the user's cache, so that the first run starts at once.

    They are compiled once for each version of sweep and of the libraries; $XDG_CACHE_HOME/sweep (or
    ~/.cache/sweep) holds them.
    """
    from sweep.catalogs import load_catalogs
    from sweep.kernels.compile import CACHE_FOLDER
    from sweep.plan import build_plan
    from sweep.spec import parse_spec

    started = time.monotonic()
    from sweep import engine

    plan = build_plan(parse_spec(_SPEC, "warmup.toml"), load_catalogs())
    chunk = engine.chunks(plan)[0]
    engine.decide_pairs(plan, chunk.first, chunk.last)
    engine.decide_scenarios(plan, chunk)
    seconds = time.monotonic() - started
    if as_json:
        folder = None if CACHE_FOLDER is None else str(CACHE_FOLDER)
        write_json({"seconds": seconds, "cache_folder": folder})
        return
    say(f"the kernels are ready ({seconds:.1f} s); kept in {CACHE_FOLDER or 'memory only'}")
