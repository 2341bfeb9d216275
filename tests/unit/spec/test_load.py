"""Loading jobs: what bad input says for itself, how overrides are typed, and what makes two jobs the same sweep."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.errors import JobError
from orchestrator.spec.load import check_path, load_job, read_resolved, resolved_text
from orchestrator.spec.recipe import Recipe

JOB = """\
recipe:
  data: {source: digits}
  model: {name: cifar_resnet8, width: 8}
  training:
    epochs: 1
    learning_rate: 0.1
space: space.yaml
objectives:
  - metric: accuracy
  - metric: size_bytes
constraints:
  size_bytes:
    max: 100000
"""
SPACE = """\
pruning.ratio: {float: [0.0, 0.5]}
quantization.method: {choice: [none, ptq]}
quantization.weight_bits:
  int: [2, 8]
  when: {quantization.method: ptq}
"""
METRICS = "be one of accuracy, worst_class_accuracy, robust_accuracy, calibration_error, flip_rate"
AS_BOOLEAN = "be true or false, or text in quotes"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with a good job and its space; the working folder is another, and empty."""
    monkeypatch.delenv("ORCHESTRATOR_DATA", raising=False)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    place = tmp_path / "jobs"
    place.mkdir()
    (place / "job.yaml").write_text(JOB)
    (place / "space.yaml").write_text(SPACE)
    return place


def edit(file: Path, old: str, new: str) -> None:
    """Replace a piece of text that stands there once."""
    text = file.read_text()
    assert text.count(old) == 1, f"{old!r} has to stand in {file.name} once"
    file.write_text(text.replace(old, new))


def contents(folder: Path) -> dict[str, bytes | None]:
    """Everything in a folder and in the one above it, by name."""
    return {str(path): path.read_bytes() if path.is_file() else None for path in folder.parent.rglob("*")}


def refused(folder: Path, *overrides: str, job: str = "job.yaml") -> JobError:
    """The error that a job ends in; nothing is written on the way."""
    before = contents(folder)
    with pytest.raises(JobError) as caught:
        load_job(folder / job, overrides)
    assert contents(folder) == before
    return caught.value


def at(folder: Path, where: str) -> str:
    """`job.yaml:5` as errors say it; "" and "--set" stay."""
    return str(folder / where) if ".yaml" in where else where


def test_the_good_job_of_this_module_loads(folder):
    job = load_job(folder / "job.yaml")
    assert [path for path, _ in job.space.items()] == [
        "pruning.ratio",
        "quantization.method",
        "quantization.weight_bits",
    ]
    assert job.recipe.training.epochs == 1


# Each row: text in job.yaml, what stands there instead, and the error's where, path, must (its beginning), given, nearest.
BAD_JOBS = [
    pytest.param(
        "epochs: 1", "epohcs: 1", "job.yaml:5", "recipe.training.epohcs", "be a known key", "epohcs", "epochs", id="key"
    ),
    pytest.param(
        "objectives:\n  - metric: accuracy\n  - metric: size_bytes\n",
        "",
        "job.yaml:1",
        "objectives",
        "be given",
        "nothing",
        None,
        id="no objectives",
    ),
    pytest.param("space: space.yaml\n", "", "job.yaml:1", "space", "be given", "nothing", None, id="no space"),
    pytest.param(
        "constraints:",
        "constrains:",
        "job.yaml:11",
        "constrains",
        "be a known key",
        "constrains",
        "constraints",
        id="top key",
    ),
    pytest.param(
        "{source: digits}",
        "{source: digits, valfraction: 0.2}",
        "job.yaml:2",
        "recipe.data.valfraction",
        "be a known key",
        "valfraction",
        "val_fraction",
        id="key in braces",
    ),
    pytest.param(
        "epochs: 1",
        "epochs: many",
        "job.yaml:5",
        "recipe.training.epochs",
        "be a whole number",
        "'many'",
        None,
        id="text",
    ),
    pytest.param(
        "epochs: 1", "epochs: 1.5", "job.yaml:5", "recipe.training.epochs", "be a whole number", "1.5", None, id="float"
    ),
    pytest.param(
        "epochs: 1",
        "epochs: '1'",
        "job.yaml:5",
        "recipe.training.epochs",
        "be a whole number",
        "'1'",
        None,
        id="quotes",
    ),
    pytest.param(
        "epochs: 1",
        "epochs: true",
        "job.yaml:5",
        "recipe.training.epochs",
        "be a whole number",
        "true",
        None,
        id="bool",
    ),
    pytest.param("epochs: 1", "epochs:", "job.yaml:5", "recipe.training.epochs", "be a whole number", "null", None, id="null"),
    pytest.param("epochs: 1", "epochs: -1", "job.yaml:5", "recipe.training.epochs", "be >= 0", "-1", None, id="below"),
    pytest.param(
        "epochs: 1", "epochs: 10001", "job.yaml:5", "recipe.training.epochs", "be <= 10000", "10001", None, id="above"
    ),
    pytest.param("0.1", "0.0", "job.yaml:6", "recipe.training.learning_rate", "be > 0", "0.0", None, id="not above"),
    pytest.param(
        "0.1", "0.1\n    momentum: 1.0", "job.yaml:7", "recipe.training.momentum", "be < 1", "1.0", None, id="not below"
    ),
    pytest.param("0.1", ".inf", "job.yaml:6", "recipe.training.learning_rate", "be finite", ".inf", None, id="infinite"),
    pytest.param("0.1", ".nan", "job.yaml:6", "recipe.training.learning_rate", "be finite", ".nan", None, id="not a number"),
    pytest.param(
        "0.1",
        "1e-4",
        "job.yaml:6",
        "recipe.training.learning_rate",
        "be a number; YAML reads 1e-4 as text",
        "'1e-4'",
        None,
        id="1e-4",
    ),
    pytest.param(
        "epochs: 1",
        "epochs: 1e1",
        "job.yaml:5",
        "recipe.training.epochs",
        "be a whole number; YAML reads 1e1 as text",
        "'1e1'",
        None,
        id="1e1",
    ),
    pytest.param("{source: digits}", "[1]", "job.yaml:2", "recipe.data", "be a mapping", "[1]", None, id="list for mapping"),
    pytest.param(
        "metric: accuracy",
        "accuracy",
        "job.yaml:9",
        "objectives.0",
        "be a mapping",
        "'accuracy'",
        None,
        id="word for mapping",
    ),
    pytest.param(
        "objectives:\n  - metric: accuracy\n  - metric: size_bytes\n",
        "objectives: []\n",
        "job.yaml:8",
        "objectives",
        "",
        "[]",
        None,
        id="no objective",
    ),
    pytest.param(
        "metric: size_bytes",
        "metric: size_byte",
        "job.yaml:10",
        "objectives.1.metric",
        METRICS,
        "'size_byte'",
        "size_bytes",
        id="metric",
    ),
    pytest.param(
        "metric: size_bytes",
        "metric: accuracy",
        "job.yaml:8",
        "objectives",
        "name each metric once",
        "[{metric: accuracy}, {metric: accuracy}]",
        None,
        id="metric twice",
    ),
    pytest.param(
        "max: 100000",
        "max: big",
        "job.yaml:13",
        "constraints.size_bytes.max",
        "be a number",
        "'big'",
        None,
        id="bound in words",
    ),
    pytest.param(
        "max: 100000",
        "max: 1\n    min: 2",
        "job.yaml:12",
        "constraints.size_bytes",
        "have min <= max",
        "{max: 1, min: 2}",
        None,
        id="crossed bounds",
    ),
    pytest.param(
        "cifar_resnet8",
        "cifar_resnet9",
        "job.yaml:3",
        "recipe.model.name",
        "be cifar_resnet8, 14, 20",
        "'cifar_resnet9'",
        "cifar_resnet8",
        id="model",
    ),
    pytest.param(
        "{source: digits}",
        "{source: digit}",
        "job.yaml:2",
        "recipe.data.source",
        "be one of digits, parquet, imagefolder, torchvision",
        "'digit'",
        "digits",
        id="word not in list",
    ),
    pytest.param(
        "{source: digits}",
        "{source: torchvision, name: CIFAR11}",
        "job.yaml:2",
        "recipe.data.name",
        "be a dataset of torchvision",
        "'CIFAR11'",
        "CIFAR10",
        id="dataset",
    ),
    pytest.param(
        "{source: digits}",
        "{source: parquet}",
        "job.yaml:2",
        "recipe.data",
        "have a path when source is parquet",
        "{source: parquet}",
        None,
        id="no path",
    ),
    pytest.param(
        "{source: digits}",
        "\n    source: imagefolder\n    path: nowhere",
        "job.yaml:4",
        "recipe.data.path",
        "exist in one of",
        "nowhere",
        None,
        id="data folder that is not there",
    ),
    pytest.param("epochs: 1", "schedule: on", "job.yaml:5", "recipe.training.schedule", AS_BOOLEAN, "on", None, id="on"),
    pytest.param("epochs: 1", "schedule: off", "job.yaml:5", "recipe.training.schedule", AS_BOOLEAN, "off", None, id="off"),
    pytest.param(
        "epochs: 1",
        "channels_last: yes",
        "job.yaml:5",
        "recipe.training.channels_last",
        AS_BOOLEAN,
        "yes",
        None,
        id="yes",
    ),
    pytest.param(
        "epochs: 1", "channels_last: No", "job.yaml:5", "recipe.training.channels_last", AS_BOOLEAN, "No", None, id="No"
    ),
    pytest.param(
        "epochs: 1",
        "epochs: 1\n    epochs: 2",
        "job.yaml:6",
        "recipe.training.epochs",
        "appear once",
        "'epochs' a second time",
        None,
        id="key twice",
    ),
    pytest.param(
        "space: space.yaml",
        "space: spcae.yaml",
        "job.yaml:7",
        "space",
        "be an existing file",
        "spcae.yaml",
        "space.yaml",
        id="space",
    ),
    pytest.param("space: space.yaml", "space: [a]", "job.yaml:7", "space", "be a mapping", "[a]", None, id="space in a list"),
    pytest.param(
        "space: space.yaml",
        "space:\n  pruning.ration: {float: [0.0, 0.5]}",
        "job.yaml:8",
        "space.pruning.ration",
        "be a path of the recipe",
        "pruning.ration",
        "pruning.ratio",
        id="bad path in a space inside the job",
    ),
    pytest.param(
        "objectives:",
        "name: ../x\nobjectives:",
        "job.yaml:8",
        "name",
        "",
        "'../x'",
        None,
        id="name that leaves the home",
    ),
    pytest.param(
        "max: 100000",
        "max: 1\nresources: {workers_per_gang: 3}",
        "job.yaml:1",
        "",
        "have recipe.training.batch_size (128) divisible by workers_per_gang (3)",
        None,
        None,
        id="batch that does not divide",
    ),
    pytest.param("{source: digits}", "{source: digits", "job.yaml:3", "", "be valid YAML", None, None, id="open brace"),
    pytest.param("    epochs", "\tepochs", "job.yaml:5", "", "be valid YAML", None, None, id="tab"),
    pytest.param(
        "epochs: 1", "epochs: !!python/name:os.system x", "job.yaml:5", "", "be valid YAML", None, None, id="python tag"
    ),
    pytest.param(
        "metric: accuracy",
        "{metric: accuracy, refrence: 0.5}",
        "job.yaml:9",
        "objectives.0.refrence",
        "be a known key",
        "refrence",
        "reference",
        id="key in a list",
    ),
    pytest.param(
        "objectives:",
        "objektives:",
        "job.yaml:8",
        "objektives",
        "be a known key",
        None,
        "objectives",
        id="misspelt top key that is needed",
    ),
    pytest.param(
        "metric: accuracy",
        "metrc: accuracy",
        "job.yaml:9",
        "objectives.0.metrc",
        "be a known key",
        "metrc",
        "metric",
        id="misspelt key that is needed",
    ),
    pytest.param(
        "  size_bytes:",
        "  size_byte:",
        "job.yaml:12",
        "constraints.size_byte",
        METRICS,
        None,
        "size_bytes",
        id="constraint on an unknown metric",
    ),
    pytest.param(
        "max: 100000",
        "maximum: 100000",
        "job.yaml:13",
        "constraints.size_bytes.maximum",
        "be a known key",
        "maximum",
        "max",
        id="key of a constraint",
    ),
    pytest.param(
        "epochs: 1",
        "epochs: &a [*a]",
        "job.yaml:5",
        "",
        "be valid YAML",
        None,
        None,
        id="a list that holds itself",
    ),
    pytest.param(
        "  training:\n",
        "  training: &t\n    <<: *t\n",
        "job.yaml:4",
        "",
        "be valid YAML",
        None,
        None,
        id="a mapping that holds itself",
    ),
    pytest.param("epochs: 1", "epochs: 2001-13-45", "job.yaml", "", "be valid YAML", None, None, id="no such month"),
    pytest.param("epochs: 1", f"epochs: {'[' * 5000}", "job.yaml", "", "be valid YAML", None, None, id="too deep"),
    pytest.param("epochs: 1", "on: 1", "job.yaml:5", "recipe.training.on", AS_BOOLEAN, "on", None, id="on as a key"),
    pytest.param(
        "0.1",
        "1.0e4",
        "job.yaml:6",
        "recipe.training.learning_rate",
        "be a number; YAML reads 1.0e4",
        "'1.0e4'",
        None,
        id="1.0e4",
    ),
    pytest.param("0.1", "e", "job.yaml:6", "recipe.training.learning_rate", "be a number", "'e'", None, id="a letter"),
    pytest.param(
        "constraints:",
        "resources: {gangs: many}\nconstraints:",
        "job.yaml:11",
        "resources.gangs",
        "be a whole number",
        "'many'",
        None,
        id="no member of a union, said once",
    ),
]


@pytest.mark.parametrize(("old", "new", "where", "path", "must", "given", "nearest"), BAD_JOBS)
def test_bad_job_says_where_what_and_what_was_meant(folder, old, new, where, path, must, given, nearest):
    edit(folder / "job.yaml", old, new)
    error = refused(folder)
    assert (error.where, error.path, error.nearest) == (at(folder, where), path, nearest)
    assert error.must.startswith(must)
    assert given is None or error.given == given


# Each row: the space file, and the error's where, path, must (its beginning), given, nearest.
BAD_SPACES = [
    pytest.param(
        "\npruning.ration: {float: [0.0, 0.5]}\n",
        "space.yaml:2",
        "space.pruning.ration",
        "be a path of the recipe",
        "pruning.ration",
        "pruning.ratio",
        id="path that the recipe lacks",
    ),
    pytest.param(
        "pruning: {float: [0.0, 0.5]}\n",
        "space.yaml:1",
        "space.pruning",
        "be a path of the recipe",
        "pruning",
        ...,
        id="section",
    ),
    pytest.param(
        "pruning.ratio:\n  flaot: [0, 1]\n",
        "space.yaml:2",
        "space.pruning.ratio.flaot",
        "be a known key",
        "flaot",
        "float",
        id="key",
    ),
    pytest.param(
        "pruning.ratio:\n  float: [0.0, 1.5]\n",
        "space.yaml:2",
        "space.pruning.ratio",
        "be <= 0.95",
        "1.5",
        None,
        id="high",
    ),
    pytest.param(
        "quantization.weight_bits:\n\n  int: [1, 8]\n",
        "space.yaml:3",
        "space.quantization.weight_bits",
        "be >= 2",
        "1",
        None,
        id="low",
    ),
    pytest.param(
        "quantization.weight_bits:\n  float: [2.5, 8.0]\n",
        "space.yaml:2",
        "space.quantization.weight_bits",
        "be a whole number",
        "2.5",
        None,
        id="fractions for whole numbers",
    ),
    pytest.param(
        "quantization.method:\n  choice: [none, ptqq]\n",
        "space.yaml:2",
        "space.quantization.method",
        "be one of none, ptq, qat",
        "'ptqq'",
        "ptq",
        id="choice",
    ),
    pytest.param(
        "pruning.ratio:\n  float: [0.5, 0.1]\n",
        "space.yaml:1",
        "space.pruning.ratio",
        "have low <= high",
        None,
        None,
        id="crossed",
    ),
    pytest.param(
        "pruning.ratio:\n  float: [0.0, 0.5]\n  choice: [0.1]\n",
        "space.yaml:1",
        "space.pruning.ratio",
        "have exactly one of float, int, choice",
        None,
        None,
        id="two kinds",
    ),
    pytest.param(
        "pruning.ratio: {}\n",
        "space.yaml:1",
        "space.pruning.ratio",
        "have exactly one of float",
        "{}",
        None,
        id="no kind",
    ),
    pytest.param("pruning.ratio:\n", "space.yaml:1", "space.pruning.ratio", "be a mapping", "null", None, id="nothing"),
    pytest.param(
        "training.learning_rate:\n  float: [1e-4, 0.1]\n",
        "space.yaml:2",
        "space.training.learning_rate.float.0",
        "be a number; YAML reads 1e-4 as text",
        "'1e-4'",
        None,
        id="1e-4",
    ),
    pytest.param(
        "pruning.ratio:\n  float: [0.1, .inf]\n",
        "space.yaml:2",
        "space.pruning.ratio.float.1",
        "be finite",
        ".inf",
        None,
        id="infinite",
    ),
    pytest.param(
        "training.learning_rate:\n  float: [0.0, 0.1]\n  log: true\n",
        "space.yaml:1",
        "space.training.learning_rate",
        "have a low bound above 0 when log is true",
        None,
        None,
        id="logarithm of nothing",
    ),
    pytest.param("pruning.ratio:\n  float: [0.0, 0.5]\n  log: on\n", "space.yaml:3", ..., AS_BOOLEAN, "on", None, id="on"),
    pytest.param(
        "training.schedule:\n  choice:\n    - off\n", "space.yaml:3", ..., AS_BOOLEAN, "off", None, id="off in a list"
    ),
    pytest.param(
        "pruning.ratio: {float: [0.0, 0.5]}\npruning.ratio: {float: [0.0, 0.6]}\n",
        "space.yaml:2",
        ...,
        "appear once",
        "'pruning.ratio' a second time",
        None,
        id="hole twice",
    ),
    pytest.param(
        "data.val_fraction: {float: [0.1, 0.5]}\n",
        "space.yaml:1",
        "space.data.val_fraction",
        "leave data and measurement fixed",
        "data.val_fraction",
        None,
        id="data",
    ),
    pytest.param(
        "measurement.threads: {int: [1, 2]}\n",
        "space.yaml:1",
        "space.measurement.threads",
        "leave data and measurement fixed",
        "measurement.threads",
        None,
        id="measurement",
    ),
    pytest.param(
        "pruning.ratio:\n  float: [0.1, 0.5]\n  when:\n    quantization.methd: ptq\n",
        "space.yaml:4",
        "space.pruning.ratio.when",
        "be a path of the recipe",
        "quantization.methd",
        "quantization.method",
        id="condition on a path that the recipe lacks",
    ),
    pytest.param(
        "pruning.ratio:\n  float: [0.1, 0.5]\n  when: {quantization.method: ptq}\nquantization.method: {choice: [none, ptq]}\n",
        "space.yaml:3",
        "space.pruning.ratio.when",
        "stand below quantization.method",
        "pruning.ratio",
        None,
        id="condition on what stands below",
    ),
    pytest.param("- a\n", "space.yaml:1", "space", "be a mapping", "[a]", None, id="list"),
    pytest.param("hello\n", "space.yaml:1", "space", "be a mapping", "'hello'", None, id="word"),
    pytest.param("", "job.yaml:7", "space", "be a mapping", "null", None, id="empty"),
    pytest.param("a: {\n", "space.yaml:2", "", "be valid YAML", None, None, id="not YAML"),
    pytest.param(
        "quantization.method: {choice: [ptq]}\npruning.ratio:\n  float: [0.0, 0.5]\n  when: {quantization.method: pptq}\n",
        "space.yaml:4",
        "space.pruning.ratio.when",
        "",
        None,
        "ptq",
        id="condition that can never hold",
    ),
    pytest.param(
        "quantization.method: {choice: [none, ptq]}\npruning.ratio:\n  float: [0.0, 0.5]\n  when: {quantization.method: qat}\n",
        "space.yaml:4",
        "space.pruning.ratio.when",
        "wait for a value that space.quantization.method holds",
        "'qat'",
        None,
        id="condition on a value that is never proposed",
    ),
    pytest.param(
        "model.width: {int: [8, 24], step: 8}\npruning.ratio:\n  float: [0.0, 0.5]\n  when: {model.width: [12, 32]}\n",
        "space.yaml:4",
        "space.pruning.ratio.when",
        "wait for a value that space.model.width holds",
        "12, 32",
        None,
        id="condition on values off the steps and above them",
    ),
    pytest.param(
        "pruning.ratio:\n  float: [0.0, 0.5]\n  when: {quantization.method: [ptq, pptq]}\n",
        "space.yaml:3",
        "space.pruning.ratio.when",
        "be one of none, ptq, qat",
        "'pptq'",
        "ptq",
        id="condition on a path that is not searched",
    ),
    pytest.param(
        "pruning.ratio:\n  float: [0.0, 0.5]\n  when: {quantization.method: []}\n",
        "space.yaml:1",
        "space.pruning.ratio",
        "wait for at least one value",
        None,
        None,
        id="condition on nothing",
    ),
    pytest.param(
        "\nmodel.width: {int: [8, 30], step: 8}\n",
        "space.yaml:2",
        "space.model.width",
        "have a step that divides the range: from 8 in steps of 8 it ends at 24",
        "{int: [8, 30], step: 8}",
        None,
        id="step that does not divide",
    ),
    pytest.param(
        "\ndistillation.weight: {float: [0.0, 0.5], step: 0.2}\n",
        "space.yaml:2",
        "space.distillation.weight",
        "have a step that divides the range: from 0.0 in steps of 0.2 it ends at 0.4",
        "{float: [0.0, 0.5], step: 0.2}",
        None,
        id="step in fractions that does not divide",
    ),
    pytest.param(
        "model.width: {choice: [8, 16], step: 8}\n",
        "space.yaml:1",
        "space.model.width",
        "have a step only with float or int",
        None,
        None,
        id="step between choices",
    ),
    pytest.param(
        "distillation.weight:\n  float: [0.0, 0.5]\n  step: 1e-1\n",
        "space.yaml:3",
        "space.distillation.weight.step",
        "be a number; YAML reads 1e-1 as text",
        "'1e-1'",
        None,
        id="1e-1 as a step",
    ),
]


@pytest.mark.parametrize(("space", "where", "path", "must", "given", "nearest"), BAD_SPACES)
def test_bad_space_says_where_in_its_own_file(folder, space, where, path, must, given, nearest):
    (folder / "space.yaml").write_text(space)
    error = refused(folder)
    assert error.where == at(folder, where)
    assert path is ... or error.path == path
    assert error.must.startswith(must)
    assert given is None or error.given == given
    assert nearest is ... or error.nearest == nearest


def test_a_searched_batch_size_must_divide_among_the_workers(folder):
    edit(folder / "job.yaml", "constraints:", "resources: {workers_per_gang: 2}\nconstraints:")
    (folder / "space.yaml").write_text("training.batch_size: {choice: [128, 129]}\n")
    assert refused(folder).where == str(folder / "space.yaml:1")


@pytest.mark.parametrize("path", ["training.batch_size", "teacher.training.batch_size"])
@pytest.mark.parametrize(
    ("hole", "given"),
    [
        ("{int: [64, 128]}", "65"),
        ("{int: [64, 128], log: true}", "65"),
        ("{int: [64, 129], step: 65}", "129"),
        ("{int: [64, 128], step: 2}", None),
        ("{int: [64, 64]}", None),
    ],
)
def test_what_lies_between_the_ends_must_divide_among_the_workers_too(folder, path, hole, given):
    edit(folder / "job.yaml", "constraints:", "resources: {workers_per_gang: 2}\nconstraints:")
    (folder / "space.yaml").write_text(f"\n{path}: {hole}\n")
    if given is None:
        assert len(load_job(folder / "job.yaml").space) == 1
    else:
        error = refused(folder)
        assert (error.where, error.path, error.given) == (str(folder / "space.yaml:2"), f"space.{path}", given)
        assert error.must == f"have recipe.{path} ({given}) divisible by workers_per_gang (2)"


@pytest.mark.parametrize(
    "space",
    [
        pytest.param("model.width: {int: [8, 16], when: {data.source: parquet}}\n", id="for another job"),
        pytest.param(
            "pruning.ratio: {choice: [0.0, 0.5]}\nmodel.width: {int: [8, 16], when: {pruning.ratio: 0}}\n", id="0 is 0.0"
        ),
        pytest.param(
            "quantization.method: {choice: [none, ptq]}\n"
            "model.width: {int: [8, 16], when: {quantization.method: [ptq, qat]}}\n",
            id="one of two",
        ),
        pytest.param(
            "quantization.method: {choice: [none, ptq]}\n"
            "quantization.weight_bits: {int: [2, 4], when: {quantization.method: ptq}}\n"
            "pruning.ratio: {float: [0.0, 0.5], when: {quantization.weight_bits: 8}}\n",
            id="as written where the hole is inactive",
        ),
    ],
)
def test_a_condition_that_may_hold_is_taken(folder, space):
    (folder / "space.yaml").write_text(space)
    assert len(load_job(folder / "job.yaml").space) == space.count("\n")


# Files that cannot be read.


def test_missing_job_file_is_named_with_the_nearest_one(folder):
    error = refused(folder, job="jbo.yaml")
    assert (error.must, error.given) == ("be an existing file", str(folder / "jbo.yaml"))
    assert error.nearest == str(folder / "job.yaml")


def test_missing_folder_of_the_job_file(folder):
    error = refused(folder, job="nowhere/job.yaml")
    assert (error.must, error.given, error.nearest) == (
        "be an existing file",
        str(folder / "nowhere" / "job.yaml"),
        None,
    )


def test_folder_instead_of_a_job_file(folder):
    error = refused(folder, job=".")
    assert error.must == "be a readable text file"
    assert str(folder) in error.given


@pytest.mark.parametrize("file", ["job.yaml", "space.yaml"])
def test_file_in_another_encoding(folder, file):
    (folder / file).write_bytes("# größe\n".encode("latin-1") + (folder / file).read_bytes())
    error = refused(folder)
    assert error.must == "be a readable text file"
    assert str(folder / file) in error.given


@pytest.mark.parametrize("text", ["\x00", "a: \x07\n"])
def test_control_characters_are_not_yaml(folder, text):
    (folder / "job.yaml").write_text(text)
    error = refused(folder)
    assert error.must == "be valid YAML"
    assert error.where.startswith(str(folder / "job.yaml"))


@pytest.mark.parametrize(
    ("text", "given"),
    [("", "null"), ("# nothing\n", "null"), ("- a\n- b\n", "[a, b]"), ("hello\n", "'hello'"), ("3\n", "3")],
)
def test_a_job_has_to_be_a_mapping(folder, text, given):
    (folder / "job.yaml").write_text(text)
    error = refused(folder)
    assert (error.where, error.given) == (str(folder / "job.yaml"), given)
    assert error.must.startswith("hold a job: a mapping")


def test_two_documents_in_one_file_are_refused_at_the_second(folder):
    (folder / "job.yaml").write_text(JOB + "---\na: 1\n")
    error = refused(folder)
    assert (error.where, error.must) == (str(folder / "job.yaml:14"), "be valid YAML")


def test_an_error_says_how_many_more_there_are(folder):
    edit(folder / "job.yaml", "epochs: 1", "epochs: -1")
    edit(folder / "job.yaml", "width: 8", "width: 3")
    assert refused(folder).given == "3 (and 1 more)"


@pytest.mark.parametrize("text", ["'on'", '"off"', "'yes'"])
def test_a_word_in_quotes_is_text_and_no_boolean(folder, text):
    edit(folder / "job.yaml", "epochs: 1", f"schedule: {text}")
    assert refused(folder).must.startswith("be one of constant")


@pytest.mark.parametrize(("text", "expected"), [("true", True), ("false", False), ("True", True)])
def test_true_and_false_are_booleans(folder, text, expected):
    edit(folder / "job.yaml", "epochs: 1", f"channels_last: {text}")
    assert load_job(folder / "job.yaml").recipe.training.channels_last is expected


@settings(deadline=None)
@given(st.text(max_size=60) | st.binary(max_size=60))
def test_any_content_is_a_job_or_a_job_error(tmp_path_factory, content):
    file = tmp_path_factory.mktemp("any") / "job.yaml"
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(JobError) as caught:
        load_job(file)
    assert str(file) in str(caught.value)


# Overrides.


@pytest.mark.parametrize(
    ("override", "path", "must", "given", "nearest"),
    [
        ("recipe.training.epochs", "", "look like path=value", "recipe.training.epochs", None),
        ("=3", "", "look like path=value", "=3", None),
        ("recipe.=3", "", "look like path=value", "recipe.=3", None),
        ("recipe..epochs=3", "", "look like path=value", "recipe..epochs=3", None),
        ("recipe.training.epohcs=3", "recipe.training.epohcs", "be a known key", "epohcs", "epochs"),
        ("recipe.training.epochs=many", "recipe.training.epochs", "be a whole number", "'many'", None),
        ("recipe.training.epochs=1.5", "recipe.training.epochs", "be a whole number", "1.5", None),
        ("recipe.training.epochs=", "recipe.training.epochs", "be a whole number", "null", None),
        ("recipe.training.epochs=-1", "recipe.training.epochs", "be >= 0", "-1", None),
        ("recipe.training.epochs=[", "recipe.training.epochs", "be a YAML value", "[", None),
        ("recipe.training.epochs=2001-13-45", "recipe.training.epochs", "be a YAML value", "2001-13-45", None),
        ("recipe.training={epochs: -1}", "recipe.training.epochs", "be >= 0", "-1", None),
        ("constraints.accuracy.mn=1", "constraints.accuracy.mn", "be a known key", "mn", "min"),
        ("constraints.acuracy.min=1", "constraints.acuracy", METRICS, "'acuracy'", "accuracy"),
        ("recipe.training.schedule=cosin", "recipe.training.schedule", "be one of constant", "'cosin'", "cosine"),
        ("recipe.pruning.ratio=1.5", "recipe.pruning.ratio", "be <= 0.95", "1.5", None),
        ("recipe=3", "recipe", "be a mapping", "3", None),
        ("name=../x", "name", "", "'../x'", None),
        ("recipe.data.path=nowhere", "recipe.data.path", "exist in one of", "nowhere", None),
        pytest.param(
            "training.epochs=3",
            "training",
            "be a known key",
            "training",
            ...,
        ),
        pytest.param(
            "recipe.training.epochs.deep=3",
            "recipe.training.epochs",
            "be a whole number",
            "{deep: 3}",
            None,
        ),
        pytest.param(
            "objectives.0.metric=macs",
            "objectives",
            "",
            ...,
            None,
        ),
    ],
)
def test_bad_override_is_blamed_on_the_option(folder, override, path, must, given, nearest):
    error = refused(folder, override)
    assert (error.where, error.path) == ("--set", path)
    assert error.must.startswith(must)
    assert given is ... or error.given == given
    assert nearest is ... or error.nearest == nearest


@pytest.mark.parametrize(
    ("override", "read", "expected"),
    [
        ("recipe.training.epochs=3", lambda job: job.recipe.training.epochs, 3),
        ("recipe.training.learning_rate=1e-3", lambda job: job.recipe.training.learning_rate, 0.001),
        ("recipe.training.learning_rate=2E-2", lambda job: job.recipe.training.learning_rate, 0.02),
        ("recipe.training.learning_rate=.5e-1", lambda job: job.recipe.training.learning_rate, 0.05),
        ("recipe.training.learning_rate=1", lambda job: job.recipe.training.learning_rate, 1.0),
        ("recipe.training.channels_last=false", lambda job: job.recipe.training.channels_last, False),
        ("recipe.training.gradient_clip=null", lambda job: job.recipe.training.gradient_clip, None),
        ("recipe.training.schedule=step", lambda job: job.recipe.training.schedule, "step"),
        ("recipe.quantization.num_calibration=64", lambda job: job.recipe.quantization.num_calibration, 64),
        ("budget.trials=7", lambda job: job.budget.trials, 7),
        ("resources.gangs=2", lambda job: job.resources.gangs, 2),
        ("resources.gangs=auto", lambda job: job.resources.gangs, "auto"),
        ("name=night-1", lambda job: job.name, "night-1"),
        ("tracking.uri=http://host:5000/?a=b", lambda job: job.tracking.uri, "http://host:5000/?a=b"),
        ("constraints.accuracy.min=0.5", lambda job: job.constraints["accuracy"].min, 0.5),
        (
            "recipe.pruning={ratio: 0.25, epochs: 0}",
            lambda job: (job.recipe.pruning.ratio, job.recipe.pruning.epochs),
            (0.25, 0),
        ),
    ],
)
def test_override_is_typed_by_the_schema(folder, override, read, expected):
    value = read(load_job(folder / "job.yaml", [override]))
    assert value == expected
    assert type(value) is type(expected)


def test_an_override_changes_nothing_else(folder):
    plain, changed = load_job(folder / "job.yaml"), load_job(folder / "job.yaml", ["recipe.training.epochs=3"])
    tree = plain.tree()
    tree["recipe"]["training"]["epochs"] = 3
    assert changed.tree() == tree


def test_the_last_override_of_a_path_holds(folder):
    job = load_job(folder / "job.yaml", ["recipe.training.epochs=3", "recipe.training.epochs=4"])
    assert job.recipe.training.epochs == 4


def test_an_override_mends_a_bad_value_in_the_file(folder):
    edit(folder / "job.yaml", "epochs: 1", "epochs: many")
    assert load_job(folder / "job.yaml", ["recipe.training.epochs=2"]).recipe.training.epochs == 2


def test_what_an_override_leaves_is_still_blamed_on_the_file(folder):
    edit(folder / "job.yaml", "epochs: 1", "epochs: -1")
    assert refused(folder, "recipe.training.momentum=0.5").where == str(folder / "job.yaml:5")


def test_a_searched_path_that_is_set_is_pinned(folder):
    job = load_job(folder / "job.yaml", ["recipe.pruning.ratio=0.3"])
    assert job.recipe.pruning.ratio == 0.3
    assert [path for path, _ in job.space.items()] == ["quantization.method", "quantization.weight_bits"]


def test_pinning_what_others_depend_on_leaves_them_in_the_space(folder):
    job = load_job(folder / "job.yaml", ["recipe.quantization.method=ptq"])
    assert [path for path, _ in job.space.items()] == ["pruning.ratio", "quantization.weight_bits"]


# Names, paths and data.


def test_the_name_is_the_files_unless_it_is_given(folder):
    (folder / "night.yaml").write_text(JOB)
    assert load_job(folder / "night.yaml").name == "night"
    (folder / "night.yaml").write_text(JOB + "name: day\n")
    assert load_job(folder / "night.yaml").name == "day"


def test_the_space_is_looked_for_beside_the_job_and_not_in_the_working_folder(folder):
    (folder / "space.yaml").unlink()
    Path("space.yaml").write_text(SPACE)
    assert refused(folder).given == "space.yaml"


@pytest.fixture
def with_data(folder):
    edit(folder / "job.yaml", "{source: digits}", "{source: imagefolder, path: pictures}")
    return folder


def test_data_beside_the_job_comes_before_the_data_folder(with_data, tmp_path, monkeypatch):
    monkeypatch.setenv("ORCHESTRATOR_DATA", str(tmp_path / "data"))
    (tmp_path / "data" / "pictures").mkdir(parents=True)
    assert load_job(with_data / "job.yaml").recipe.data.path == str((tmp_path / "data" / "pictures").resolve())
    (with_data / "pictures").mkdir()
    assert load_job(with_data / "job.yaml").recipe.data.path == str((with_data / "pictures").resolve())


def test_data_that_is_in_none_of_the_places_names_them_all(with_data, tmp_path, monkeypatch):
    monkeypatch.setenv("ORCHESTRATOR_DATA", str(tmp_path / "data"))
    error = refused(with_data)
    assert (error.where, error.path, error.given) == (str(with_data / "job.yaml:2"), "recipe.data.path", "pictures")
    assert str(with_data) in error.must
    assert str(tmp_path / "data") in error.must
    assert "ORCHESTRATOR_DATA" in error.must


def test_an_absolute_data_path_stays(with_data, tmp_path):
    (tmp_path / "far").mkdir()
    job = load_job(with_data / "job.yaml", [f"recipe.data.path={tmp_path / 'far'}"])
    assert job.recipe.data.path == str((tmp_path / "far").resolve())


def test_torchvision_may_name_a_folder_that_it_will_make(folder):
    edit(folder / "job.yaml", "{source: digits}", "{source: torchvision, name: MNIST, path: fetched, download: true}")
    assert load_job(folder / "job.yaml").recipe.data.path == str((folder / "fetched").resolve())
    assert not (folder / "fetched").exists()


def test_check_path_reads_the_recipe_or_names_the_nearest_path():
    assert check_path(Recipe(), "training.epochs") == 10
    with pytest.raises(JobError) as caught:
        check_path(Recipe(), "training.epoch")
    assert (caught.value.given, caught.value.nearest) == ("training.epoch", "training.epochs")


# Resolved jobs and identity.


def test_a_resolved_job_reads_back_as_itself(with_data, tmp_path):
    (with_data / "pictures").mkdir()
    job = load_job(with_data / "job.yaml", ["recipe.training.learning_rate=1e-5", "budget.hours=0.5"])
    resolved = tmp_path / "elsewhere" / "resolved.yaml"
    resolved.write_text(resolved_text(job))
    again = read_resolved(resolved)
    assert again == job
    assert again.identity() == job.identity()
    assert resolved_text(again) == resolved_text(job)


def test_a_resolved_job_holds_its_space_and_every_default(folder):
    tree = yaml.safe_load(resolved_text(load_job(folder / "job.yaml")))
    assert list(tree["space"]) == ["pruning.ratio", "quantization.method", "quantization.weight_bits"]
    assert tree["recipe"]["training"]["momentum"] == 0.9
    assert tree["budget"]["trials"] == 24


@pytest.mark.parametrize(
    "override",
    [
        "budget.trials=3",
        "budget.hours=1.0",
        "storage.shared=s3://bucket/stages",
        "storage.limit_gb=2.5",
        "tracking.experiment=other",
        "tracking.uri=http://host",
        "name=other",
        "resources.gangs=2",
        "gangs.recycle_after=2",
        "gangs.lost_after_s=30.0",
    ],
)
def test_identity_does_not_see(folder, override):
    changed = load_job(folder / "job.yaml", [override])
    assert changed != load_job(folder / "job.yaml")
    assert changed.identity() == load_job(folder / "job.yaml").identity()


@pytest.mark.parametrize(
    "override",
    [
        "seed=1",
        "recipe.training.epochs=2",
        "recipe.measurement.threads=2",
        "recipe.pruning.ratio=0.0",
        "constraints.size_bytes.max=2",
        "search.sampler=random",
        "search.num_startup=9",
        "resources.workers_per_gang=2",
        "resources.threads_per_worker=2",
    ],
)
def test_identity_sees(folder, override):
    assert load_job(folder / "job.yaml", [override]).identity() != load_job(folder / "job.yaml").identity()


@pytest.mark.parametrize(("old", "new"), [("0.5", "0.6"), ("ptq]", "ptq, qat]"), ("pruning.ratio", "distillation.weight")])
def test_identity_sees_the_space(folder, old, new):
    before = load_job(folder / "job.yaml").identity()
    edit(folder / "space.yaml", old, new)
    assert load_job(folder / "job.yaml").identity() != before


def test_identity_does_not_see_how_the_files_are_written(folder):
    before = load_job(folder / "job.yaml").identity()
    edit(folder / "space.yaml", "{float: [0.0, 0.5]}", "\n  float:\n  - 0.0\n  - 5.0e-1")
    edit(folder / "job.yaml", "    learning_rate: 0.1", "    momentum: 0.9  # the default\n    learning_rate: 1.0e-1")
    assert load_job(folder / "job.yaml").identity() == before


# What is measured only when it is asked how, and weights to start from.


def test_a_metric_that_needs_a_setting_says_which(folder):
    edit(folder / "job.yaml", "metric: accuracy", "metric: robust_accuracy")
    assert "set recipe.measurement.attack when robust_accuracy is asked for" in refused(folder).must


def test_a_metric_whose_setting_is_given_may_be_an_objective(folder):
    edit(folder / "job.yaml", "metric: accuracy", "metric: robust_accuracy")
    job = load_job(folder / "job.yaml", ["recipe.measurement.attack={epsilon: 0.1}"])
    assert job.objectives[0].maximized


@pytest.mark.parametrize("path", ["recipe.model.weights", "recipe.teacher.model.weights"])
def test_weights_are_found_beside_the_job_and_missing_ones_are_named(folder, path):
    (folder / "w.safetensors").write_bytes(b"")
    job = load_job(folder / "job.yaml", [f"{path}=w.safetensors"])
    model = job.recipe.model if path == "recipe.model.weights" else job.recipe.teacher.model
    assert model.weights == str((folder / "w.safetensors").resolve())
    error = refused(folder, f"{path}=v.safetensors")
    assert (error.where, error.path, error.given) == ("--set", path, "v.safetensors")


def test_a_function_of_the_users_own_is_a_model(folder):
    job = load_job(folder / "job.yaml", ["recipe.model.name=my_package.networks:small"])
    assert job.recipe.model.name == "my_package.networks:small"
    assert "package.module:function" in refused(folder, "recipe.model.name=my_package.networks").must


@pytest.mark.parametrize(("workers", "gpus", "refuses"), [(2, 0.5, True), (1, 0.5, False), (2, 0.0, False), (2, 1.0, False)])
def test_workers_of_a_gang_do_not_share_a_gpu(folder, workers, gpus, refuses):
    overrides = (f"resources.workers_per_gang={workers}", f"resources.gpus_per_worker={gpus}")
    if refuses:
        error = refused(folder, *overrides)
        assert error.must == "have workers_per_gang (2) 1, or gpus_per_worker (0.5) 0 or at least 1"
    else:
        assert load_job(folder / "job.yaml", overrides).resources.gpus_per_worker == gpus
