"""The parts of an audit: two models on the same images, compared. Each part is a mapping that JSON can hold.

A model is a function from pixels to logits, and perhaps a graph that gradients go through: nothing here knows of trials.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from orchestrator.compression.fake_quantize import image_quantizers
from orchestrator.data.batches import Normalizer
from orchestrator.data.decode import Examples
from orchestrator.measure.accuracy import classification
from orchestrator.measure.attribution import saliency, similarities
from orchestrator.measure.audit import class_changes, confident_flips, flip_rate, flips_by_class, wilson_interval
from orchestrator.measure.calibration_curve import calibration_curve, confidences, expected_calibration_error
from orchestrator.measure.corruptions import CORRUPTIONS, SEVERITIES, corrupted
from orchestrator.measure.robustness import adversarial_images
from orchestrator.report.audit_page import Pictures
from orchestrator.spec.recipe import AttackSettings
from orchestrator.training.adversarial import make_perturbation, straight_through
from orchestrator.trial.order import derived_seed

Logits = npt.NDArray[np.float32]

_BATCH, _ATTACK_BATCH = 256, 64
_MAX_FLIPS, _MAX_CORRUPTED, _NUM_MAPS = 12, 1000, 6


@dataclass(frozen=True)
class Judged:
    """One of the two models.

    Args:
        what: it is, in words.
        executor: what computes its logits.
        logits: of pixels (N, C, H, W) in 0..255, bytes or floats; float32 (N, classes).
        graph: maps normalised images to logits, with gradients; None where there is none.
    """

    what: str
    executor: str
    logits: Callable[[npt.NDArray[Any]], Logits]
    graph: nn.Module | None = None


@dataclass(frozen=True)
class Subject:
    """What both models are shown.

    Args:
        examples: the validation split. Where they are no pictures, (N, C, H, W), what only pictures have is left out.
        seed: of the sweep; the attack's start and the noise are drawn from it.
        say: told of progress, a line each.
        permit: entered around work that would disturb a measurement on this machine.
    """

    examples: Examples
    classes: Sequence[str]
    normalizer: Normalizer
    attack: AttackSettings
    num_explained: int
    seed: int
    say: Callable[[str], None] = lambda line: None
    permit: Callable[[], AbstractContextManager[object]] = nullcontext

    def spread(self, most: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
        """At most so many examples, evenly over the split, which may be in the order of its classes: places, images, labels."""
        num = len(self.examples)
        chosen = slice(0, num, -(-num // most))
        return np.arange(num)[chosen], np.array(self.examples.images[chosen]), np.array(self.examples.labels[chosen])

    def normalised(self, pixels: npt.NDArray[Any]) -> Tensor:
        return self.normalizer(torch.from_numpy(pixels))


def compare(subject: Subject, compressed: Judged, dense: Judged) -> tuple[dict[str, Any], Pictures]:
    """All parts, and the pictures that a page shows with them. Equal input gives equal parts."""
    images, labels = subject.examples.images, subject.examples.labels
    subject.say(f"classifying {len(labels)} validation images with both models")
    logits, dense_logits = compressed.logits(images), dense.logits(images)
    parts: dict[str, Any] = {
        "accuracy": {"compressed": _counted(logits, labels), "dense": _counted(dense_logits, labels)},
        "classes": _classes(subject, logits, dense_logits),
        "flips": _flips(subject, logits, dense_logits),
        "calibration": {"compressed": _calibration(logits, labels), "dense": _calibration(dense_logits, labels)},
        "attack": None,
        "corruptions": None,
        "attributions": None,
        "notes": [],
    }
    if len(images[:1].shape) != 4:
        parts["notes"] = ["The data are no pictures: attacks, corruptions, attribution maps and example pictures are left out."]
        return parts, Pictures([], [])
    parts["attack"] = _attack(subject, compressed, dense)
    parts["corruptions"] = _corruptions(subject, compressed, dense)
    parts["attributions"], maps = _attributions(subject, compressed, dense, dense_logits)
    if parts["attack"] is None:
        parts["notes"].append("No graph of either model is left: no attack was found, as it takes gradients.")
    if parts["attributions"] is None:
        parts["notes"].append("A graph of one model is missing: no attribution maps were made, as they are gradients.")
    shown = [images[flip["image"] : flip["image"] + 1][0] for flip in parts["flips"]["examples"]]
    return parts, Pictures(shown, maps)


def _counted(logits: Logits, labels: npt.NDArray[np.int64]) -> dict[str, Any]:
    quality = classification(logits, labels)
    low, high = wilson_interval(int((logits.argmax(1) == labels).sum()), len(labels))
    return {"accuracy": quality["accuracy"], "interval": [low, high], "worst_class_accuracy": quality["worst_class_accuracy"]}


def _classes(subject: Subject, logits: Logits, dense_logits: Logits) -> list[dict[str, Any]]:
    """Those that lost most first."""
    found = class_changes(logits, dense_logits, subject.examples.labels)
    return [{"class": subject.classes[each.label], **asdict(each), "change": each.change} for each in found]


def _flips(subject: Subject, logits: Logits, dense_logits: Logits) -> dict[str, Any]:
    labels, classes = subject.examples.labels, subject.classes
    rate, by_class = flip_rate(logits, dense_logits), flips_by_class(logits, dense_logits, labels)
    count = round(rate * len(labels))
    shown = [
        {
            "image": flip.place,
            "class": classes[flip.label],
            "dense": {"class": classes[flip.dense], "confidence": flip.dense_confidence},
            "compressed": {"class": classes[flip.compressed], "confidence": flip.compressed_confidence},
            "kind": "lost" if flip.dense == flip.label else "gained" if flip.compressed == flip.label else "both wrong",
        }
        for flip in confident_flips(logits, dense_logits, labels, _MAX_FLIPS)
    ]
    return {
        "rate": rate,
        "interval": list(wilson_interval(count, len(labels))),
        "num": count,
        "by_class": [{"class": classes[label], "label": label, "rate": share} for label, share in by_class.items()],
        "examples": shown,
    }


def _calibration(logits: Logits, labels: npt.NDArray[np.int64]) -> dict[str, Any]:
    curve = calibration_curve(confidences(logits), logits.argmax(1) == labels)
    return {"error": expected_calibration_error(curve), "bins": [asdict(part) for part in curve]}


def _attack(subject: Subject, compressed: Judged, dense: Judged) -> dict[str, Any] | None:
    """Each model on images that PGD found on its own graph, or on the other's where it has none."""
    how = subject.attack
    _, pixels, labels = subject.spread(how.num_images)
    found: dict[str, Any] = {"method": "PGD, L-infinity", **how.model_dump(), "num_images": len(labels)}
    for name, model, other in (("compressed", compressed, dense), ("dense", dense, compressed)):
        graph = model.graph if model.graph is not None else other.graph
        if graph is None:
            return None
        subject.say(f"attacking the {name} model on {len(labels)} images, {how.steps} steps each")
        perturbed = _perturbed(subject, graph, pixels, labels)
        count = int((model.logits(perturbed).argmax(1) == labels).sum())
        clean = float((model.logits(pixels).argmax(1) == labels).mean())
        found[name] = {
            "accuracy": count / len(labels),
            "interval": list(wilson_interval(count, len(labels))),
            "clean_accuracy": clean,
            "found_on": "its own graph" if graph is model.graph else "the other model's graph: a weaker attack",
        }
    return found


def _perturbed(subject: Subject, graph: nn.Module, pixels: npt.NDArray[np.uint8], labels: npt.NDArray[np.int64]) -> Logits:
    """What PGD makes of images, as a picture file could hold it: float32, whole numbers in 0..255."""
    how, constants = subject.attack, (subject.normalizer.scale, subject.normalizer.offset)
    generator = torch.Generator().manual_seed(derived_seed(subject.seed, "robust accuracy"))
    attack = make_perturbation("pgd", how.epsilon, how.steps, how.step_size, *constants, generator)
    assert attack is not None

    def permitted(model: nn.Module, images: Tensor, truth: Tensor) -> Tensor:
        with subject.permit():
            return attack(model, images, truth)

    both = torch.from_numpy(pixels), torch.from_numpy(labels)
    with straight_through(image_quantizers(graph)):
        return adversarial_images(graph, permitted, *both, how.epsilon, *constants, len(labels), _ATTACK_BATCH)


def _corruptions(subject: Subject, compressed: Judged, dense: Judged) -> dict[str, Any]:
    """Accuracy of both models by corruption and severity; severity 0 is the images as they are."""
    places, pixels, labels = subject.spread(_MAX_CORRUPTED)
    models = {"compressed": compressed, "dense": dense}
    cases = [(kind, severity) for kind in CORRUPTIONS for severity in SEVERITIES]
    right = {name: dict.fromkeys([("", 0), *cases], 0) for name in models}
    for start in range(0, len(labels), _BATCH):
        rows = slice(start, start + _BATCH)
        subject.say(
            f"corrupting images {start + 1} to {min(start + _BATCH, len(labels))} of {len(labels)} in {len(cases)} ways"
        )
        for case, changed in _versions(pixels[rows], places[rows], cases, subject):
            for name, model in models.items():
                right[name][case] += int((model.logits(changed).argmax(1) == labels[rows]).sum())
    num = len(labels)
    told = [
        {"corruption": kind, "severity": severity, **{name: right[name][kind, severity] / num for name in models}}
        for kind, severity in cases
    ]
    return {
        "num_images": num,
        "clean": {name: right[name]["", 0] / num for name in models},
        "mean": {name: sum(right[name][case] for case in cases) / (num * len(cases)) for name in models},
        "rows": told,
    }


def _versions(
    pixels: npt.NDArray[np.uint8], places: npt.NDArray[np.int64], cases: list[tuple[str, int]], subject: Subject
) -> Iterator[tuple[tuple[str, int], npt.NDArray[np.uint8]]]:
    yield ("", 0), pixels
    for kind, severity in cases:
        with subject.permit():
            changed = corrupted(pixels, kind, severity, places, derived_seed(subject.seed, kind))
        yield (kind, severity), changed


def _attributions(
    subject: Subject, compressed: Judged, dense: Judged, dense_logits: Logits
) -> tuple[dict[str, Any] | None, list[tuple[npt.NDArray[Any], npt.NDArray[Any], npt.NDArray[Any]]]]:
    """How alike the two graphs weigh the pixels of the dense model's prediction; the images that differ most and least."""
    if compressed.graph is None or dense.graph is None:
        return None, []
    places, pixels, labels = subject.spread(subject.num_explained)
    subject.say(f"explaining {len(places)} predictions")
    targets = torch.from_numpy(dense_logits[places].argmax(1))
    maps = [_maps(subject, graph, pixels, targets) for graph in (dense.graph, compressed.graph)]
    alike = similarities(*maps)
    order = np.argsort(alike, kind="stable")
    chosen = order if len(order) <= _NUM_MAPS else np.concatenate([order[: _NUM_MAPS // 2], order[-_NUM_MAPS // 2 :]])
    shown = [
        {
            "image": int(places[i]),
            "class": subject.classes[int(labels[i])],
            "explained": subject.classes[int(targets[i])],
            "similarity": alike[i],
        }
        for i in chosen
    ]
    told = {
        "method": "absolute gradient of the dense model's prediction, largest over channels; compared by rank",
        "num_images": len(places),
        "mean": float(np.mean(alike)),
        "lowest": min(alike),
        "examples": shown,
    }
    return told, [(pixels[i], maps[0][i].numpy(), maps[1][i].numpy()) for i in chosen]


def _maps(subject: Subject, graph: nn.Module, pixels: npt.NDArray[np.uint8], targets: Tensor) -> Tensor:
    """Saliency maps (N, H, W) of all images, a batch at a time."""
    found = []
    for start in range(0, len(pixels), _ATTACK_BATCH):
        rows = slice(start, start + _ATTACK_BATCH)
        with subject.permit(), straight_through(image_quantizers(graph)):
            found.append(saliency(graph, subject.normalised(pixels[rows]), targets[rows]))
    return torch.cat(found)
