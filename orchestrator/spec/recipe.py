"""A Recipe: one complete, typed, runnable experiment. A search space is a Recipe with holes."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator
from pydantic_core import PydanticCustomError

from orchestrator.errors import nearest_name
from orchestrator.spec.names import MODEL_NAMES, TORCHVISION_DATASETS

Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
Bits = Annotated[int, Field(ge=2, le=8)]


def violation(must: str, nearest: str | None = None) -> PydanticCustomError:
    """What a validator raises; `spec.complaint` turns it into a JobError with file, line and path."""
    return PydanticCustomError("violation", "must {must}", {"must": must, "nearest": nearest})


class Strict(BaseModel):
    """Settings are immutable, name every key they know, and never convert text to numbers."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class DataSettings(Strict):
    """Which dataset, and how it is split. `val_fraction` of the training split is held out, seeded by `split_seed`."""

    source: Literal["digits", "parquet", "imagefolder", "torchvision"] = "digits"
    path: str | None = None
    name: str | None = None
    download: bool = False
    image_column: str | None = None
    label_column: str | None = None
    image_size: Annotated[int, Field(ge=4, le=1024)] | None = None
    val_fraction: Annotated[float, Field(gt=0.0, le=0.5)] = 0.1
    split_seed: Annotated[int, Field(ge=0)] = 0
    max_train: Annotated[int, Field(ge=1)] | None = None
    max_val: Annotated[int, Field(ge=1)] | None = None

    @field_validator("name")
    @classmethod
    def _known_dataset(cls, name: str | None) -> str | None:
        if name is not None and name not in TORCHVISION_DATASETS:
            raise violation("be a dataset of torchvision", nearest_name(name, TORCHVISION_DATASETS))
        return name

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if self.source in ("parquet", "imagefolder") and self.path is None:
            raise violation(f"have a path when source is {self.source}")
        if self.source == "torchvision" and self.name is None:
            raise violation("have a name when source is torchvision")
        return self


class ModelSettings(Strict):
    """A network by name; `width` is the number of channels of the first stage of a CIFAR ResNet."""

    name: str = "cifar_resnet20"
    width: Annotated[int, Field(ge=4, le=256)] = 16

    @field_validator("name")
    @classmethod
    def _known_model(cls, name: str) -> str:
        if name not in MODEL_NAMES:
            raise violation(
                "be cifar_resnet8, 14, 20, 32, 44, 56 or 110, or a classification model of torchvision",
                nearest_name(name, MODEL_NAMES),
            )
        return name


class TrainingSettings(Strict):
    """How a network is trained. `batch_size` counts examples over all workers of a gang."""

    epochs: Annotated[int, Field(ge=0, le=10_000)] = 10
    batch_size: Annotated[int, Field(ge=1, le=65_536)] = 128
    optimizer: Literal["sgd", "adamw"] = "sgd"
    learning_rate: Annotated[float, Field(gt=0.0, le=10.0)] = 0.1
    momentum: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.9
    weight_decay: Annotated[float, Field(ge=0.0, le=1.0)] = 5e-4
    schedule: Literal["constant", "step", "cosine", "one_cycle"] = "cosine"
    warmup_fraction: Annotated[float, Field(ge=0.0, le=0.5)] = 0.1
    label_smoothing: Annotated[float, Field(ge=0.0, le=0.5)] = 0.0
    gradient_clip: Annotated[float, Field(gt=0.0)] | None = None
    augmentation: Literal["none", "shift", "shift_flip"] = "none"
    precision: Literal["fp32", "bf16", "fp16"] = "bf16"
    channels_last: bool = True


class TeacherSettings(Strict):
    """The network that is trained once and shared by every trial that distils from it."""

    model: ModelSettings = ModelSettings()
    training: TrainingSettings = TrainingSettings()


class DistillationSettings(Strict):
    """Hinton, Vinyals, Dean 2015, section 2: `weight` 0 trains on labels alone, 1 on the teacher alone."""

    weight: Fraction = 0.0
    temperature: Annotated[float, Field(ge=1.0, le=20.0)] = 4.0


class PruningSettings(Strict):
    """Channel pruning along the dependency graph; `ratio` is the fraction of channels removed."""

    ratio: Annotated[float, Field(ge=0.0, le=0.95)] = 0.0
    criterion: Literal["l1", "l2"] = "l2"
    scope: Literal["uniform", "global"] = "uniform"
    round_to: Annotated[int, Field(ge=1, le=64)] = 4
    epochs: Annotated[int, Field(ge=0, le=10_000)] = 3
    learning_rate: Annotated[float, Field(gt=0.0, le=10.0)] = 0.02


class QuantizationSettings(Strict):
    """`ptq` calibrates, `qat` also trains the weights and the step sizes. First and last layer stay at 8 bits by default."""

    method: Literal["none", "ptq", "qat"] = "none"
    weight_bits: Bits = 8
    activation_bits: Bits = 8
    calibration: Literal["minmax", "percentile", "mse"] = "mse"
    num_calibration: Annotated[int, Field(ge=1, le=100_000)] = 256
    first_last_8bit: bool = True
    epochs: Annotated[int, Field(ge=0, le=10_000)] = 2
    learning_rate: Annotated[float, Field(gt=0.0, le=10.0)] = 0.005


class MeasurementSettings(Strict):
    """Latency is the median over `rounds` of single-image calls in ONNX Runtime with `threads` threads."""

    threads: Annotated[int, Field(ge=1, le=256)] = 1
    rounds: Annotated[int, Field(ge=5, le=10_000)] = 200


class Recipe(Strict):
    """One experiment from data to measured file."""

    data: DataSettings = DataSettings()
    model: ModelSettings = ModelSettings()
    training: TrainingSettings = TrainingSettings()
    teacher: TeacherSettings = TeacherSettings()
    distillation: DistillationSettings = DistillationSettings()
    pruning: PruningSettings = PruningSettings()
    quantization: QuantizationSettings = QuantizationSettings()
    measurement: MeasurementSettings = MeasurementSettings()
