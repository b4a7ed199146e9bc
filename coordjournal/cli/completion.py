"""The script that makes a shell complete commands, options and spaces."""

from __future__ import annotations

import os
from pathlib import PurePath
from typing import Final

import click
from click.shell_completion import get_completion_class

from coordjournal.cli.options import Command, Settings

VARIABLE: Final = "_COORDJOURNAL_COMPLETE"
_SHELLS: Final = ("bash", "zsh", "fish")


@click.command(cls=Command)
@click.argument("shell", metavar="[SHELL]", type=click.Choice(_SHELLS), required=False)
@click.pass_context
def completion(ctx: click.Context, shell: str | None) -> None:
    """Print the script that makes a shell complete.

    SHELL is the one in $SHELL if not given.

    \b
    bash: eval "$(coordjournal completion bash)"
    zsh:  eval "$(coordjournal completion zsh)"
    fish: coordjournal completion fish | source
    """  # noqa: D301  # click's mark for lines that stay as they are
    name = shell or PurePath(os.environ.get("SHELL", "")).name
    kind = get_completion_class(name) if name in _SHELLS else None
    if kind is None:
        raise click.UsageError(f"which shell? name one of {', '.join(_SHELLS)}")
    script = kind(ctx.find_root().command, {}, "coordjournal", VARIABLE).source()
    ctx.ensure_object(Settings).out.write(script.encode() + b"\n")
