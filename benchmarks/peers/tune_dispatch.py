"""What a trial costs in Ray Tune when it does nothing: two objectives, OptunaSearch, two at a time.

    uv run python benchmarks/peers/tune_dispatch.py default|reuse --trials 300

`default` is a function that reports two numbers, with Tune's default settings. `reuse` is what one tunes it to: a class with
`reset_config`, `reuse_actors=True`, and Tune's CSV, JSON and TensorBoard files left out. Both keep Tune's own state on disk.
Standard output is one JSON object: seconds from the call of `fit` to the end of each trial, in order, and to its return, and to
when both actors have certainly started (`warm`).
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
import tempfile
import time
from typing import Any

CONFIG = {"learning_rate": (0.001, 1.0), "weight_decay": (0.0, 0.1), "ratio": (0.0, 0.9), "bits": (2, 8)}
SLOTS = 2


def objectives(config: dict[str, Any]) -> dict[str, float]:
    """A front between a large accurate network and a small one; takes no time."""
    kept = 1.0 - config["ratio"]
    return {"accuracy": 0.9 - 0.3 * (1.0 - kept) ** 2 - 0.5 / 2 ** config["bits"], "size_bytes": 1e5 * kept * config["bits"]}


def tuner(variant: str, trials: int, folder: str, ends: list[float]) -> Any:
    """The script as its user writes it; `ends` collects when each trial ended."""
    from ray import tune
    from ray.tune.search.optuna import OptunaSearch

    class Ends(tune.Callback):
        def on_trial_complete(self, *args: object, **more: object) -> None:
            ends.append(time.perf_counter())

    class Nothing(tune.Trainable):
        def setup(self, config: dict[str, Any]) -> None:
            self.chosen = config

        def reset_config(self, new_config: dict[str, Any]) -> bool:
            self.chosen = new_config
            return True

        def step(self) -> dict[str, Any]:
            return {**objectives(self.chosen), "done": True}

        def save_checkpoint(self, checkpoint_dir: str) -> None: ...

    space = {
        "learning_rate": tune.loguniform(*CONFIG["learning_rate"]),
        "weight_decay": tune.uniform(*CONFIG["weight_decay"]),
        "ratio": tune.uniform(*CONFIG["ratio"]),
        "bits": tune.randint(2, 9),
    }
    reuse = variant == "reuse"
    return tune.Tuner(
        Nothing if reuse else lambda config: tune.report(objectives(config)),
        param_space=space,
        tune_config=tune.TuneConfig(
            search_alg=OptunaSearch(metric=["accuracy", "size_bytes"], mode=["max", "min"]),
            num_samples=trials,
            max_concurrent_trials=SLOTS,
            reuse_actors=reuse,
        ),
        run_config=tune.RunConfig(
            name="peer",
            storage_path=folder,
            verbose=0,
            callbacks=[Ends()],
            checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
        ),
    )


def main() -> None:
    """Run one of the two."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("variant", choices=["default", "reuse"])
    parser.add_argument("--trials", type=int, default=300)
    args = parser.parse_args()
    os.environ |= {
        "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    }
    if args.variant == "reuse":
        os.environ["TUNE_DISABLE_AUTO_CALLBACK_LOGGERS"] = "1"
    import ray

    logging.getLogger("ray").setLevel(logging.ERROR)
    ray.init(num_cpus=SLOTS, log_to_driver=False, logging_level=logging.ERROR)
    ends: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        work = tuner(args.variant, args.trials, folder, ends)
        began = time.perf_counter()
        grid = work.fit()
        total = time.perf_counter() - began
    assert len(grid) == args.trials == len(ends), f"{len(grid)} results, {len(ends)} ends"
    seconds = [end - began for end in ends]
    print(json.dumps({"ends": seconds, "total": total, "warm": seconds[2 * SLOTS - 1]}))
    ray.shutdown()


if __name__ == "__main__":
    sys.exit(main())
