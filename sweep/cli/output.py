"""How commands write: results and JSON to stdout, everything else to stderr."""

from __future__ import annotations

import datetime as dt
import errno
import json
import math
import os
import sys
from typing import TYPE_CHECKING, Any

import click

from sweep.cli import set_debug

if TYPE_CHECKING:
    from rich.console import Console

# Where no terminal says how wide lines may be (a pipe, a file): wide enough to cut nothing.
PIPE_COLUMNS = 160
_LEAST_COLUMNS = 40


def json_option(function: Any) -> Any:
    """The option --json, which every command has, and --debug after the command's name."""
    function = click.option(
        "--debug", is_flag=True, is_eager=True, expose_value=False, callback=set_debug, hidden=True
    )(function)
    return click.option("--json", "as_json", is_flag=True, help="Write JSON to stdout.")(function)


def say(text: str) -> None:
    """A line for the person at the terminal, on stderr."""
    click.echo(text, err=True)


def _plain(value: Any) -> Any:
    """A value as JSON can hold it; what is not a number becomes null."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(item) for item in value]
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, dt.date | dt.datetime | dt.time):
        return value.isoformat()
    return str(value)


def json_text(value: Any, indent: int | None = 1) -> str:
    """A value as JSON."""
    return json.dumps(_plain(value), indent=indent, ensure_ascii=False)


def write_json(value: Any) -> None:
    """One JSON value on stdout."""
    click.echo(json_text(value))


def columns() -> int:
    """Characters a line of stdout may have: COLUMNS, the terminal's, or what cuts nothing."""
    if (given := os.environ.get("COLUMNS", "")).isdigit() and int(given):
        return max(int(given), _LEAST_COLUMNS)
    # In `sweep top | less` stdout is no terminal, but stderr tells how wide the screen is.
    for stream in (sys.stdout, sys.stderr):
        if stream.isatty():
            try:
                found = os.get_terminal_size(stream.fileno()).columns
            except OSError:
                continue
            return max(found or 80, _LEAST_COLUMNS)
    return PIPE_COLUMNS


def console(width: int | None = None) -> Console:
    """A console on stdout: colours on a terminal only, and none with NO_COLOR."""
    from rich import console as rich_console

    class Console(rich_console.Console):
        def on_broken_pipe(self) -> None:
            raise BrokenPipeError(errno.EPIPE, "")  # rich would exit with 1

    return Console(
        file=sys.stdout,
        width=width or columns(),
        color_system=None if os.environ.get("NO_COLOR") else "auto",
        highlight=False,
        markup=False,
        emoji=False,
        soft_wrap=True,
    )
