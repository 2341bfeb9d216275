"""Corrupted digits: bytes stay bytes, a higher severity is worse, and nothing depends on what an image lies beside."""

from __future__ import annotations

import numpy as np
import pytest

from orchestrator.data.batches import DeviceData
from orchestrator.measure.corruptions import CORRUPTIONS, SEVERITIES, corrupted

PLACES = np.arange(40)


@pytest.fixture(scope="module")
def images(digits: DeviceData) -> np.ndarray:
    return digits.images[:40].numpy()


def large(images: np.ndarray) -> np.ndarray:
    """The same in colour and 96 pixels wide."""
    return images[:3].repeat(12, axis=2).repeat(12, axis=3).repeat(3, axis=1)


def psnr(images: np.ndarray, changed: np.ndarray) -> float:
    """Peak signal to noise, in decibels."""
    return 10 * np.log10(255.0**2 / np.mean((images.astype(float) - changed.astype(float)) ** 2))


@pytest.mark.parametrize("corruption", CORRUPTIONS)
@pytest.mark.parametrize("size", ["small", "large"])
def test_shape_and_type_stay_and_each_severity_is_worse(images: np.ndarray, corruption: str, size: str) -> None:
    whole = images if size == "small" else large(images)
    seen = [corrupted(whole, corruption, severity, PLACES[: len(whole)]) for severity in SEVERITIES]
    assert all(changed.shape == whole.shape and changed.dtype == np.uint8 for changed in seen)
    quality = [psnr(whole, changed) for changed in seen]
    assert quality == sorted(quality, reverse=True)
    assert len(set(quality)) == len(SEVERITIES)


@pytest.mark.parametrize("corruption", CORRUPTIONS)
def test_an_image_is_corrupted_alike_wherever_it_lies_in_a_batch(images: np.ndarray, corruption: str) -> None:
    before = images.copy()
    whole = corrupted(images, corruption, 3, PLACES, seed=5)
    assert np.array_equal(whole, corrupted(images, corruption, 3, PLACES, seed=5))
    part = corrupted(images[::-3], corruption, 3, PLACES[::-3], seed=5)
    assert np.array_equal(part, whole[::-3])
    assert np.array_equal(images, before)


def test_noise_has_the_published_strength_and_hangs_on_its_seed() -> None:
    """Grey images, where nothing is clipped: a standard deviation of 0.08 of 255, and no bias."""
    grey = np.full((200, 1, 16, 16), 128, np.uint8)
    places = np.arange(200)
    noise = corrupted(grey, "gaussian_noise", 3, places, seed=1).astype(float) - 128
    assert noise.std() == pytest.approx(0.08 * 255, rel=0.01)
    assert abs(noise.mean()) < 0.3
    other = corrupted(grey, "gaussian_noise", 3, places, seed=2).astype(float) - 128
    assert abs(np.corrcoef(noise.ravel(), other.ravel())[0, 1]) < 0.02
    assert abs(np.corrcoef(noise[0].ravel(), noise[1].ravel())[0, 1]) < 0.2


def test_contrast_by_hand() -> None:
    """Severity 4 of a small image leaves three tenths of the distance to the mean, 100: 0 becomes 70, and 200 becomes 130."""
    image = np.array([[[[0, 200], [200, 0]]]], np.uint8)
    assert corrupted(image, "contrast", 4, np.array([0])).tolist() == [[[[70, 130], [130, 70]]]]


def test_each_channel_is_blurred_by_itself_and_flat_ones_stay() -> None:
    image = np.zeros((1, 2, 9, 9), np.uint8)
    image[0, 0], image[0, 1, 4, 4] = 77, 255
    blurred = corrupted(image, "gaussian_blur", 5, np.array([0]))[0]
    assert (blurred[0] == 77).all()
    # A Gaussian with a standard deviation of 1 pixel: 1 / (2 pi) in the middle, and exp(-1/2) of that beside it.
    assert blurred[1, 4, 4] == pytest.approx(255 / (2 * np.pi), abs=1)
    assert blurred[1, 4, 5] == pytest.approx(255 / (2 * np.pi) * np.exp(-0.5), abs=1)
    assert np.array_equal(blurred[1], blurred[1].T)


@pytest.mark.parametrize(("corruption", "severity"), [("fog", 1), ("contrast", 0), ("contrast", 6)])
def test_others_are_refused(images: np.ndarray, corruption: str, severity: int) -> None:
    with pytest.raises(ValueError, match=f"one of gaussian_noise, .* of 1 to 5; given '{corruption}', {severity}"):
        corrupted(images, corruption, severity, PLACES)
