"""`orchestrator`: the group of commands, each loaded when it is asked for."""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
from pathlib import Path
from typing import Any

import click

from orchestrator.errors import OrchestratorError, nearest_name

_COMMANDS = {
    "check": "validate a job without running anything",
    "plan": "show gangs, trials and the first recipes of a job",
    "run": "run a sweep, or go on with an unfinished one",
    "resume": "go on with a sweep, or extend it",
    "trial": "run ONE recipe on this machine, without Ray",
    "status": "tell where a sweep stands",
    "list": "list the sweeps of the home folder",
    "front": "show the Pareto front of a sweep",
    "compare": "hold two sweeps against each other",
    "pick": "choose a model off the front, test it once, register it",
    "export": "write a trial's model as a folder that runs on its own",
    "audit": "say what compression changed in a trial, beside its accuracy",
    "report": "write a sweep's HTML page, or a picture",
    "sync": "show a sweep in MLflow as its facts have it, also in another one",
    "cache": "show what stages left in the home folder, or clear it",
    "ui": "open MLflow's pages on the embedded database",
}


class LazyGroup(click.Group):
    """Imports a command's module when the command is used: `--help` needs none of them."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        command: click.Command = importlib.import_module(f"orchestrator.cli.{cmd_name}").command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(_COMMANDS.items()))

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        if args and args[0] not in _COMMANDS:
            near = nearest_name(args[0], list(_COMMANDS))
            ctx.fail(f"no command {args[0]!r}" + (f"; did you mean {near!r}?" if near else ""))
        return super().resolve_command(ctx, args)


@click.group(
    cls=LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Start with: orchestrator run jobs/quickstart.yaml",
)
@click.version_option(package_name="pareto-orchestrator", prog_name="orchestrator")
def group() -> None:
    """Find the Pareto front of models measured as they would be deployed."""


def main() -> None:
    """Run the command line; errors of the product end as one message and an exit code."""
    _see_working_folder()
    try:
        code = group(standalone_mode=False)
        sys.stdout.flush()
    except click.exceptions.Abort:
        code = 130
    except click.ClickException as error:
        error.show()
        code = error.exit_code
    except OrchestratorError as error:
        from orchestrator.cli.tables import plain

        said = plain(" ".join(str(error).splitlines()), 2000)  # it may quote a user, a file or a server
        click.echo(f"{click.style('error', fg='red') if _coloured() else 'error'}: {said}", err=True)
        code = error.exit_code
    except KeyboardInterrupt:
        code = 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 0
    sys.exit(code if isinstance(code, int) else 0)


def _see_working_folder() -> None:
    """Let the user's own modules be found where the command runs, as `python -m` does. Ray hands the path to its workers."""
    with contextlib.suppress(FileNotFoundError):  # the folder has been deleted
        here = str(Path.cwd())
        if here not in sys.path and not sys.flags.safe_path:
            sys.path.insert(0, here)


def _coloured() -> bool:
    return sys.stderr.isatty() and "NO_COLOR" not in os.environ


if __name__ == "__main__":
    main()
