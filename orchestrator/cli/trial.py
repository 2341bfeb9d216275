"""`orchestrator trial JOB`."""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import click

from orchestrator.cli.options import home_option, set_option
from orchestrator.results.store import Home
from orchestrator.spec.load import load_job


@click.command(
    "trial",
    epilog="Example: orchestrator trial jobs/quickstart.yaml --set recipe.quantization.method=qat "
    "--set recipe.pruning.ratio=0.5",
)
@click.argument("job")
@set_option
@click.option("--to", "folder", type=click.Path(file_okay=False), help="Keep model.onnx and its companions in this folder.")
@home_option
def command(job: str, overrides: tuple[str, ...], folder: str | None, home: str | None) -> int:
    """Run ONE recipe on this machine, without Ray and without MLflow: the job's own, with its holes as written.

    Under torchrun it trains on several processes. Prints the result as JSON; exit code 1 when the trial fails.
    """
    loaded, place = load_job(job, overrides), Home(home)
    from orchestrator.trial.host import LocalHost, local_process, machine_quiet
    from orchestrator.trial.order import Order
    from orchestrator.trial.pipeline import run_trial
    from orchestrator.trial.stages import StageStore
    from orchestrator.trial.workshop import Workshop

    store = StageStore.of({"root": str(place.stages), **loaded.storage.model_dump()})
    quiet, device = machine_quiet(), "cuda" if loaded.resources.gpus_per_worker > 0 else "cpu"
    with tempfile.TemporaryDirectory() as scratch, local_process(quiet, device) as process:
        order = Order(
            number=0,
            choice={},
            recipe=loaded.recipe.model_dump(mode="json"),
            constraints={metric: bound.model_dump() for metric, bound in loaded.constraints.items()},
            sweep_seed=loaded.seed,
            folder=str(Path(folder or scratch).absolute()),
            stages=str(place.stages),
            threads=loaded.resources.threads_per_worker,
            device=device,
        )
        result = run_trial(order, LocalHost(process, quiet, _show), Workshop(store, process))
        if not process.first:
            return 0
    click.echo(json.dumps(result.to_json(), indent=1))
    return 0 if result.state == "COMPLETE" else 1


def _show(event: dict[str, Any]) -> None:
    """One line an epoch on stderr."""
    if "val_accuracy" in event:
        scores = f"loss {event['loss']:.4f}, val accuracy {event['val_accuracy']:.4f}"
        text = f"{event['stage']} {event['epoch'] + 1}/{event['epochs']}: {scores}"
    elif "step" in event:
        return
    else:
        text = f"{event['stage']} {event['note']}" if "note" in event else event["stage"]
    print(text, file=sys.stderr, flush=True)
