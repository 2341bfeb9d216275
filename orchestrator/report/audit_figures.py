"""The figures of an audit as SVG and PNG inside the page: no script draws them, so they are there in any view."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import numpy as np
import numpy.typing as npt

_SIDE, _LEFT, _TOP, _BOTTOM, _RIGHT = 260.0, 34.0, 24.0, 38.0, 10.0
# Where a map is 0, half and 1: from night through orange to light, rising in brightness, which every eye can tell apart.
_RAMP = np.array([[13, 14, 38], [205, 90, 40], [255, 246, 205]], np.float64)


def picture(image: npt.NDArray[np.uint8]) -> str:
    """A data URI of an image (C, H, W): grey for one channel, coloured for three, else the mean of all."""
    if len(image) == 3:
        return _png(np.moveaxis(image, 0, 2))
    return _png(image[0] if len(image) == 1 else image.mean(0).astype(np.uint8))


def heat(values: npt.NDArray[Any]) -> str:
    """A data URI of a map (H, W), 0 or more: bright where it is largest."""
    largest = float(values.max())
    share = values / largest if largest > 0 else np.zeros_like(values)
    colours = np.stack([np.interp(share, (0.0, 0.5, 1.0), _RAMP[:, channel]) for channel in range(3)], axis=-1)
    return _png(colours.astype(np.uint8))


def _png(pixels: npt.NDArray[np.uint8]) -> str:
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def interval_bar(row: Mapping[str, Any]) -> str:
    """A class's accuracy from 0 to 1: a dot with its interval for the file, a hollow square for the dense model."""
    low, high = (4 + 112 * end for end in row["interval"])
    file, dense = 4 + 112 * row["accuracy"], 4 + 112 * row["dense_accuracy"]
    spoken = f"file {row['accuracy']:.3f}, dense {row['dense_accuracy']:.3f}"
    return (
        f'<svg class="interval" viewBox="0 0 120 16" role="img" aria-label="{spoken}">'
        '<line class="axis" x1="4" y1="8" x2="116" y2="8"/>'
        f'<line class="file span" x1="{low:.1f}" y1="8" x2="{high:.1f}" y2="8"/>'
        f'<rect class="dense mark" x="{dense - 4:.1f}" y="4" width="8" height="8"/>'
        f'<circle class="file mark" cx="{file:.1f}" cy="8" r="3.5"/></svg>'
    )


def reliability(bins: Sequence[Mapping[str, Any]], name: str, title: str) -> str:
    """Accuracy over confidence: a bar a bin, filled the more the more predictions it holds; on the line a model is honest.

    Args:
        name: "file" or "dense", which has its own colour.
    """
    total = sum(part["num"] for part in bins)
    most = max(part["num"] for part in bins)
    drawn = [_grid("confidence", "accuracy", [0.0, 0.25, 0.5, 0.75, 1.0])]
    for part in bins:
        (left, top), (right, bottom) = _place(part["low"], part["accuracy"]), _place(part["high"], 0.0)
        told = f"{part['num']} of {total} predictions, confidence {part['confidence']:.3f}, accuracy {part['accuracy']:.3f}"
        drawn.append(
            f'<rect class="{name} bin" x="{left + 0.75:.1f}" y="{top:.1f}" width="{right - left - 1.5:.1f}" '
            f'height="{max(0.0, bottom - top):.1f}" style="fill-opacity:{0.35 + 0.6 * part["num"] / most:.2f}">'
            f"<title>{told}</title></rect>"
        )
    (x, y), (right, top) = _place(0.0, 0.0), _place(1.0, 1.0)
    drawn.append(f'<line class="honest" x1="{x}" y1="{y}" x2="{right}" y2="{top}"/>')
    return _figure("".join(drawn), title)


def lines(series: Mapping[str, Sequence[float]], title: str) -> str:
    """Accuracy over severity, from 0 (as it is) on: a line a model.

    Args:
        series: by "file" and "dense", one value a severity, as many for both.
    """
    last = max(len(values) for values in series.values()) - 1
    drawn = [_grid("severity", "accuracy", [step / last for step in range(last + 1)], [str(step) for step in range(last + 1)])]
    for name, values in series.items():
        places = [_place(step / last, value) for step, value in enumerate(values)]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
        drawn.append(f'<polyline class="{name} curve" points="{path}"/>')
        for (x, y), value, step in zip(places, values, range(last + 1), strict=True):
            mark = (
                f'<circle class="{name} mark" cx="{x:.1f}" cy="{y:.1f}" r="4">'
                if name == "file"
                else f'<rect class="{name} mark" x="{x - 4:.1f}" y="{y - 4:.1f}" width="8" height="8">'
            )
            end = "</circle>" if name == "file" else "</rect>"
            drawn.append(f"{mark}<title>{name}, severity {step}: {value:.3f}</title>{end}")
    return _figure("".join(drawn), title)


def _place(x: float, y: float) -> tuple[float, float]:
    """Where a point of the unit square lies in a figure."""
    return round(_LEFT + x * (_SIDE - _LEFT - _RIGHT), 2), round(_TOP + (1 - y) * (_SIDE - _TOP - _BOTTOM), 2)


def _grid(across: str, up: str, ticks: Sequence[float], names: Sequence[str] | None = None) -> str:
    """Axes of the unit square, with ticks and what they are."""
    (left, bottom), (right, _) = _place(0.0, 0.0), _place(1.0, 1.0)
    drawn = []
    for value in (0.0, 0.25, 0.5, 0.75, 1.0):
        y = _place(0.0, value)[1]
        drawn.append(f'<line class="axis" x1="{left}" y1="{y}" x2="{right}" y2="{y}"/>')
        drawn.append(f'<text x="{left - 5}" y="{y + 4}" text-anchor="end">{value:g}</text>')
    for value, name in zip(ticks, names or [f"{tick:g}" for tick in ticks], strict=True):
        drawn.append(f'<text x="{_place(value, 0.0)[0]}" y="{bottom + 15}" text-anchor="middle">{name}</text>')
    drawn.append(f'<text x="{right}" y="{_SIDE - 5}" text-anchor="end">{across}</text>')
    drawn.append(f'<text x="{left}" y="12">{up}</text>')
    return "".join(drawn)


def _figure(drawn: str, title: str) -> str:
    return (
        f'<figure class="drawing"><svg viewBox="0 0 {_SIDE:g} {_SIDE:g}" role="img" aria-label="{escape(title)}">{drawn}</svg>'
        f"<figcaption>{escape(title)}</figcaption></figure>"
    )
