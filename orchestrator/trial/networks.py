"""The stages that make networks: teacher, student, pruned, quantized. Each is stored, and shared between trials."""

from __future__ import annotations

import time
from typing import Any

from torch import Tensor, fx, nn

from orchestrator.compression.correction import correct_biases, reestimate_norms
from orchestrator.compression.fake_quantize import calibrate, lean_graph, set_calibrated, settle_biases
from orchestrator.compression.weights import keep_zeros
from orchestrator.models.build import reshape_to
from orchestrator.results.trial_result import StageRecord
from orchestrator.spec.recipe import ModelSettings, TrainingSettings
from orchestrator.training.process import laid_out
from orchestrator.trial.calibration import calibration_images
from orchestrator.trial.cutting import cut_in_steps
from orchestrator.trial.fitting import train
from orchestrator.trial.preflight import gate_cut
from orchestrator.trial.quantizing import layer_bits, remembered_bits, with_quantizers
from orchestrator.trial.work import Network, Work
from orchestrator.trial.workshop import Teacher


def train_teacher(work: Work) -> Network | None:
    """The teacher, when the recipe distils: trained once for all trials that name the same one."""
    distillation = work.recipe.distillation
    if distillation.weight == 0.0 and distillation.feature_weight == 0.0:
        return None
    settings = work.recipe.teacher
    tree = _dense(work, settings.model, settings.training)
    key = work.key("dense", tree, [])
    warm = work.workshop.teacher
    if warm is not None and warm.key == key:
        work.curve += warm.curve
        work.workshop.store.touch(key)
        work.stages.append(StageRecord("teacher", key, 0.0, True, time.time(), work.workshop.store.seconds(key)))
        return Network(warm.model, key)

    def make(seed: int) -> nn.Module:
        training = settings.training
        model = work.fresh(settings.model, loaded=training.epochs == 0)
        train(work, "teacher", model, training, None, seed, epochs=training.epochs, rate=training.learning_rate)
        return model

    network = work.network_stage(
        "teacher", tree, [], make, lambda state: reshape_to(work.fresh(settings.model), state), kind="dense"
    )
    model = laid_out(network.model, channels_last=settings.training.channels_last)
    work.workshop.teacher = Teacher(key, model, list(work.curve))
    return network


def train_student(work: Work, teacher: Network | None) -> Network:
    """The dense student: on labels alone, or with the teacher as well."""
    recipe, training = work.recipe, work.recipe.training
    settings = _dense(work, recipe.model, training) | _lessons(work, teacher)

    def make(seed: int) -> nn.Module:
        model = work.fresh(recipe.model)
        train(work, "student", model, training, teacher, seed, epochs=training.epochs, rate=training.learning_rate)
        return model

    return work.network_stage(
        "student",
        settings,
        _keys(teacher),
        make,
        lambda state: reshape_to(work.fresh(recipe.model), state),
        kind="dense",
    )


def prune(work: Work, student: Network, teacher: Network | None) -> Network:
    """The student without some of its channels or weights, trained on to recover. Nothing happens at ratio 0."""
    pruning, training = work.recipe.pruning, work.recipe.training
    if pruning.ratio == 0.0:
        return student
    settings = {"pruning": pruning.model_dump(), "training": _continued(work), **_lessons(work, teacher)}
    if pruning.criterion == "taylor" or pruning.scope == "sensitivity":
        settings["num_calibration"] = work.recipe.quantization.num_calibration

    def make(seed: int) -> nn.Module:
        model = reshape_to(work.fresh(work.recipe.model), student.model.state_dict())
        done = 0
        for step, _ in enumerate(cut_in_steps(work, model), start=1):
            if step == pruning.steps:
                gate_cut(work, model)
            epochs = pruning.epochs * step // pruning.steps - done
            train(
                work,
                "pruned",
                model,
                training,
                teacher,
                seed,
                epochs=epochs,
                rate=pruning.learning_rate,
                first_epoch=done,
                after_step=_after_step(work, model),
            )
            done += epochs
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
    quantization = work.recipe.quantization
    if quantization.method == "none":
        return network
    settings = {"quantization": quantization.model_dump(), "training": _continued(work), **_lessons(work, teacher)}

    def make(seed: int) -> nn.Module:
        model = with_quantizers(network.model, quantization, layer_bits(work, network.model))
        images = calibration_images(work)
        with work.process.permit():
            calibrate(model, images, quantization.calibration)
        if quantization.method == "qat":
            _train_quantized(work, model, teacher, seed)
        with work.process.permit():
            if quantization.method == "ptq" and quantization.norm_reestimation:
                reestimate_norms(model, images, network.model)
            if quantization.method == "ptq" and quantization.bias_correction:
                correct_biases(model, network.model, images)
            calibrate(model, images, quantization.calibration, carriers_only=True)
            settle_biases(model)
        return model

    def rebuild(state: dict[str, Tensor]) -> nn.Module:
        bits = remembered_bits(network.model, state, quantization.weight_bits)
        model = with_quantizers(network.model, quantization, bits)
        model.load_state_dict(state)
        set_calibrated(model)
        return model

    return work.network_stage("quantized", settings, [network.key, *_keys(teacher)], make, rebuild)


def _train_quantized(work: Work, model: fx.GraphModule, teacher: Network | None, seed: int) -> None:
    quantization = work.recipe.quantization
    with lean_graph(model):
        train(
            work,
            "quantized",
            model,
            work.recipe.training,
            teacher,
            seed,
            epochs=quantization.epochs,
            rate=quantization.learning_rate,
            after_step=_after_step(work, model),
        )


def _after_step(work: Work, model: nn.Module) -> Any:
    """What keeps pruned weights zero, where single weights were pruned."""
    pruning = work.recipe.pruning
    return keep_zeros(model) if pruning.kind != "channels" and pruning.ratio > 0.0 else lambda: None


def _dense(work: Work, model: ModelSettings, training: TrainingSettings) -> dict[str, object]:
    """What a network that is trained from the start depends on; a teacher and a student of the same settings are one."""
    return {"model": model.model_dump(), "origin": work.origin(model), "training": training.model_dump()}


def _continued(work: Work) -> dict[str, object]:
    """What later phases take from the training settings; rate and epochs are their own."""
    return work.recipe.training.model_dump(exclude={"epochs", "learning_rate"})


def _lessons(work: Work, teacher: Network | None) -> dict[str, object]:
    """The loss's and the adversary's settings, left out where there is none: what nobody reads is no difference."""
    found: dict[str, object] = {}
    if teacher is not None:
        found["distillation"] = work.recipe.distillation.model_dump()
    if work.recipe.adversarial.method != "none":
        found["adversarial"] = work.recipe.adversarial.model_dump()
    return found


def _keys(teacher: Network | None) -> list[str]:
    return [] if teacher is None else [teacher.key]
