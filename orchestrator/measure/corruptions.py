"""Common corruptions of pictures, at five severities: what a camera, a lens or bad light does to them.

Kinds and strengths are those of Hendrycks and Dietterich 2019, "Benchmarking neural network robustness to common corruptions
and perturbations", section 3: of CIFAR-10-C for pictures of up to 64 pixels, and of ImageNet-C for larger ones.
Images come and go as bytes, as there: what a file is given is what a picture file could hold.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Pixels = npt.NDArray[np.uint8]

SEVERITIES = (1, 2, 3, 4, 5)
_SMALL = 64  # pixels of the longer side

# Standard deviation of the noise, as a fraction of the pixel range; that of the blur, in pixels; what is left of the contrast.
_IN_SMALL = {
    "gaussian_noise": (0.04, 0.06, 0.08, 0.09, 0.10),
    "gaussian_blur": (0.4, 0.6, 0.7, 0.8, 1.0),
    "contrast": (0.75, 0.5, 0.4, 0.3, 0.15),
}
_IN_LARGE = {
    "gaussian_noise": (0.08, 0.12, 0.18, 0.26, 0.38),
    "gaussian_blur": (1.0, 2.0, 3.0, 4.0, 6.0),
    "contrast": (0.4, 0.3, 0.2, 0.1, 0.05),
}
CORRUPTIONS = tuple(_IN_SMALL)


def corrupted(images: Pixels, corruption: str, severity: int, places: npt.NDArray[np.int64], seed: int = 0) -> Pixels:
    """Corrupted copies of images, uint8 (N, C, H, W).

    The noise of an image depends on the seed and on its place alone: not on the images beside it, and not on the severity, so
    that a higher one is the same noise, stronger.

    Args:
        images: uint8 (N, C, H, W).
        corruption: one of `CORRUPTIONS`.
        severity: 1 to 5.
        places: int64 (N,), 0 or more: which image of its split each one is.
        seed: 0 or more.

    Raises:
        ValueError: there is no such corruption or severity.
    """
    if corruption not in CORRUPTIONS or severity not in SEVERITIES:
        known = ", ".join(CORRUPTIONS)
        raise ValueError(f"a corruption must be one of {known}, with a severity of 1 to 5; given {corruption!r}, {severity}")
    strengths = _IN_SMALL if max(images.shape[2:]) <= _SMALL else _IN_LARGE
    strength = strengths[corruption][severity - 1]
    whole: npt.NDArray[np.float32] = images.astype(np.float32) / np.float32(255)
    changed: npt.NDArray[np.float32]
    match corruption:
        case "gaussian_noise":
            changed = whole + np.float32(strength) * _noise(images.shape[1:], places, seed)
        case "gaussian_blur":
            changed = _blurred(whole, strength)
        case _:
            means = whole.mean((2, 3), keepdims=True)
            changed = means + np.float32(strength) * (whole - means)
    found: Pixels = np.rint(changed.clip(0, 1) * 255).astype(np.uint8)
    return found


def _noise(shape: tuple[int, ...], places: npt.NDArray[np.int64], seed: int) -> npt.NDArray[np.float32]:
    """Standard normal (N, *shape)."""
    return np.stack([np.random.default_rng((seed, int(place))).standard_normal(shape, np.float32) for place in places])


def _blurred(images: npt.NDArray[np.float32], sigma: float) -> npt.NDArray[np.float32]:
    """Each channel by itself; beyond the edge, its pixels go on."""
    from scipy.ndimage import gaussian_filter

    blurred: npt.NDArray[np.float32] = gaussian_filter(images, (0, 0, sigma, sigma), mode="nearest")
    return blurred
