"""What the probe files say, for the report: estimator accuracy, quadrants, and how the weights are distributed."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup
from steer_experiments.run_dir import read_json
from steer_openrlhf.errors import ConfigError

from .agreement import Value
from .curves import Shown
from .diagnose import JSON_NAME, diagnose, show
from .estimators import ALL, NEITHER, QUADRANTS
from .pictures import Bar, bars
from .probes import load_probes
from .runs import Run
from .shaping import plan_shaping, shape_steps
from .svg import BOTTOM, HEIGHT, WIDTH, Frame, axes, nice_ticks, picture

MOST_ARMS = 6  # with a table and a histogram; probing is for few runs
BINS = 24
PROBES = "probe"
OWN = "this run: "  # how :mod:`.shaping` labels a run's own intervention


@dataclass(frozen=True)
class Probed:
    """One run's diagnosis as ``steer diagnose`` writes it."""

    shown: Shown
    run: Run
    found: Mapping[str, Any]


def probed_runs(shown: Sequence[Shown], compute: bool) -> tuple[list[Probed], list[str]]:
    """The first probed run of each arm with its diagnosis, and in words which have none.

    ``compute``: make it here where ``steer diagnose`` has not been run; takes some seconds.
    """
    found, missing, broken = [], [], []
    for one in shown:
        runs = [run for run in one.arm.runs if any((run.path / PROBES).glob("*.npz"))]
        if not runs:
            continue
        try:
            known = next((run for run in runs if (run.path / JSON_NAME).is_file()), None)
            if known is not None:
                found.append(Probed(one, known, read_json(known.path / JSON_NAME) or {}))
            elif compute:
                found.append(Probed(one, runs[0], _compute(runs[0].path)))
            else:
                missing.append(runs[0].label)
        except (ConfigError, ValueError) as error:
            broken.append(f"{runs[0].label}: {error}")
    notes = [f"Probed, but steer diagnose has not been run: {', '.join(missing)}."] if missing else []
    if len(found) > MOST_ARMS:
        notes.append(f"{MOST_ARMS} of {len(found)} probed arms are shown; each run's diagnose.html has its own.")
    return found[:MOST_ARMS], [*notes, *broken]


def _compute(path: Path) -> dict[str, Any]:
    made = diagnose(path)
    return {
        "target": {name: {"pooled": asdict(one.pooled)} for name, one in made.target.items()},
        "quadrants": [asdict(one) for one in made.quadrants],
    }


def estimator_charts(probed: Sequence[Probed]) -> list[dict[str, Any]]:
    """A bar picture of each run: correlation of every estimator with the measured change of entropy."""
    pictures = []
    for one in probed:
        rows = [
            Bar(name, f"n {pooled['pooled']['pcc']['n']}", "c5", _value(pooled["pooled"]["pcc"]))
            for name, pooled in one.found.get("target", {}).items()
        ]
        title = f"{one.shown.arm.label}: correlation with the measured change (PCC)"
        svg = bars(f"estimators-{one.shown.index}", rows, title, "PCC, token by token")
        if svg:
            pictures.append({"title": one.shown.arm.label, "svg": Markup(svg)})
    return pictures


def quadrant_rows(probed: Sequence[Probed]) -> list[dict[str, Any]]:
    """For each run and quadrant: share of the tokens, and mean measured change of entropy."""
    kinds = {kind.name: kind.meaning for kind in QUADRANTS}
    return [
        {
            "arm": one.shown.arm.label,
            "css": one.shown.css,
            "name": each["name"],
            "meaning": kinds.get(each["name"], ""),
            "tokens": each["tokens"],
            "share": show(_value(each["share"]), "sign"),
            "change": show(_value(each["change"])),
        }
        for one in probed
        for each in one.found.get("quadrants", [])
        if each["name"] not in (ALL, NEITHER)
    ]


def _value(found: Mapping[str, Any]) -> Value:
    return Value(found["value"], found["low"], found["high"], int(found["n"]))


def weight_charts(probed: Sequence[Probed]) -> list[dict[str, Any]]:
    """A histogram for each run whose own intervention weights its tokens: the weights of all probed tokens."""
    pictures = []
    for one in probed:
        if one.shown.arm.method in ("ppo", "gspo"):
            continue
        weights = token_weights(one.run.path)
        if weights.size:
            title = f"{one.shown.arm.label}: weights of {weights.size} probed tokens"
            svg = histogram(f"weights-{one.shown.index}", weights, one.shown.css, title)
            pictures.append({"title": one.shown.arm.label, "svg": Markup(svg)})
    return pictures


def token_weights(path: Path) -> np.ndarray[Any, np.dtype[np.float64]]:
    """A' / A of every probed token with A != 0 under the run's own intervention; empty when that cannot be said."""
    try:
        steps = load_probes(path).steps
        candidates, loss, _ = plan_shaping(path)
        own = [one for one in candidates if one.label.startswith(OWN)]
        shaped, _ = shape_steps(own, steps, loss)
    except (ConfigError, ValueError):
        return np.empty(0)
    if not shaped:
        return np.empty(0)
    before = np.concatenate([step.columns["advantages"] for step in steps]).astype(np.float64)
    after = next(iter(shaped.values())).astype(np.float64)
    usable = np.isfinite(before) & np.isfinite(after) & (before != 0)
    return np.asarray(after[usable] / before[usable])


def histogram(chart_id: str, values: np.ndarray[Any, np.dtype[np.float64]], css: str, title: str) -> str:
    """Share of the values in each of equally wide bins, per cent."""
    low, high = float(values.min()), float(values.max())
    ticks_x = nice_ticks(low, high, 6)
    counts, edges = np.histogram(values, BINS, (ticks_x[0], ticks_x[-1]))
    shares = 100 * counts / values.size
    ticks_y = nice_ticks(0, float(shares.max()), 5)
    frame = Frame((ticks_x[0], ticks_x[-1]), (0, ticks_y[-1]))
    parts = [axes(frame, ticks_x, ticks_y, "weight, A′ / A", "share of tokens, %")]
    for share, left, right in zip(shares, edges, edges[1:], strict=False):
        (x1, y), (x2, _) = frame.at(left, share), frame.at(right, share)
        if share:
            text = f"{left:.3g} to {right:.3g}: {share:.2f} % of the tokens"
            rect = f'x="{x1 + 0.5:.1f}" y="{y:.1f}" width="{x2 - x1 - 1:.1f}" height="{HEIGHT - BOTTOM - y:.1f}"'
            parts.append(f"<g><title>{text}</title><rect {rect}/></g>")
    quartiles = ", ".join(f"{value:.3g}" for value in np.quantile(values, [0.1, 0.5, 0.9]))
    described = f"{title}; 10 %, 50 %, 90 % quantile {quartiles}; smallest {low:.3g}, largest {high:.3g}"
    body = f'<g class="barred {css}">{"".join(parts[1:])}</g>'
    return picture(chart_id, WIDTH, HEIGHT, title, described, parts[0] + body)
