"""What compression changed that accuracy does not tell: flipped predictions, classes, and what predictions rest on."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from orchestrator.measure.attribution import saliency, similarities
from orchestrator.measure.calibration_curve import confidences

_BATCH = 64
_Z = 1.959963984540054  # a normal variable lies within so many standard errors with probability 0.95

Logits = npt.NDArray[np.float32]


def flip_rate(logits_NC: Logits, dense_logits_NC: Logits) -> float:
    """Fraction of predictions that differ from the dense network's; 0 where all are the same.

    Two networks of one accuracy may disagree on many images (Dutta et al. 2024, "Accuracy is not all you need", who count only
    changes between right and wrong; here a change from one wrong class to another counts too).

    Raises:
        ValueError: the logits are not of the same images and classes.
    """
    return float(_flipped(logits_NC, dense_logits_NC).mean())


def agreement(logits_NC: Logits, graph_logits_NC: Logits) -> float:
    """Fraction of predictions that the file and the training graph share; 1 where all are the same.

    Raises:
        ValueError: the logits are not of the same images and classes.
    """
    return 1.0 - flip_rate(logits_NC, graph_logits_NC)


def flips_by_class(logits_NC: Logits, dense_logits_NC: Logits, labels_N: npt.NDArray[np.int64]) -> dict[int, float]:
    """`flip_rate` over the images of each class present, by label: compression forgets unevenly (Hooker et al. 2019).

    Raises:
        ValueError: the logits are not of the same images and classes.
    """
    return _by_class(_flipped(logits_NC, dense_logits_NC), labels_N)


def per_class_accuracy(logits_NC: Logits, labels_N: npt.NDArray[np.int64]) -> dict[int, float]:
    """Fraction of the images of each class present that are classified rightly, by label."""
    return _by_class(logits_NC.argmax(1) == labels_N, labels_N)


def wilson_interval(count: int, total: int) -> tuple[float, float]:
    """The ends of Wilson's 95 % interval of a fraction, in [0, 1]; it never leaves that range, and never has width 0.

    Wilson 1927; Newcombe 1998, "Two-sided confidence intervals for the single proportion" (Statistics in Medicine 17),
    method 3.

    Raises:
        ValueError: there is nothing to count, or more was counted than there is.
    """
    if not 0 <= count <= total or total == 0:
        raise ValueError(f"must count some of at least one; given {count} of {total}")
    fraction, square = count / total, _Z**2
    middle = fraction + square / (2 * total)
    reach = _Z * math.sqrt(fraction * (1 - fraction) / total + square / (4 * total**2))
    scale = 1 + square / total
    low, high = (middle - reach) / scale, (middle + reach) / scale
    return (0.0 if count == 0 else low), (1.0 if count == total else high)


@dataclass(frozen=True)
class ClassChange:
    """What became of one class.

    Args:
        num: images of the class.
        accuracy, dense_accuracy: the fraction of them that is classified rightly.
        interval, dense_interval: Wilson's, at 95 %.
        lost: images that only the dense model classifies rightly.
        gained: images that only the compressed one does.
    """

    label: int
    num: int
    accuracy: float
    interval: tuple[float, float]
    dense_accuracy: float
    dense_interval: tuple[float, float]
    lost: int
    gained: int

    @property
    def change(self) -> float:
        """Of the accuracy, in [-1, 1]."""
        return (self.gained - self.lost) / self.num


def class_changes(logits_NC: Logits, dense_logits_NC: Logits, labels_N: npt.NDArray[np.int64]) -> list[ClassChange]:
    """Every class present, those that lost most first, by label where they lost the same.

    Raises:
        ValueError: the logits are not of the same images and classes.
    """
    _flipped(logits_NC, dense_logits_NC)
    right, dense_right = logits_NC.argmax(1) == labels_N, dense_logits_NC.argmax(1) == labels_N
    found = []
    for label in np.unique(labels_N):
        now, before = right[labels_N == label], dense_right[labels_N == label]
        num, count, dense_count = len(now), int(now.sum()), int(before.sum())
        parts = count / num, wilson_interval(count, num), dense_count / num, wilson_interval(dense_count, num)
        found.append(ClassChange(int(label), num, *parts, int((before & ~now).sum()), int((now & ~before).sum())))
    return sorted(found, key=lambda change: (change.change, change.label))


@dataclass(frozen=True)
class Flip:
    """One image that the two models classify differently.

    Args:
        place: of the image in its split.
        label: its true class.
        dense, compressed: what the models say, and how sure they are of it (softmax), a fraction.
    """

    place: int
    label: int
    dense: int
    dense_confidence: float
    compressed: int
    compressed_confidence: float


def confident_flips(logits_NC: Logits, dense_logits_NC: Logits, labels_N: npt.NDArray[np.int64], most: int) -> list[Flip]:
    """The flips of which the compressed model is surest, at most so many, by place where it is as sure.

    Raises:
        ValueError: the logits are not of the same images and classes.
    """
    places = np.flatnonzero(_flipped(logits_NC, dense_logits_NC))
    sure, dense_sure = confidences(logits_NC), confidences(dense_logits_NC)
    said, dense_said = logits_NC.argmax(1), dense_logits_NC.argmax(1)
    return [
        Flip(int(i), int(labels_N[i]), int(dense_said[i]), float(dense_sure[i]), int(said[i]), float(sure[i]))
        for i in places[np.argsort(-sure[places], kind="stable")][:most]
    ]


def explanation_similarity(dense: nn.Module, compressed: nn.Module, images: Tensor, targets: Tensor) -> float:
    """How alike two networks weigh the pixels, in [-1, 1]: mean rank correlation of their saliency maps; 1 for equal networks.

    Maps are those of `attribution.saliency`, compared by Spearman's rank correlation of absolute values (as in Adebayo et al.
    2018). Saliency and not integrated gradients, because there the image is a factor of every map, which makes maps of unlike
    networks look alike (the same, section 5.2). It costs one backward pass a network, where integrated gradients cost tens, and
    follows the straight-through gradient of quantizers, whose steps no path integral adds up. The quantizers of the images
    themselves have to be open at the ends of their range, or black and white pixels weigh nothing.

    Args:
        dense, compressed: map normalised images to logits (B, classes); looked at in evaluation mode, and left as they were.
        images: normalised, float32 (N, C, H, W).
        targets: int64 (N,), the dense network's predictions.

    Raises:
        ValueError: there are no images.
    """
    if len(images) == 0:
        raise ValueError("there must be images to explain; given none")
    found: list[float] = []
    for batch, wanted in zip(torch.split(images, _BATCH), torch.split(targets, _BATCH), strict=True):
        found += similarities(saliency(dense, batch, wanted), saliency(compressed, batch, wanted))
    return float(np.mean(found))


def _flipped(logits_NC: Logits, other_NC: Logits) -> npt.NDArray[np.bool_]:
    if logits_NC.shape != other_NC.shape:
        raise ValueError(f"logits must be of the same images and classes; given {logits_NC.shape} and {other_NC.shape}")
    flipped: npt.NDArray[np.bool_] = logits_NC.argmax(1) != other_NC.argmax(1)
    return flipped


def _by_class(hits_N: npt.NDArray[np.bool_], labels_N: npt.NDArray[np.int64]) -> dict[int, float]:
    return {int(label): float(hits_N[labels_N == label].mean()) for label in np.unique(labels_N)}
