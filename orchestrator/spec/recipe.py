"""A Recipe: one complete, typed, runnable experiment. A search space is a Recipe with holes."""

from __future__ import annotations

import re
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
    """Which dataset, and how it is split. `val_fraction` of the training split is held out, seeded by `split_seed`.

    Args:
        image_fit: how a picture becomes a square of `image_size`: `stretch` takes all of it, `crop` the square in its middle.
        memory_gb: what a process may hold of the dataset, in 10^9 bytes. Pictures in files that are more when they are decoded
            stay where they are, and are decoded as training asks for them.
    """

    source: Literal["digits", "parquet", "imagefolder", "torchvision"] = "digits"
    path: str | None = None
    name: str | None = None
    download: bool = False
    image_column: str | None = None
    label_column: str | None = None
    image_size: Annotated[int, Field(ge=4, le=1024)] | None = None
    image_fit: Literal["stretch", "crop"] = "stretch"
    memory_gb: Annotated[float, Field(gt=0.0, le=100_000.0)] = 4.0
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
    """A network: a name, or `package.module:function` of the user's own, called with num_classes and in_channels.

    Args:
        width: channels of the first stage of a CIFAR ResNet; other networks have their own.
        weights: a local safetensors file to start from; a head for other classes is left out of it.
        dropout: before the classifier.
    """

    name: str = "cifar_resnet20"
    width: Annotated[int, Field(ge=4, le=256)] = 16
    weights: str | None = None
    dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0

    @field_validator("name")
    @classmethod
    def _known_model(cls, name: str) -> str:
        if name not in MODEL_NAMES and not re.fullmatch(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*", name):
            raise violation(
                "be cifar_resnet8, 14, 20, 32, 44, 56 or 110, a torchvision classification model, or package.module:function",
                nearest_name(name, MODEL_NAMES),
            )
        return name


class AdversarialSettings(Strict):
    """Training on perturbed images, L-infinity, `epsilon` in fractions of the pixel range.

    `fgsm`: Goodfellow et al. 2015; `pgd`: Madry et al. 2018; `fast`: FGSM from a random start (Wong et al. 2020); `free`: one
    gradient for weights and images, each batch `steps` times (Shafahi et al. 2019).
    """

    method: Literal["none", "fgsm", "pgd", "fast", "free"] = "none"
    epsilon: Annotated[float, Field(gt=0.0, le=1.0)] = 8 / 255
    steps: Annotated[int, Field(ge=1, le=100)] = 7
    step_size: Annotated[float, Field(gt=0.0, le=1.0)] = 2 / 255


class TrainingSettings(Strict):
    """How a network is trained. `batch_size` counts examples over all workers of a gang.

    Args:
        accumulation: a batch is taken in so many parts, one after the other, and stepped once.
        compile: by torch.compile; pays on long trainings.
    """

    epochs: Annotated[int, Field(ge=0, le=10_000)] = 10
    batch_size: Annotated[int, Field(ge=1, le=65_536)] = 128
    accumulation: Annotated[int, Field(ge=1, le=1024)] = 1
    optimizer: Literal["sgd", "adamw", "adafactor", "muon"] = "sgd"
    learning_rate: Annotated[float, Field(gt=0.0, le=10.0)] = 0.1
    momentum: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.9
    weight_decay: Annotated[float, Field(ge=0.0, le=1.0)] = 5e-4
    schedule: Literal["constant", "step", "cosine", "one_cycle", "plateau"] = "cosine"
    warmup_fraction: Annotated[float, Field(ge=0.0, le=0.5)] = 0.1
    label_smoothing: Annotated[float, Field(ge=0.0, le=0.5)] = 0.0
    gradient_clip: Annotated[float, Field(gt=0.0)] | None = None
    augmentation: Literal["none", "shift", "shift_flip"] = "none"
    precision: Literal["fp32", "bf16", "fp16"] = "bf16"
    channels_last: bool = True
    compile: bool = False


class TeacherSettings(Strict):
    """The network that is trained once and shared by every trial that distils from it.

    With `model.weights` that fit as they are and `training.epochs` 0 it is loaded instead.
    """

    model: ModelSettings = ModelSettings()
    training: TrainingSettings = TrainingSettings()


class DistillationSettings(Strict):
    """`weight` 0 trains on labels alone, 1 on the teacher alone.

    `hinton`: Hinton, Vinyals, Dean 2015, section 2. `decoupled`: Zhao et al. 2022, equation 7, with `beta` for the classes that
    are not the label's. `feature_weight` adds the attention transfer of Zagoruyko and Komodakis 2017.
    """

    method: Literal["hinton", "decoupled"] = "hinton"
    weight: Fraction = 0.0
    temperature: Annotated[float, Field(ge=1.0, le=20.0)] = 4.0
    beta: Annotated[float, Field(ge=0.0, le=100.0)] = 8.0
    feature_weight: Annotated[float, Field(ge=0.0, le=10_000.0)] = 0.0


class PruningSettings(Strict):
    """`channels` along the dependency graph, or single `weights` (L1), or two of four (`2:4`); `ratio` is the fraction removed.

    `2:4` always removes half: a ratio above 0 turns it on, and scope and criterion do not matter. `weights` takes the scope
    `uniform`, and with any other the weakest of all layers go together.

    Args:
        criterion: how channels are scored: norm of their weights, BN scale (Liu et al. 2017), Taylor (Molchanov et al. 2019).
        scope: `uniform`: each layer loses the ratio; `global`: the weakest of all go; `sensitivity`: who bears it loses more.
        steps: the ratio is reached in so many steps, with `epochs` shared between them.
        round_to: channel counts stay multiples of this.
    """

    kind: Literal["channels", "weights", "2:4"] = "channels"
    ratio: Annotated[float, Field(ge=0.0, le=0.95)] = 0.0
    criterion: Literal["l1", "l2", "bn_scale", "taylor"] = "l2"
    scope: Literal["uniform", "global", "sensitivity"] = "uniform"
    steps: Annotated[int, Field(ge=1, le=100)] = 1
    round_to: Annotated[int, Field(ge=1, le=64)] = 4
    epochs: Annotated[int, Field(ge=0, le=10_000)] = 3
    learning_rate: Annotated[float, Field(gt=0.0, le=10.0)] = 0.02


class QuantizationSettings(Strict):
    """`ptq` calibrates, `qat` also trains the weights and the step sizes. First and last layer stay at 8 bits by default.

    Args:
        granularity: one step size per output channel of a weight, or one for all of it.
        allocation: `uniform`: every layer has `weight_bits`; `sensitivity`: that is the mean, and who suffers most has more.
        bias_correction: ptq: put back the mean that rounding took from each channel (Nagel et al. 2019, section 4.2).
        norm_reestimation: ptq: let batch norms see the quantized network's statistics (Sun et al. 2019).
    """

    method: Literal["none", "ptq", "qat"] = "none"
    weight_bits: Bits = 8
    activation_bits: Bits = 8
    granularity: Literal["channel", "tensor"] = "channel"
    allocation: Literal["uniform", "sensitivity"] = "uniform"
    calibration: Literal["minmax", "percentile", "mse"] = "mse"
    num_calibration: Annotated[int, Field(ge=1, le=100_000)] = 256
    bias_correction: bool = False
    norm_reestimation: bool = False
    first_last_8bit: bool = True
    epochs: Annotated[int, Field(ge=0, le=10_000)] = 2
    learning_rate: Annotated[float, Field(gt=0.0, le=10.0)] = 0.005


class ExportSettings(Strict):
    """Which files a trial leaves beside `model.onnx`: `torch_export` adds `model.pt2`."""

    torch_export: bool = False


class AttackSettings(Strict):
    """PGD, L-infinity (Madry et al. 2018), from a random start; sizes in fractions of the pixel range."""

    epsilon: Annotated[float, Field(gt=0.0, le=1.0)] = 8 / 255
    steps: Annotated[int, Field(ge=1, le=1000)] = 10
    step_size: Annotated[float, Field(gt=0.0, le=1.0)] = 2 / 255
    num_images: Annotated[int, Field(ge=1)] = 512


class MeasurementSettings(Strict):
    """Latency is the median over `rounds` of single-image calls in ONNX Runtime with `threads` threads.

    Args:
        attack: `robust_accuracy` under PGD on the validation split is measured against it; costs many passes, so it is off.
        num_explained: `explanation_similarity` is taken over so many validation images; 0 leaves it out.
    """

    threads: Annotated[int, Field(ge=1, le=256)] = 1
    rounds: Annotated[int, Field(ge=5, le=10_000)] = 200
    attack: AttackSettings | None = None
    num_explained: Annotated[int, Field(ge=0, le=10_000)] = 0


class Recipe(Strict):
    """One experiment from data to measured file."""

    data: DataSettings = DataSettings()
    model: ModelSettings = ModelSettings()
    training: TrainingSettings = TrainingSettings()
    teacher: TeacherSettings = TeacherSettings()
    distillation: DistillationSettings = DistillationSettings()
    pruning: PruningSettings = PruningSettings()
    quantization: QuantizationSettings = QuantizationSettings()
    adversarial: AdversarialSettings = AdversarialSettings()
    export: ExportSettings = ExportSettings()
    measurement: MeasurementSettings = MeasurementSettings()
