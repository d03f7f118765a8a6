"""The command line, `sweep COMMAND ...`: what it prints, and with which code it exits."""

from __future__ import annotations

import errno
import importlib
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import click

from sweep.errors import RunError, SweepError, nearest

if TYPE_CHECKING:
    from types import TracebackType

DONE, FAILURE, BAD_INPUT, NOTHING_FEASIBLE, INTERRUPTED = 0, 1, 2, 3, 130
# In the order `sweep --help` lists them. Each module holds one `command`.
COMMANDS = {
    "run": "sweep.cli.run",
    "finish": "sweep.cli.finish",
    "plan": "sweep.cli.plan",
    "top": "sweep.cli.top",
    "sql": "sweep.cli.sql",
    "explain": "sweep.cli.explain",
    "estimate": "sweep.cli.estimate",
    "validate": "sweep.cli.validate",
    "catalog": "sweep.cli.catalog",
    "schema": "sweep.cli.schema",
    "warmup": "sweep.cli.warmup",
}


@dataclass
class Settings:
    """What applies to every command; click hands it down as the context's `obj`."""

    debug: bool = False


class Commands(click.Group):
    """Imports a command's module when the command is asked for: `sweep --help` starts faster."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Their names, in the order of the help."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command of that name, or None."""
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = importlib.import_module(COMMANDS[cmd_name]).command
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """As click does; an unknown name is answered with the nearest known one."""
        if args and args[0] not in COMMANDS and not args[0].startswith("-"):
            close = nearest(args[0], COMMANDS)
            hint = f"did you mean {close!r}?" if close else f"there are: {', '.join(COMMANDS)}"
            raise click.UsageError(f"no command is named {args[0]!r}; {hint}", ctx)
        return super().resolve_command(ctx, args)


def _print_version(ctx: click.Context, _parameter: click.Parameter, wanted: bool) -> None:
    if wanted:
        from importlib import metadata

        click.echo(f"sweep {metadata.version('sweep')}")
        ctx.exit()


def set_debug(ctx: click.Context, _parameter: click.Parameter, wanted: bool) -> None:
    """Callback of --debug, which may stand before or after the command's name."""
    if wanted:
        ctx.ensure_object(Settings).debug = True


@click.group(
    cls=Commands,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="Example: sweep run my-sweep.toml --out outputs/my-sweep",
)
@click.option(
    "--version", is_flag=True, is_eager=True, expose_value=False, callback=_print_version,
    help="Print the version and exit.",
)  # fmt: skip
@click.option(
    "--debug", is_flag=True, is_eager=True, expose_value=False, callback=set_debug,
    help="Print the traceback of an error.",
)  # fmt: skip
def root() -> None:
    """Find the cheapest cloud setup that can really fine-tune a model.

    Results go to stdout, progress and errors to stderr. Exit codes: 0 done, 1 failure, 2 bad usage,
    spec or catalog, 3 nothing feasible (with --fail-infeasible), 130 interrupted.
    """


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code. Errors are told on stderr, never as a traceback."""
    settings = Settings()
    try:
        if "_SWEEP_COMPLETE" in os.environ:
            root.main(prog_name="sweep")
        given = list(sys.argv[1:] if arguments is None else arguments)
        with root.make_context("sweep", given, obj=settings) as context:
            status = root.invoke(context)
        sys.stdout.flush()
        return status if isinstance(status, int) else DONE
    except click.exceptions.Exit as exit_request:
        return exit_request.exit_code
    except click.ClickException as error:
        error.show()
        return _traced(error, settings, error.exit_code)
    except SweepError as error:
        _complain(str(error), mistake=not isinstance(error, RunError))
        return _traced(error, settings, FAILURE if isinstance(error, RunError) else BAD_INPUT)
    except (KeyboardInterrupt, click.Abort):
        _complain("interrupted")
        return INTERRUPTED
    except OSError as error:
        if error.errno == errno.EPIPE:
            _abandon_stdout()
            return DONE
        _complain(_os_error(error))
        _abandon_stdout()
        return _traced(error, settings, FAILURE)
    except Exception as error:  # noqa: BLE001 - whatever it is, a user gets a message
        text = f"unexpected {type(error).__name__}: {error}"
        if not settings.debug:
            text += (
                "\nThis is a fault of sweep, not of what you gave it. Please report it with what "
                "the same command\nsays with --debug, the spec, and `sweep --version`."
            )
        _complain(text)
        return _traced(error, settings, FAILURE)


def _complain(text: str, *, mistake: bool = False) -> None:
    # Mistakes in files start with file:line:column, which editors and terminals make clickable.
    located = mistake and ":" in text.partition(" ")[0]
    click.echo(text if located else f"Error: {text}", err=True)


def _os_error(error: OSError) -> str:
    reason = (error.strerror or str(error)).lower()
    if error.filename:
        return f"{error.filename}: {reason}"
    return f"the output cannot be written: {reason}"


def _abandon_stdout() -> None:
    """Nobody reads stdout any more: keep Python from complaining when it closes it."""
    try:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, sys.stdout.fileno())
        os.close(null)
    except (OSError, ValueError, AttributeError):
        pass


def _traced(error: BaseException, settings: Settings, code: int) -> int:
    if settings.debug:
        import traceback

        trace: TracebackType | None = error.__traceback__
        text = "".join(traceback.format_exception(type(error), error, trace))
        click.echo(text, err=True, nl=False)
    return code
