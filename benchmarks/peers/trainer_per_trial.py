"""Short DDP trials, each in a TorchTrainer of its own, as Ray's documentation has it.

    python benchmarks/peers/trainer_per_trial.py --trials 8 --out times.json [--tuned]

A trial is ten steps of ResNet-8 on the digits with two gloo workers. `--tuned` has the controller look after its workers every
0.05 s instead of every 2 s. Written: the wall time of each `fit()`, from its call to its return.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

BATCH, IMAGES, WORKERS = 100, 1000, 2


def train(config: dict[str, Any]) -> None:
    """Runs on every worker."""
    import ray.train
    import torch
    import torch.nn.functional as F
    from ray.train.torch import prepare_data_loader, prepare_model
    from sklearn.datasets import load_digits
    from torch.utils.data import DataLoader, TensorDataset

    from orchestrator.models.build import build

    torch.manual_seed(config["seed"])
    torch.set_num_threads(1)
    digits = load_digits()
    images = torch.from_numpy(digits.images[:IMAGES]).float().unsqueeze(1) / 16.0
    labels = torch.from_numpy(digits.target[:IMAGES])
    loader = prepare_data_loader(DataLoader(TensorDataset(images, labels), BATCH // WORKERS, shuffle=True))
    model = prepare_model(build("cifar_resnet8", 8, 10, (1, 8, 8)))
    optimizer = torch.optim.SGD(model.parameters(), config["rate"], momentum=0.9, nesterov=True, weight_decay=5e-4)
    total = 0.0
    for batch, truth in loader:
        value = F.cross_entropy(model(batch), truth)
        optimizer.zero_grad()
        value.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        total += value.item()
    ray.train.report({"loss": total / len(loader)})


def main() -> None:
    """Run the trials one after the other."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=8)
    parser.add_argument("--tuned", action="store_true")
    parser.add_argument("--out", required=True)
    args = parser.parse_args()
    if args.tuned:
        os.environ["RAY_TRAIN_HEALTH_CHECK_INTERVAL_S"] = "0.05"  # before ray is imported, which reads it once
    import ray
    import ray.train
    from ray.train.torch import TorchConfig, TorchTrainer

    ray.init(log_to_driver=False, logging_level="error")
    seconds = []
    with tempfile.TemporaryDirectory() as storage:
        for seed in range(args.trials):
            start = time.perf_counter()
            TorchTrainer(
                train,
                train_loop_config={"seed": seed, "rate": 0.05},
                torch_config=TorchConfig(backend="gloo"),
                scaling_config=ray.train.ScalingConfig(num_workers=WORKERS),
                run_config=ray.train.RunConfig(name=f"trial-{seed}", storage_path=storage),
            ).fit()
            seconds.append(time.perf_counter() - start)
            print(f"trial {seed}: {seconds[-1]:.2f} s", file=sys.stderr, flush=True)
    Path(args.out).write_text(json.dumps({"seconds": seconds}))


if __name__ == "__main__":
    main()
