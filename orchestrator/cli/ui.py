"""`orchestrator ui`."""

from __future__ import annotations

import subprocess
import sys

import click

from orchestrator.cli.options import home_option
from orchestrator.errors import UsageError
from orchestrator.results.store import Home


@click.command("ui", epilog="Example: orchestrator ui --port 5001")
@click.option("--port", type=click.IntRange(1, 65535), default=5000, show_default=True)
@click.option("--host", default="127.0.0.1", show_default=True, help="MLflow has no login: leave it on this machine.")
@home_option
def command(port: int, host: str, home: str | None) -> int:
    """Serve MLflow's own pages on the embedded database, until Ctrl-C."""
    place = Home(home)
    if not (place.path / "mlflow.db").exists():
        raise UsageError(f"a sweep must have run in {place.path} before there is something to see")
    from orchestrator.tracking.registry import serve

    click.echo(f"MLflow: http://{host}:{port}  (Ctrl-C ends it)", err=True)
    command_line = [sys.executable, "-m", *serve(place, None, host, port)]
    return subprocess.run(command_line, check=False).returncode  # noqa: S603 - our own interpreter, our own arguments
