"""One sweep of trials that do nothing, through the product's whole path: the product's side of dispatch.py.

    uv run python benchmarks/noop_sweep.py HOME --trials 300

A script of its own, as what is sent to the workers has to be of the script that runs. Standard output is one JSON object:
seconds from the start to each trial's end, to when both gangs had served one (`warm`) and to the end of it all, and where the
time went.
"""

from __future__ import annotations

import argparse
import functools
import json
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.peers.tune_dispatch import CONFIG, SLOTS, objectives
from orchestrator.results.store import Home, Sweep
from orchestrator.results.trial_result import Proposal, StageRecord, TrialResult
from orchestrator.spec.job import Job
from orchestrator.spec.load import resolved_text

PATHS = {
    "learning_rate": "training.learning_rate",
    "weight_decay": "training.weight_decay",
    "ratio": "pruning.ratio",
    "bits": "quantization.weight_bits",
}

Spans = dict[str, dict[int, tuple[float, float]]]
"""By what was done and for which trial: from when to when, in seconds since the epoch."""


def the_job(trials: int) -> Job:
    """The peer's space under the names that it has here."""
    space: dict[str, Any] = {
        PATHS["learning_rate"]: {"float": list(CONFIG["learning_rate"]), "log": True},
        PATHS["weight_decay"]: {"float": list(CONFIG["weight_decay"])},
        PATHS["ratio"]: {"float": list(CONFIG["ratio"])},
        PATHS["bits"]: {"int": list(CONFIG["bits"])},
    }
    tree = {
        "name": "noop",
        "recipe": {},
        "space": space,
        "objectives": [{"metric": "accuracy"}, {"metric": "size_bytes"}],
        "search": {"sampler": "tpe"},
        "budget": {"trials": trials},
        "resources": {"gangs": SLOTS},
    }
    return Job.model_validate(tree)


def nothing(order: Any, host: Any, workshop: Any) -> TrialResult:
    """In place of a trial: measurements that are made up. Runs in a worker, where this file is not; it is sent there whole."""
    from orchestrator.cluster import gang

    gang._warm_up()  # a real first trial is long enough for what is imported beside it
    now = time.time()
    choice = {name: order.choice.get(path, 0) for name, path in PATHS.items()}
    measured = objectives({**choice, "bits": choice["bits"] or 8})
    cleared = StageRecord("cleared", "", getattr(gang, "_clearing", 0.0), False, now)
    return TrialResult(
        order.number,
        "COMPLETE",
        order.choice,
        measured,
        stages=[cleared],
        attempt=order.attempt,
        gang=host.gang,
        started=now,
        ended=time.time(),
    )


def serve_nothing(settings: dict[str, Any]) -> None:
    """What a gang's workers run: all that they always do, but for the trial."""
    from orchestrator.cluster import gang

    reset = gang._reset

    def timed_reset(process: Any) -> None:
        began = time.perf_counter()
        reset(process)
        gang._clearing = time.perf_counter() - began

    gang._reset, gang.run_trial = timed_reset, nothing
    gang.serve(settings)


def timed(owner: type, name: str, spans: Spans, number_of: Callable[[tuple[Any, ...], Any], int | None]) -> None:
    """Note when a method begins and ends, and for which trial."""
    before = getattr(owner, name)

    @functools.wraps(before)
    def noting(*args: Any, **more: Any) -> Any:
        began = time.time()
        answer = before(*args, **more)
        number = number_of(args, answer)
        if number is not None:
            spans[f"{owner.__name__}.{name}"][number] = (began, time.time())
        return answer

    setattr(owner, name, noting)


def watch() -> Spans:
    """Have the driver's part of the path timed."""
    from orchestrator.cluster.director import Director
    from orchestrator.search.proposer import Proposer

    spans: Spans = defaultdict(dict)
    timed(Director, "next_config", spans, lambda args, answer: answer["number"] if isinstance(answer, dict) else None)
    timed(Director, "ended", spans, lambda args, answer: args[1])
    timed(Proposer, "ask", spans, lambda args, answer: args[1])
    timed(Proposer, "tell", spans, lambda args, answer: args[1].number)
    timed(Sweep, "propose", spans, lambda args, answer: args[1].number)
    timed(Director, "_order", spans, lambda args, answer: args[1].number)
    timed(Ends, "ended", spans, lambda args, answer: args[1].number)
    return spans


class Ends:
    """The observer that notes ends, and has the display do what it does at each of them."""

    def __init__(self, display: Any) -> None:
        self.display, self.at = display, list[float]()

    def phase(self, text: str) -> None:
        self.display.phase(text)

    def proposed(self, proposal: Proposal) -> None:
        self.display.proposed(proposal)

    def running(self, trials: dict[int, dict[str, Any]]) -> None:
        self.display.running(trials)

    def ended(self, result: TrialResult) -> None:
        self.display.ended(result)
        self.at.append(time.time())


def ours(folder: str, trials: int) -> dict[str, Any]:
    """One sweep of trials that do nothing."""
    from orchestrator.cli.display import SweepDisplay
    from orchestrator.cluster.connection import prepare_environment
    from orchestrator.cluster.sweep import run_sweep

    home, job = Home(folder), the_job(trials)
    sweep = home.sweep("noop")
    sweep.create(resolved_text(job))
    prepare_environment(home.path, local=True)
    from orchestrator.cluster import gang

    gang.serve = serve_nothing
    spans = watch()
    began = time.time()
    with SweepDisplay(job, [], {}) as display:
        ends = Ends(display)
        reason = run_sweep(job, home, sweep, [ends])
    total = time.time() - began
    results = sweep.results()
    first_ends: dict[str, float] = {}
    for result in sorted(results, key=lambda result: result.ended):
        first_ends.setdefault(result.gang, result.ended)
    warm = max(first_ends.values())
    assert reason == "trials", reason
    assert [result.state for result in results] == ["COMPLETE"] * trials
    return {
        "ends": [end - began for end in ends.at],
        "total": total,
        "warm": warm - began,
        "parts": parts(sweep, results, spans, warm),
    }


def parts(sweep: Sweep, results: list[TrialResult], spans: Spans, warm: float) -> dict[str, dict[str, float]]:
    """Median milliseconds of each step of a trial's way, and of the driver's thread among them, once both gangs are warm."""
    way: dict[str, list[float]] = defaultdict(list)
    driver: dict[str, list[float]] = defaultdict(list)
    for result in results:
        number = result.number
        if spans["Director.next_config"][number][0] < warm:
            continue
        at = {name: found[number] for name, found in spans.items() if number in found}
        asked, told = at["Director.next_config"], at["Director.ended"]
        # The inode changes last when the partial name goes: then the fact is there.
        written = (sweep.trial_folder(number) / "result.json").stat().st_ctime
        steps = {
            "sampler asked": at["Proposer.ask"][1] - at["Proposer.ask"][0],
            "proposal.json": at["Sweep.propose"][1] - at["Sweep.propose"][0],
            "submit to the desk": asked[1] - at["Director._order"][1],
            "waits for a gang": result.started - asked[1] - result.stages[0].seconds,
            "gang clears up before it": result.stages[0].seconds,
            "result.json": written - result.ended,
            "desk, client, Tune's loop": told[0] - written,
            "sampler told": at["Proposer.tell"][1] - at["Proposer.tell"][0],
            "observers told": at["Ends.ended"][1] - at["Ends.ended"][0],
        }
        for name, seconds in steps.items():
            way[name].append(seconds * 1e3)
        driver["next_config"].append((asked[1] - asked[0]) * 1e3)
        driver["ended"].append((told[1] - told[0]) * 1e3)
    median = {name: statistics.median(values) for name, values in way.items()}
    return {"way": median, "driver": {name: statistics.median(values) for name, values in driver.items()}}


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("home")
    parser.add_argument("--trials", type=int, default=300)
    args = parser.parse_args()
    print(json.dumps(ours(args.home, args.trials)))


if __name__ == "__main__":
    main()
