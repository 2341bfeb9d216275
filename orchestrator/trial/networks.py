"""The stages that make networks: teacher, student, pruned, quantized. Each is stored, and shared between trials."""

from __future__ import annotations

import time

import numpy as np
import torch
from torch import Tensor, fx, nn

from orchestrator.compression.channels import prune_channels
from orchestrator.compression.fake_quantize import calibrate, insert_quantizers, set_calibrated, settle_biases
from orchestrator.models.build import reshape_to
from orchestrator.results.trial_result import StageRecord
from orchestrator.training.process import laid_out
from orchestrator.trial.order import derived_seed
from orchestrator.trial.work import Network, Work
from orchestrator.trial.workshop import Teacher

_CALIBRATION_BATCH = 64


def train_teacher(work: Work) -> Network | None:
    """The teacher, when the recipe distils: trained once for all trials that name the same one."""
    if work.recipe.distillation.weight == 0.0:
        return None
    settings = work.recipe.teacher
    tree = settings.model_dump()
    key = work.key("teacher", tree, [])
    warm = work.workshop.teacher
    if warm is not None and warm.key == key:
        work.curve += warm.curve
        work.stages.append(StageRecord("teacher", key, 0.0, True, time.time()))
        return Network(warm.model, key)

    def make(seed: int) -> nn.Module:
        model, training = work.fresh(settings.model), settings.training
        work.train("teacher", model, training, None, epochs=training.epochs, rate=training.learning_rate)
        return model

    network = work.network_stage("teacher", tree, [], make, lambda state: reshape_to(work.fresh(settings.model), state))
    model = laid_out(network.model, channels_last=settings.training.channels_last)
    work.workshop.teacher = Teacher(key, model, list(work.curve))
    return network


def train_student(work: Work, teacher: Network | None) -> Network:
    """The dense student: on labels alone, or with the teacher as well."""
    recipe = work.recipe
    settings = {
        "model": recipe.model.model_dump(),
        "training": recipe.training.model_dump(),
        **_distillation(work, teacher),
    }

    def make(seed: int) -> nn.Module:
        model, training = work.fresh(recipe.model), recipe.training
        work.train("student", model, training, _model(teacher), epochs=training.epochs, rate=training.learning_rate)
        return model

    return work.network_stage(
        "student", settings, _keys(teacher), make, lambda state: reshape_to(work.fresh(recipe.model), state)
    )


def prune(work: Work, student: Network, teacher: Network | None) -> Network:
    """The student without some of its channels, trained on to recover. Nothing happens at ratio 0."""
    pruning, training = work.recipe.pruning, work.recipe.training
    if pruning.ratio == 0.0:
        return student
    settings = {"pruning": pruning.model_dump(), "training": _continued(work), **_distillation(work, teacher)}

    def make(seed: int) -> nn.Module:
        model = reshape_to(work.fresh(work.recipe.model), student.model.state_dict())
        prune_channels(model, work.example(), pruning.ratio, pruning.criterion, pruning.scope, pruning.round_to)
        work.train("pruned", model, training, _model(teacher), epochs=pruning.epochs, rate=pruning.learning_rate)
        return model

    return work.network_stage(
        "pruned",
        settings,
        [student.key, *_keys(teacher)],
        make,
        lambda state: reshape_to(work.fresh(work.recipe.model), state),
    )


def quantize(work: Work, network: Network, teacher: Network | None) -> Network:
    """The network with quantizers: calibrated ("ptq"), and trained on with them ("qat"). Nothing happens for "none"."""
    quantization, training = work.recipe.quantization, work.recipe.training
    if quantization.method == "none":
        return network
    settings = {"quantization": quantization.model_dump(), "training": _continued(work), **_distillation(work, teacher)}

    def with_quantizers() -> fx.GraphModule:
        bits = quantization.weight_bits, quantization.activation_bits
        return insert_quantizers(network.model, *bits, quantization.first_last_8bit)

    def make(seed: int) -> nn.Module:
        model, images = with_quantizers(), calibration_images(work)
        with work.process.permit():
            calibrate(model, images, quantization.calibration)
        if quantization.method == "qat":
            epochs, rate = quantization.epochs, quantization.learning_rate
            work.train("quantized", model, training, _model(teacher), epochs=epochs, rate=rate)
            with work.process.permit():
                calibrate(model, images, quantization.calibration, carriers_only=True)
        settle_biases(model)
        return model

    def rebuild(state: dict[str, Tensor]) -> nn.Module:
        model = with_quantizers()
        model.load_state_dict(state)
        set_calibrated(model)
        return model

    return work.network_stage("quantized", settings, [network.key, *_keys(teacher)], make, rebuild)


def calibration_images(work: Work) -> list[Tensor]:
    """The same training images for every trial, normalised, in batches (B, C, H, W)."""
    data = work.material.train
    images = data.normalizer(data.images[torch.from_numpy(calibration_rows(work)).to(data.images.device)])
    return list(torch.split(images, _CALIBRATION_BATCH))


def calibration_rows(work: Work) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """Which training examples calibrate: a seeded sample."""
    count, total = work.recipe.quantization.num_calibration, len(work.material.train)
    seed = derived_seed(work.order.sweep_seed, "calibration")
    return np.sort(np.random.default_rng(seed).permutation(total)[:count])


def _continued(work: Work) -> dict[str, object]:
    """What later phases take from the training settings; rate and epochs are their own."""
    return work.recipe.training.model_dump(exclude={"epochs", "learning_rate"})


def _distillation(work: Work, teacher: Network | None) -> dict[str, object]:
    """The loss's settings, left out where there is no teacher: a temperature that nobody reads is no difference."""
    return {} if teacher is None else {"distillation": work.recipe.distillation.model_dump()}


def _model(teacher: Network | None) -> nn.Module | None:
    return None if teacher is None else teacher.model


def _keys(teacher: Network | None) -> list[str]:
    return [] if teacher is None else [teacher.key]
