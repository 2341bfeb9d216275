"""The drawings of an audit, read back: pixels, bars and points lie where the numbers say."""

from __future__ import annotations

import base64
import io
import re
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from orchestrator.report.audit_figures import heat, interval_bar, lines, picture, reliability


def pixels_of(uri: str) -> np.ndarray:
    head, _, body = uri.partition(",")
    assert head == "data:image/png;base64"
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(body))))


def drawn(html: str, tag: str, kind: str) -> list[dict[str, str]]:
    """The attributes of every element of a kind."""
    root = ElementTree.fromstring(html)
    return [dict(element.attrib) for element in root.iter(tag) if element.attrib.get("class") == kind]


@pytest.mark.parametrize("channels", [1, 3])
def test_a_picture_is_the_image_at_its_own_size(channels: int) -> None:
    image = np.random.default_rng(0).integers(0, 256, (channels, 5, 7), dtype=np.uint8)
    seen = pixels_of(picture(image))
    assert np.array_equal(seen if channels == 3 else seen[..., None], np.moveaxis(image, 0, 2))


def test_other_channels_are_shown_by_their_mean() -> None:
    image = np.stack([np.full((2, 2), value, np.uint8) for value in (10, 30)])
    assert (pixels_of(picture(image)) == 20).all()


def test_a_map_is_brighter_where_it_is_larger_and_dark_where_nothing_counts() -> None:
    seen = pixels_of(heat(np.array([[0.0, 1.0, 2.0, 4.0]]))).astype(int).sum(-1)[0]
    assert (np.diff(seen) > 0).all()
    assert len(np.unique(pixels_of(heat(np.zeros((3, 3)))).reshape(-1, 3), axis=0)) == 1


def test_a_bar_is_as_high_as_its_accuracy() -> None:
    """The whole is 198 high, as 24 are kept above and 38 below."""
    bins = [
        {"low": 0.0, "high": 0.5, "num": 1, "confidence": 0.4, "accuracy": 0.25},
        {"low": 0.5, "high": 1.0, "num": 4, "confidence": 0.8, "accuracy": 1.0},
    ]
    bars = drawn(reliability(bins, "file", "a & <b>"), "rect", "file bin")
    assert [float(bar["height"]) for bar in bars] == pytest.approx([198 / 4, 198], abs=0.1)
    assert [float(bar["x"]) for bar in bars] == pytest.approx([34.75, 34.75 + 108], abs=0.1)
    shades = [float(re.findall(r"[\d.]+", bar["style"])[0]) for bar in bars]
    assert shades[0] < shades[1]


def test_lines_go_through_their_values_and_each_model_has_its_own_marks() -> None:
    figure = lines({"dense": [1.0, 0.5, 0.0], "file": [0.5, 0.5, 0.5]}, "noise")
    (dense,), (file,) = drawn(figure, "polyline", "dense curve"), drawn(figure, "polyline", "file curve")
    assert dense["points"] == "34.0,24.0 142.0,123.0 250.0,222.0"
    assert file["points"] == "34.0,123.0 142.0,123.0 250.0,123.0"
    assert len(drawn(figure, "circle", "file mark")) == len(drawn(figure, "rect", "dense mark")) == 3


def test_an_interval_encloses_its_dot() -> None:
    row = {"accuracy": 0.5, "interval": (0.25, 0.75), "dense_accuracy": 1.0}
    (reach,), (dot,) = drawn(interval_bar(row), "line", "file span"), drawn(interval_bar(row), "circle", "file mark")
    assert [float(reach[end]) for end in ("x1", "x2")] == [32.0, 88.0]
    assert float(dot["cx"]) == 60.0
    assert float(drawn(interval_bar(row), "rect", "dense mark")[0]["x"]) == 112.0
