"""`sweep schema`: the JSON Schema of a spec file, for editors."""

from __future__ import annotations

import click

from sweep.cli.output import json_option, write_json


@click.command(
    name="schema",
    short_help="Print the JSON Schema of specs.",
    epilog="Example: sweep schema > sweep.schema.json",
)
@json_option
def command(as_json: bool) -> None:
    """Print the JSON Schema of a spec file (it is JSON with or without --json).

    An editor that knows TOML completes and checks a spec that begins with `#:schema
    sweep.schema.json`.
    """
    from sweep.spec import json_schema

    write_json(json_schema())
