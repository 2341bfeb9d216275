"""Kept logits of a teacher: equal to a teacher in the step, computed once, and never silently wrong."""

from __future__ import annotations

import contextlib
import copy
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from torch import Tensor, nn

from orchestrator.compression.distillation import make_loss, teacher_inside
from orchestrator.data.batches import DeviceData, Normalizer
from orchestrator.data.decode import Examples
from orchestrator.data.sources import Source, read_split
from orchestrator.errors import TrialStopped, UnbuildableError
from orchestrator.models.cifar_resnet import CifarResNet
from orchestrator.spec.recipe import Recipe
from orchestrator.training.loop import Fit, fit
from orchestrator.training.precision import arithmetic
from orchestrator.training.process import Process
from orchestrator.trial import fitting
from orchestrator.trial.fitting import batches
from orchestrator.trial.lessons import FILE, LessonsError, lessons, read_lessons, write_lessons
from orchestrator.trial.networks import prune, train_student, train_teacher
from orchestrator.trial.order import Order
from orchestrator.trial.stages import StageStore
from orchestrator.trial.work import Work
from orchestrator.trial.workshop import Workshop

CPU = torch.device("cpu")
BATCH = 48


def silent(number: int) -> None:
    pass


@pytest.fixture(scope="module")
def splits() -> dict[bool, DeviceData]:
    """200 digits by layout: four batches of 48, and a rest that no epoch shows."""
    rows = list(read_split(Source("digits"), "train"))[:200]
    images, labels = np.stack([image for image, _ in rows]), np.array([label for _, label in rows])
    mean, std = (np.array([value], np.float32) / 255 for value in (images.mean(), images.std()))
    examples, normalizer = Examples(images, labels), Normalizer(mean, std, CPU)
    return {layout: DeviceData(examples, normalizer, CPU, layout) for layout in (False, True)}


@pytest.fixture
def data(splits: dict[bool, DeviceData]) -> DeviceData:
    return splits[False]


@pytest.fixture
def teacher(data: DeviceData) -> nn.Module:
    """Has seen some images, so that its norms know them; left in training mode."""
    torch.manual_seed(7)
    model = CifarResNet(14, 6, 10, 1)
    for images, _ in data.ordered(50):
        model(images)
    return model


class Silent(nn.Module):
    """A teacher that nobody is to ask."""

    def forward(self, images: Tensor) -> Tensor:
        raise AssertionError("the teacher was asked")


def view(data: DeviceData, seed: int = 3, augmentation: str = "shift") -> Callable[[], Iterator[tuple[Tensor, Tensor]]]:
    return lambda: data.epoch(BATCH, seed, 0, 1, augmentation)


def taught(store: Path, teacher: nn.Module, data: DeviceData, **changed: Any) -> list[tuple[Tensor, Tensor, Tensor]]:
    """The batches of one view, under one key."""
    how = {"process": Process(), "precision": "bf16", "accumulation": 1, "ask": silent, **changed}
    return list(lessons(StageStore(store), "k", teacher=teacher, view=view(data), **how))


@pytest.mark.parametrize(("channels_last", "accumulation"), [(False, 1), (True, 1), (True, 3)])
@pytest.mark.parametrize(("method", "precision"), [("hinton", "bf16"), ("decoupled", "bf16"), ("hinton", "fp32")])
def test_kept_logits_train_the_same_student_bit_for_bit(
    tmp_path: Path,
    splits: dict[bool, DeviceData],
    teacher: nn.Module,
    method: str,
    precision: str,
    channels_last: bool,
    accumulation: int,
) -> None:
    data, store, students = splits[channels_last], StageStore(tmp_path), []
    loss = make_loss(method, 0.7, 4.0, 8.0, 0.1)
    how = Fit(2, 0.05, precision=precision, channels_last=channels_last, accumulation=accumulation)

    def kept(seed: int) -> Iterator[tuple[Tensor, ...]]:
        return lessons(store, f"view{seed}", Process(), teacher, view(data, seed), precision, accumulation, silent)

    def in_step(seed: int) -> Iterator[tuple[Tensor, ...]]:
        return view(data, seed)()

    for taught, how_taught in ((kept, loss), (in_step, teacher_inside(teacher, loss)), (kept, loss)):
        torch.manual_seed(1)
        student = CifarResNet(8, 4, 10, 1)
        fit(student, taught, 4, how_taught, how, Process(), lambda epoch, mean: None)
        students.append(student.state_dict())
    untrained = CifarResNet(8, 4, 10, 1).state_dict()
    for name, value in students[0].items():
        assert torch.equal(value, students[1][name]), name
        assert torch.equal(value, students[2][name]), name
    assert not torch.equal(students[0]["fc.weight"], untrained["fc.weight"])


def test_the_logits_are_the_teachers_in_evaluation_mode(tmp_path: Path, data: DeviceData, teacher: nn.Module) -> None:
    batches = taught(tmp_path, teacher, data)
    judged = copy.deepcopy(teacher).eval()
    assert len(batches) == 4
    for (images, labels), (same_images, same_labels, logits) in zip(view(data)(), batches, strict=True):
        assert torch.equal(images, same_images)
        assert torch.equal(labels, same_labels)
        with torch.no_grad(), arithmetic("bf16", CPU):
            wanted = judged(images)
        assert wanted.dtype == torch.bfloat16
        assert logits.dtype == torch.float32
        assert torch.equal(logits, wanted.float())
        assert not logits.requires_grad
    assert not teacher.training
    assert int(teacher.bn.num_batches_tracked) == int(judged.bn.num_batches_tracked)


def test_the_file_holds_one_row_an_example_in_the_epochs_order(tmp_path: Path, data: DeviceData, teacher: nn.Module) -> None:
    batches = taught(tmp_path, teacher, data)
    with pa.memory_map(str(tmp_path / "k" / FILE)) as mapped:
        table = pa.ipc.open_file(mapped).read_all()
    assert table.schema.field("logits").type == pa.list_(pa.float32(), 10)
    rows = torch.tensor(np.stack(table["logits"].to_numpy()))
    assert torch.equal(rows, torch.cat([logits for _, _, logits in batches]))


def test_what_is_there_is_attached_and_not_computed(tmp_path: Path, data: DeviceData, teacher: nn.Module) -> None:
    first = taught(tmp_path, teacher, data)
    written = (tmp_path / "k" / FILE).stat().st_mtime_ns
    again = taught(tmp_path, Silent(), data, ask=lambda number: pytest.fail("nothing is computed"))
    assert (tmp_path / "k" / FILE).stat().st_mtime_ns == written
    assert all(torch.equal(a, b) for one, other in zip(first, again, strict=True) for a, b in zip(one, other, strict=True))


def test_computing_leaves_the_generators_as_attaching_does(tmp_path: Path, data: DeviceData) -> None:
    class Restless(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return torch.randn(len(images), 10)

    torch.manual_seed(5)
    wanted = torch.rand(3)
    for _ in ("computed", "attached"):
        torch.manual_seed(5)
        taught(tmp_path, Restless(), data)
        assert torch.equal(torch.rand(3), wanted)


def test_each_batch_is_computed_under_a_permit_and_a_stop_is_obeyed(tmp_path: Path, data: DeviceData) -> None:
    entered, asked = [], []

    @contextlib.contextmanager
    def permit() -> Iterator[None]:
        entered.append(len(asked))
        yield

    def ask(number: int) -> None:
        asked.append(number)
        if number == 40:
            raise TrialStopped("enough")

    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))

    def many() -> Iterator[tuple[Tensor, Tensor]]:
        return data.epoch(4, 0, 0, 1, "none")

    rows = lessons(StageStore(tmp_path), "k", Process(permit=permit), model, many, "fp32", 1, ask)
    with pytest.raises(TrialStopped):
        next(rows)
    assert asked == [0, 20, 40]
    assert entered == [1] * 20 + [2] * 20
    assert [path.name for path in tmp_path.iterdir()] == ["k.lock"], "a failure is not kept"
    assert len(list(lessons(StageStore(tmp_path), "k", Process(), model, many, "fp32", 1, silent))) == 50


def test_gangs_side_by_side_compute_once(tmp_path: Path, data: DeviceData) -> None:
    class Slow(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            asked.append(threading.get_ident())
            started.wait(5)
            return images.flatten(1)[:, :10]

    asked: list[int] = []
    started = threading.Event()
    heard: list[list[tuple[Tensor, Tensor, Tensor]]] = []
    gangs = [threading.Thread(target=lambda: heard.append(taught(tmp_path, Slow(), data))) for _ in range(3)]
    for gang in gangs:
        gang.start()
    started.set()
    for gang in gangs:
        gang.join(20)
    assert len(asked) == 4
    assert len(set(asked)) == 1
    assert len(heard) == 3
    assert all(torch.equal(a[2], b[2]) for other in heard[1:] for a, b in zip(heard[0], other, strict=True))


@pytest.mark.parametrize("kept", [0.0, 0.3, 0.8, 0.999])
def test_a_file_that_was_cut_short_is_an_error_of_the_reader(
    tmp_path: Path, data: DeviceData, teacher: nn.Module, kept: float
) -> None:
    taught(tmp_path, teacher, data)
    path = tmp_path / "k" / FILE
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * kept)])
    with pytest.raises(LessonsError, match="must be a whole Arrow file") as caught:
        list(read_lessons(path, 0, 1))
    assert isinstance(caught.value.__cause__, pa.ArrowInvalid)
    taught(tmp_path, teacher, data)
    assert path.read_bytes() == content, "the store makes it again"


def test_a_hole_in_the_file_gives_no_wrong_row(tmp_path: Path) -> None:
    batches = [torch.randn(6, 10) for _ in range(3)]
    path = tmp_path / FILE
    write_lessons(path, batches)
    content = path.read_bytes()
    place = content.index(batches[1].numpy().tobytes())
    path.write_bytes(content[:place] + bytes(64) + content[place + 64 :])
    heard = []
    with pytest.raises(LessonsError, match="batch 1 differs"):
        heard += list(read_lessons(path, 0, 2))
    for rank in (0, 1):
        rows = read_lessons(path, rank, 2)
        assert torch.equal(next(rows), batches[0][3 * rank : 3 * rank + 3])
        with pytest.raises(LessonsError, match="batch 1 differs"):  # on both ranks, wherever the hole lies
            next(rows)


def test_a_file_with_too_few_batches_is_noticed(tmp_path: Path, data: DeviceData, teacher: nn.Module) -> None:
    batches = taught(tmp_path, teacher, data)
    short = [(images, labels) for images, labels, _ in batches[:3]]
    with pytest.raises(ValueError, match="longer"):
        list(lessons(StageStore(tmp_path), "k", Process(), Silent(), lambda: short, "bf16", 1, silent))


# Inside a trial.


class Host:
    """A trial's host that only listens."""

    def __init__(self) -> None:
        self.process, self.gang = Process(), "alone"
        self.heard: list[dict[str, Any]] = []

    def progress(self, event: dict[str, Any]) -> None:
        self.heard.append(event)

    progress_alone = step = progress

    def measuring(self) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()


def work(folder: Path, **changed: Any) -> Work:
    """A trial on 150 digits: teacher, student and pruned student, of one or two epochs each."""
    training = {"epochs": 2, "batch_size": 64, "learning_rate": 0.05, "augmentation": "shift", "channels_last": False}
    tree: dict[str, Any] = {
        "data": {"source": "digits", "max_train": 150, "max_val": 50},
        "model": {"name": "cifar_resnet8", "width": 4},
        "training": training,
        "teacher": {"model": {"name": "cifar_resnet8", "width": 6}, "training": {**training, "epochs": 1}},
        "distillation": {"weight": 0.7},
        "pruning": {"ratio": 0.5, "round_to": 1, "epochs": 1},
    }
    for path, value in changed.items():
        branch, leaf = tree, path.split("__")
        for part in leaf[:-1]:
            branch = branch[part]
        branch[leaf[-1]] = value
    recipe = Recipe.model_validate(tree)
    order = Order(0, {}, recipe.model_dump(mode="json"), {}, 0, str(folder / "trial"), str(folder / "stages"))
    host = Host()
    workshop = Workshop(StageStore(folder / "stages"), host.process)
    return Work(order, recipe, host, workshop, workshop.material(recipe.data, recipe.training.channels_last))


def files(folder: Path) -> int:
    return len(list(folder.glob(f"stages/*/{FILE}")))


def first_view(trial: Work) -> Tensor:
    teacher = train_teacher(trial)
    assert teacher is not None
    (_, _, logits), *_ = batches(trial, trial.recipe.training, 64, teacher)(0)
    return logits


def test_a_student_of_kept_logits_is_that_of_a_teacher_in_the_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trial = work(tmp_path / "kept")
    kept = train_student(trial, train_teacher(trial))
    assert files(tmp_path / "kept") == 2

    def in_step(*given: Any) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        _, _, _, teacher, view, precision, *_ = given
        for images, labels in view():
            with torch.no_grad(), arithmetic(precision, CPU):
                logits = teacher.eval()(images).float()
            yield images, labels, logits

    monkeypatch.setattr(fitting, "lessons", in_step)
    trial = work(tmp_path / "in_step")
    inside = train_student(trial, train_teacher(trial))
    assert files(tmp_path / "in_step") == 0
    assert inside.key == kept.key
    state = inside.model.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in kept.model.state_dict().items())


def test_stages_and_trials_share_what_was_said_about_a_view(tmp_path: Path) -> None:
    trial = work(tmp_path)
    teacher = train_teacher(trial)
    prune(trial, train_student(trial, teacher), teacher)
    assert files(tmp_path) == 2, "recovery sees the view of the student's first epoch"
    other = work(tmp_path, distillation__temperature=2.0, distillation__method="decoupled", model__width=5)
    warm = train_teacher(other)
    assert warm is not None
    asked: list[int] = []
    with warm.model.register_forward_hook(lambda module, inputs, output: asked.append(len(inputs[0]))):
        train_student(other, warm)
    assert sum(asked) == 1, "to see its classes, and never to teach"
    assert files(tmp_path) == 2


@pytest.mark.parametrize(
    ("changed", "shared"),
    [
        ({"distillation__beta": 2.0}, True),
        ({"training__learning_rate": 0.2}, True),
        ({"training__precision": "fp32"}, False),
        ({"training__accumulation": 2}, False),
        ({"training__augmentation": "none"}, False),
        ({"training__channels_last": True}, False),
        ({"teacher__model": {"name": "cifar_resnet8", "width": 5}}, False),
    ],
    ids=str,
)
def test_what_decides_the_logits_decides_the_file(tmp_path: Path, changed: dict[str, Any], shared: bool) -> None:
    first_view(work(tmp_path))
    assert files(tmp_path) == 1
    first_view(work(tmp_path, **changed))
    assert files(tmp_path) == (1 if shared else 2)


def test_another_seed_or_batch_size_is_another_file(tmp_path: Path) -> None:
    trial = work(tmp_path)
    teacher = train_teacher(trial)
    list(batches(trial, trial.recipe.training, 64, teacher)(0))
    list(batches(trial, trial.recipe.training, 64, teacher)(1))
    assert files(tmp_path) == 2
    list(batches(trial, trial.recipe.training, 32, teacher)(0))
    assert files(tmp_path) == 3


def test_matching_features_keeps_nothing(tmp_path: Path) -> None:
    students = []
    for feature_weight in (0.0, 500.0):
        trial = work(tmp_path / str(feature_weight), distillation__feature_weight=feature_weight)
        students.append(train_student(trial, train_teacher(trial)).model.fc.weight)
    assert not torch.equal(*students)
    assert files(tmp_path / "500.0") == 0


def test_features_alone_need_a_teacher_too(tmp_path: Path) -> None:
    alone = work(tmp_path, distillation__weight=0.0, distillation__feature_weight=0.0)
    assert train_teacher(alone) is None
    trial = work(tmp_path, distillation__weight=0.0, distillation__feature_weight=500.0)
    teacher = train_teacher(trial)
    assert teacher is not None
    assert not torch.equal(train_student(trial, teacher).model.fc.weight, train_student(alone, None).model.fc.weight)


def test_a_teacher_of_other_classes_is_refused_before_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trial = work(tmp_path)
    teacher = train_teacher(trial)
    assert teacher is not None
    monkeypatch.setattr(fitting, "fit", lambda *given, **named: pytest.fail("trained"))
    with pytest.raises(UnbuildableError, match="the teacher must give logits of shape"):
        train_student(trial, replace(teacher, model=CifarResNet(8, 4, 7, 1)))
