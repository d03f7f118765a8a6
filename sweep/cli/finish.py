"""`sweep finish`: make one run of what the shards of `sweep run --shard` have written."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING

import click

from sweep import vocabulary
from sweep.cli.finished import Wanted, plan_spec, show_finished
from sweep.cli.output import json_option, say
from sweep.errors import RunError
from sweep.shards import Shard, ranges

if TYPE_CHECKING:
    from sweep.sink import Incomplete

# Command lines of shards printed at most: beyond that, one line says which to repeat.
_MOST_COMMANDS = 8


@click.command(
    name="finish",
    short_help="Make one run of what shards have written.",
    epilog="Example: sweep finish my-sweep.toml --out outputs/my-sweep",
)
@click.argument("spec_path", metavar="SPEC", type=click.Path(path_type=Path))
@click.option("--out", "folder", required=True, metavar="DIR", type=click.Path(path_type=Path),
              help="Folder the shards wrote to, or where to bring them together.")  # fmt: skip
@click.option("--from", "sources", multiple=True, metavar="DIR", type=click.Path(path_type=Path),
              help="A folder whose parts are copied first; may be repeated.")  # fmt: skip
@click.option("--keep", type=click.Choice(vocabulary.KEEPS),
              help="As it was given to the shards.")  # fmt: skip
@click.option("--no-ranking", is_flag=True, help="Print no ranking: nothing on stdout.")
@click.option("--quiet", is_flag=True, help="The same, and nothing on stderr either.")
@click.option(
    "--fail-infeasible", is_flag=True, help="Exit with 3 if nothing works for any question."
)
@json_option
def command(
    spec_path: Path,
    folder: Path,
    sources: tuple[Path, ...],
    keep: str | None,
    no_ranking: bool,
    quiet: bool,
    fail_infeasible: bool,
    as_json: bool,
) -> int | None:
    """Make one run of what the shards of SPEC have written, then print the ranking.

    Every part is read and compared with its hash. Where parts are missing or damaged it says which,
    and which commands compute them; nothing else is lost. The result is that of a run in one piece,
    byte for byte.
    """
    from sweep import engine
    from sweep.sink import Incomplete

    planned = plan_spec(spec_path, keep)
    try:
        manifest = engine.finish(planned.plan, folder, sources)
    except Incomplete as error:
        words = ["sweep", "run", str(spec_path), "--out", str(folder)]
        run = [*words, "--keep", keep] if keep else words
        raise RunError(_what_is_left(error, folder, run)) from error
    if sources and not quiet:
        say(f"parts of {', '.join(map(str, sources))} are now in {folder}")
    wanted = Wanted(no_ranking, quiet, as_json, fail_infeasible)
    return show_finished(planned, folder, manifest, None, wanted)


def _what_is_left(error: Incomplete, folder: Path, run: list[str]) -> str:
    """Which parts are missing or damaged, and the command lines that compute them."""
    left = [*error.missing, *error.damaged]
    shown = list(error.damage[:5])
    if len(error.damage) > 5:
        shown.append(f"and {len(error.damage) - 5} more damaged parts")
    what = [
        f"{len(numbers)} {'is' if len(numbers) == 1 else 'are'} {word} ({ranges(numbers)})"
        for numbers, word in ((error.missing, "missing"), (error.damaged, "damaged"))
        if numbers
    ]
    lines = [*shown, f"{folder}: of {error.part_count} parts {' and '.join(what)}"]
    if error.shard_count:
        count = error.shard_count
        shards = sorted({index % count for index in left})
        lines.append(f"shards to run again, which compute only that: {ranges(shards)} of {count}")
        for index in shards[:_MOST_COMMANDS]:
            lines.append(f"  {shlex.join([*run, '--shard', str(Shard(index, count))])}")
        if len(shards) > _MOST_COMMANDS:
            lines.append(f"  and so on for the other {len(shards) - _MOST_COMMANDS}")
        lines.append("then finish again; or compute and finish all of it here:")
    else:
        lines.append("run the shards that are left and finish again; or all that is left, here:")
    return "\n".join([*lines, f"  {shlex.join(run)}"])
