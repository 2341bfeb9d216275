"""Two processes that are cut short after every epoch end where two that never were end, on both, to the last bit.

Everything runs in one pair of processes, and the tests look at what it left. The product is imported in them: parts of torch
that it needs are deprecated, and here warnings are errors.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn

pytestmark = pytest.mark.ddp

TRAINING = {"epochs": 2, "batch_size": 32, "learning_rate": 0.05, "augmentation": "shift"}
SMALL: dict[str, Any] = {
    "data": {"source": "digits", "max_train": 96, "max_val": 33},
    "model": {"name": "cifar_resnet8", "width": 6, "dropout": 0.2},
    "training": TRAINING,
    "teacher": {"model": {"name": "cifar_resnet8", "width": 8}, "training": {**TRAINING, "epochs": 1}},
}
CASES: dict[str, dict[str, Any]] = {
    "fast": {"training": {**TRAINING, "optimizer": "adamw"}, "adversarial": {"method": "fast"}},
    "free, muon": {"training": {**TRAINING, "optimizer": "muon"}, "adversarial": {"method": "free", "steps": 2}},
    "lessons, qat": {
        "training": {**TRAINING, "schedule": "plateau"},
        "distillation": {"weight": 0.5},
        "quantization": {"method": "qat", "weight_bits": 4, "epochs": 2, "num_calibration": 32},
    },
}


def digest(model: nn.Module) -> str:
    found = hashlib.sha256()
    for name, value in model.state_dict().items():
        found.update(name.encode() + value.contiguous().numpy().tobytes())
    return found.hexdigest()


class Host:
    """Gives the trial up on both ranks after each epoch, once, where it is told to; notes what each rank then held."""

    gang = "pair"

    def __init__(self, process: Any, *, leaving: bool) -> None:
        self.process, self.leaving = process, leaving
        self.told: list[list[Any]] = []
        self.notes: list[str] = []

    def progress(self, event: dict[str, Any]) -> None:
        from orchestrator.errors import TrialAbandoned

        self.notes += [event["note"]] if "note" in event else []
        if "val_accuracy" not in event:
            return
        place = [event["stage"], event["epoch"]]
        if place in self.told:
            self.notes.append(f"{place} was run again")
        self.told.append(place)
        if self.leaving:
            raise TrialAbandoned("leave")

    step = progress


def walked(process: Any, root: Path, tree: dict[str, Any], *, leaving: bool) -> dict[str, Any]:
    """What was trained and what was handed on, after as many beginnings as it takes."""
    from orchestrator.errors import TrialAbandoned
    from orchestrator.spec.recipe import Recipe
    from orchestrator.trial import networks
    from orchestrator.trial.order import Order
    from orchestrator.trial.stages import StageStore
    from orchestrator.trial.work import Work
    from orchestrator.trial.workshop import Workshop

    recipe = Recipe.model_validate({**SMALL, **tree})
    host, trained, train = Host(process, leaving=leaving), {}, networks.train

    def noted(work: Any, name: str, model: nn.Module, *rest: Any, **named: Any) -> None:
        train(work, name, model, *rest, **named)
        trained[name] = digest(model)

    def walk() -> tuple[Any, list[Any]]:
        workshop = Workshop(StageStore(root), process)
        order = Order(0, {}, recipe.model_dump(mode="json"), {}, 0, str(root / "t"), str(root))
        work = Work(order, recipe, host, workshop, workshop.material(recipe.data, recipe.training.channels_last))
        teacher = networks.train_teacher(work)
        student = networks.train_student(work, teacher)
        return work, [student, networks.quantize(work, student, teacher)]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(networks, "train", noted)
        for times in range(20):
            torch.manual_seed(times + process.rank)
            try:
                work, made = walk()
            except TrialAbandoned:
                continue
            handed_on = [digest(network.model) for network in made]
            seen = {"trained": trained, "handed_on": handed_on, "curve": work.curve, "times": times}
            return {**seen, "told": host.told, "notes": host.notes, "left": [path.name for path in root.glob("*.partial")]}
    raise AssertionError("it never ends")


def on_each_rank(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder / 'meeting'}", rank=rank, world_size=2)
    from orchestrator.training.process import Process

    try:
        process = Process(rank, 2)
        seen = {
            case: {how: walked(process, folder / f"{number}-{how}", tree, leaving=how == "cut") for how in ("whole", "cut")}
            for number, (case, tree) in enumerate(CASES.items())
        }
        (folder / f"saw{rank}.json").write_text(json.dumps(seen))
    finally:
        dist.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("pair")
    mp.spawn(on_each_rank, args=(folder,), nprocs=2)
    return [json.loads((folder / f"saw{rank}.json").read_text()) for rank in (0, 1)]


cases = pytest.mark.parametrize("case", CASES)


@cases
def test_cut_short_after_every_epoch_both_end_as_if_they_never_were(ranks: list[dict[str, Any]], case: str) -> None:
    """Statistics of norms included, on the second rank too, which wrote no checkpoint."""
    for seen in ranks:
        whole, cut = seen[case]["whole"], seen[case]["cut"]
        for what in ("trained", "handed_on", "curve", "told"):
            assert cut[what] == whole[what], what
        assert (whole["times"], cut["times"]) == (0, len(whole["curve"]))
        assert cut["notes"] == []
        assert cut["left"] == []


@cases
def test_both_ranks_hold_the_same(ranks: list[dict[str, Any]], case: str) -> None:
    first, second = (seen[case]["cut"] for seen in ranks)
    assert first == second
