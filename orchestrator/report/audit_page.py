"""An audit as a page: one HTML file without scripts and without network, light and dark, readable on a phone."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from orchestrator.report.audit_figures import heat, interval_bar, lines, picture, reliability
from orchestrator.report.wording import one_line, shown

_STYLES = [Path(__file__).with_name("static") / name for name in ("page.css", "audit.css")]
_NAMES = {"gaussian_noise": "Gaussian noise", "gaussian_blur": "Blur", "contrast": "Contrast lost"}
_MAX_CLASSES, _MAX_NAMED = 100, 10


@dataclass(frozen=True)
class Pictures:
    """What a page shows beside the figures, in the order of the record's examples.

    Args:
        flips: images uint8 (C, H, W).
        maps: image (C, H, W), the dense model's map and the compressed one's (H, W).
    """

    flips: list[npt.NDArray[np.uint8]]
    maps: list[tuple[npt.NDArray[Any], npt.NDArray[Any], npt.NDArray[Any]]]


def audit_page(record: Mapping[str, Any], pictures: Pictures) -> str:
    """The page of an audit's record. Every text in it is escaped."""
    sections = {
        "In figures": _figures(record),
        "Classes": _classes(record["classes"]),
        "Flipped predictions": _flips(record["flips"], pictures),
        "Confidence": _calibration(record["calibration"]),
        "Corrupted pictures": _corruptions(record["corruptions"]),
        "Under attack": _attack(record["attack"]),
        "What predictions rest on": _attributions(record["attributions"], pictures),
        "How this was made": _made(record),
    }
    body = "".join(f"<section><h2>{title}</h2>{content}</section>" for title, content in sections.items() if content)
    name = f"{_text(record['sweep'])} {_text(record['trial'])}"
    style = "".join(path.read_text(encoding="utf-8") for path in _STYLES)
    notes = "".join(f'<p class="notice">{_text(note, 400)}</p>' for note in record["notes"])
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1"><meta name="color-scheme" content="light dark">'
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'; img-src data:\">"
        f"<title>{name}: audit</title><style>{style}</style></head><body>"
        f'<header><h1>{name}: audit</h1><p class="lead">{verdict(record)}</p>{notes}{_legend()}</header>'
        f"<main>{body}</main></body></html>\n"
    )


def verdict(record: Mapping[str, Any]) -> str:
    """What an audit came to, in a few sentences."""
    now, before = record["accuracy"]["compressed"]["accuracy"], record["accuracy"]["dense"]["accuracy"]
    flips, worst = record["flips"], record["classes"][0]
    lost, gained = (sum(row[key] for row in record["classes"]) for key in ("lost", "gained"))
    text = (
        f"The file classifies {now:.4f} of {record['num_images']:,} validation images rightly, the dense model {before:.4f} "
        f"({_points(now - before)}). {flips['num']:,} predictions flip ({flips['rate']:.4f}): {lost:,} from right to wrong, "
        f"{gained:,} from wrong to right."
    )
    if worst["change"] < 0:
        text += f" Class {_text(worst['class'])} lost most: {_points(worst['change'])} on {worst['num']:,} images."
    return text


def _legend() -> str:
    marks = {
        "the compressed file": '<circle class="file mark" cx="8" cy="8" r="5"/>',
        "the dense model": '<rect class="dense mark" x="3" y="3" width="10" height="10"/>',
    }
    drawn = (f'<span><svg viewBox="0 0 16 16" aria-hidden="true">{mark}</svg> {name}</span>' for name, mark in marks.items())
    return f'<p class="legend">{"".join(drawn)}</p>'


def _figures(record: Mapping[str, Any]) -> str:
    """Both models side by side."""
    accuracy, calibration = record["accuracy"], record["calibration"]
    rows = [
        ("accuracy", *(accuracy[name]["accuracy"] for name in ("dense", "compressed"))),
        ("accuracy of the worst class", *(accuracy[name]["worst_class_accuracy"] for name in ("dense", "compressed"))),
        ("expected calibration error", *(calibration[name]["error"] for name in ("dense", "compressed"))),
    ]
    if (corruptions := record["corruptions"]) is not None:
        rows.append(("accuracy, corrupted pictures", *(corruptions["mean"][name] for name in ("dense", "compressed"))))
    if (attack := record["attack"]) is not None:
        rows.append(("accuracy, under PGD", *(attack[name]["accuracy"] for name in ("dense", "compressed"))))
    told = [[name, f"{dense:.4f}", f"{file:.4f}", f"{file - dense:+.4f}"] for name, dense, file in rows]
    told.append(["predictions that flip", "", f"{record['flips']['rate']:.4f}", ""])
    if (maps := record["attributions"]) is not None:
        told.append(["similarity of attribution maps", "", f"{maps['mean']:.4f}", ""])
    return _table(["", "dense", "file", "change"], told)


def _classes(rows: Sequence[Mapping[str, Any]]) -> str:
    flat = [
        [
            _text(row["class"]),
            f"{row['num']:,}",
            f"{row['dense_accuracy']:.3f}",
            f"{row['accuracy']:.3f}",
            f"{100 * row['change']:+.1f}",
            f"{row['lost']:,}",
            f"{row['gained']:,}",
            interval_bar(row),
            f"{row['interval'][0]:.3f} to {row['interval'][1]:.3f}",
        ]
        for row in rows[:_MAX_CLASSES]
    ]
    head = ["class", "images", "dense", "file", "points", "lost", "gained", "accuracy, 0 to 1", "file, 95 % interval"]
    more = f"<p>{len(rows) - _MAX_CLASSES:,} more are in audit.json.</p>" if len(rows) > _MAX_CLASSES else ""
    return (
        "<p>Those that lost most come first. Lost: images that only the dense model classifies rightly; gained: that only the "
        f"file does. Intervals are Wilson's: a class with few images is not known well.</p>{_table(head, flat)}{more}"
    )


def _flips(flips: Mapping[str, Any], pictures: Pictures) -> str:
    low, high = flips["interval"]
    said = (
        f"<p>{flips['num']:,} predictions are other ones than the dense model's: {flips['rate']:.4f} of all "
        f"(95 % interval {low:.4f} to {high:.4f}).</p>"
    )
    worst = sorted(flips["by_class"], key=lambda row: -row["rate"])[:_MAX_NAMED]
    if flips["num"]:
        listed = ", ".join(f"{_text(row['class'])} {row['rate']:.3f}" for row in worst)
        said += f"<p>By true class, most first: {listed}.</p>"
    cards = [
        f'<figure class="card {example["kind"].split()[0]}">{_image(picture(image), _spoken(example))}'
        f"<figcaption><b>{_text(example['class'], 30)}</b> <i>{example['kind']}</i><br>dense: {_said(example['dense'])}<br>"
        f"file: {_said(example['compressed'])}</figcaption></figure>"
        for example, image in zip(flips["examples"], pictures.flips, strict=False)
    ]
    if cards:
        said += "<p>Those of which the file is surest; the true class in bold.</p>"
    return f'{said}<div class="cards">{"".join(cards)}</div>' if cards else said


def _said(prediction: Mapping[str, Any]) -> str:
    return f"{_text(prediction['class'], 30)} ({prediction['confidence']:.2f})"


def _spoken(example: Mapping[str, Any]) -> str:
    return f"validation image {example['image']} of class {one_line(str(example['class']), 60)}"


def _calibration(calibration: Mapping[str, Any]) -> str:
    drawn = [
        reliability(calibration[key]["bins"], name, f"{title}: expected calibration error {calibration[key]['error']:.4f}")
        for key, name, title in (("dense", "dense", "Dense model"), ("compressed", "file", "Compressed file"))
    ]
    return (
        "<p>Accuracy of the predictions in each of 15 bins of confidence. On the line a model is right as often as it says; a "
        "bar below it is too sure. The fuller a bar, the more predictions it holds.</p>"
        f'<div class="drawings">{"".join(drawn)}</div>'
    )


def _corruptions(found: Mapping[str, Any] | None) -> str:
    if found is None:
        return ""
    kinds = dict.fromkeys(row["corruption"] for row in found["rows"])
    drawn = []
    for kind in kinds:
        rows = sorted((row for row in found["rows"] if row["corruption"] == kind), key=lambda row: row["severity"])
        series = {
            name: [found["clean"][key], *(row[key] for row in rows)]
            for name, key in (("dense", "dense"), ("file", "compressed"))
        }
        drawn.append(lines(series, _NAMES.get(kind, kind)))
    return (
        f"<p>{found['num_images']:,} validation images, spread evenly, at five severities; 0 is the image as it is. Kinds and "
        "strengths of Hendrycks and Dietterich 2019.</p>"
        f'<div class="drawings">{"".join(drawn)}</div>'
    )


def _attack(found: Mapping[str, Any] | None) -> str:
    if found is None:
        return ""
    rows = [
        [
            title,
            f"{found[key]['clean_accuracy']:.4f}",
            f"{found[key]['accuracy']:.4f}",
            f"{found[key]['interval'][0]:.4f} to {found[key]['interval'][1]:.4f}",
            _text(found[key]["found_on"], 80),
        ]
        for key, title in (("dense", "dense model"), ("compressed", "compressed file"))
    ]
    head = ["", "as they are", "attacked", "95 % interval", "images found on"]
    return (
        f"<p>{_text(found['method'])}: every pixel may change by {255 * found['epsilon']:.3g} of 255, found in "
        f"{found['steps']:,} steps of {255 * found['step_size']:.3g}, on {found['num_images']:,} validation images. Gradients "
        "go through the graph that the file was written from, and the file is judged on the images that were found.</p>"
        f"{_table(head, rows)}"
    )


def _attributions(found: Mapping[str, Any] | None, pictures: Pictures) -> str:
    if found is None:
        return ""
    cards = [
        f'<figure class="triple"><div>{_image(picture(image), _spoken(example))}'
        f"{_image(heat(dense), 'where the dense model looks')}{_image(heat(file), 'where the compressed model looks')}</div>"
        f"<figcaption><b>{_text(example['class'], 30)}</b>, explained as {_text(example['explained'], 30)}: similarity "
        f"{example['similarity']:.3f}</figcaption></figure>"
        for example, (image, dense, file) in zip(found["examples"], pictures.maps, strict=False)
    ]
    return (
        f"<p>Mean similarity {found['mean']:.4f} over {found['num_images']:,} images, lowest {found['lowest']:.4f}. 1: both "
        "weigh the pixels in the same order; 0: the orders have nothing in common. Each map is the "
        f"{_text(found['method'], 200)}. Image, dense model, compressed model; bright pixels weigh most.</p>"
        f'<div class="cards">{"".join(cards)}</div>'
    )


def _made(record: Mapping[str, Any]) -> str:
    compressed, dense = record["compressed"], record["dense"]
    stands = compressed["graph_agreement"]
    facts = {
        "File": f"{compressed['what']}, {record['size_bytes']:,} bytes, judged by {compressed['executor']}",
        "Its SHA-256": record["file_sha256"],
        "Compared with": f"{dense['what']}, judged by {dense['executor']}",
        "Graph behind the file": "not there" if stands is None else f"agrees with the file on {stands:.4f} of the predictions",
        "Images": f"{record['num_images']:,} of the {record['split']} split, which also guided the search; test stays closed",
        "Chosen": ", ".join(f"{path} {shown(value)}" for path, value in record["choice"].items()) or "nothing",
        "Seed": str(record["seed"]),
        "Made": f"{datetime.fromtimestamp(record['made'], UTC):%Y-%m-%d %H:%M} UTC, in {record['seconds']:.0f} s",
    }
    listed = "".join(f"<dt>{name}</dt><dd>{_text(value, 600)}</dd>" for name, value in facts.items())
    command = f"orchestrator audit {record['sweep']} --trial {record['trial']}"
    return f"<dl>{listed}</dl><p>Again: <code>{_text(command, 200)}</code></p>"


def _image(source: str, alt: str) -> str:
    return f'<img src="{source}" alt="{escape(alt)}">'


def _points(change: float) -> str:
    return f"{100 * change:+.1f} points"


def _table(head: Iterable[str], rows: Iterable[Sequence[str]]) -> str:
    """Cells are HTML already."""
    top = "".join(f'<th scope="col">{name}</th>' for name in head)
    body = "".join(f'<tr><th scope="row">{row[0]}</th>{"".join(f"<td>{cell}</td>" for cell in row[1:])}</tr>' for row in rows)
    table = f"<table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table>"
    return f'<div class="wide" role="region" tabindex="0" aria-label="table">{table}</div>'


def _text(value: Any, limit: int = 60) -> str:
    """Text of somebody's making, as one line of HTML."""
    return escape(one_line(str(value), limit))
