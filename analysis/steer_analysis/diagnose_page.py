"""The HTML page of ``steer diagnose``: self-contained, in the style of the report."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup
from steer_experiments.run_dir import now, write_text

from .agreement import BOOTSTRAP_SEED, FEWEST, RESAMPLES, Agreement, Value
from .diagnose import Diagnosis, agreement_cells, digits, heading, show
from .estimators import ALL, NEITHER, QUADRANTS, mean, sample
from .pages import render
from .pictures import Bar, bars, scatter
from .runs import Series
from .svg import Line, line_chart

POINTS = 600  # drawn in a scatter
SAMPLE_SEED = 0
_COLOURS = {"exact": "c0", "paper": "c1", "reference": "c4", "influence_head": "c3", "influence": "c2"}
_OTHERS = ("c6", "c7")
_TAGS = {"influence_head": "head"}
_TABLE = ["pcc", "srcc", "srcc_magnitude", "sign", "scale", "mse", "mse_zero"]
_SUMS_TABLE = ["pcc", "sign", "scale"]
_QUADRANT_COLOUR = "c5"  # no estimator's


def write_page(found: Diagnosis, output: Path) -> Path:
    """Write the page of a diagnosis; returns ``output``."""
    write_text(output, render_page(found))
    return output


def render_page(found: Diagnosis) -> str:
    """The page as text."""
    shown = [{"name": name, "css": _css(found, name), "index": place} for place, name in enumerate(found.estimators)]
    return render(
        "diagnose.html.j2",
        name=found.run.label,
        lead=_lead(found),
        facts=_facts(found),
        shown=shown,
        tags=_TAGS,
        clustered_by=found.pooled.clustered_by,
        resamples=RESAMPLES,
        seed=BOOTSTRAP_SEED,
        pcc_chart=Markup(_pcc_chart(found)),
        target=_rows(found, {name: one.pooled for name, one in found.target.items()}, _TABLE),
        source=_rows(found, {name: one.pooled for name, one in found.source.items()}, _TABLE[:4]),
        sums=_rows(found, {name: one.over_steps for name, one in found.sums.items()}, _SUMS_TABLE),
        heads={"target": [*map(heading, _TABLE)], "source": [*map(heading, _TABLE[:4])]}
        | {"sums": [*map(heading, _SUMS_TABLE)]},
        by_step=_by_step(found),
        scatters=_scatters(found),
        points=POINTS,
        sample_seed=SAMPLE_SEED,
        sums_chart=Markup(_sums_chart(found)),
        quadrant_charts=_quadrant_charts(found),
        quadrants=found.quadrants,
        kinds={kind.name: kind.meaning for kind in QUADRANTS} | {NEITHER: "A = 0 or π = exp(−H)"},
        estimators=found.estimators,
        masses=list(found.quadrants[0].mass),
        show=show,
        problems=found.problems,
    )


def _css(found: Diagnosis, name: str) -> str:
    """The classes of an estimator: its switch and its colour."""
    others = [other for other in found.estimators if other not in _COLOURS]
    colour = _COLOURS[name] if name in _COLOURS else _OTHERS[others.index(name) % len(_OTHERS)]
    return f"run-{found.estimators.index(name)} {colour}"


def _lead(found: Diagnosis) -> str:
    """The result in words, with its uncertainty."""
    known = [(name, one.pooled.pcc) for name, one in found.target.items() if one.pooled.pcc.value is not None]
    if not known:
        return "No estimator has a defined correlation with the measured change of entropy."
    best, pcc = max(known, key=lambda one: one[1].value or 0.0)
    text = f"Over all tokens, {best} follows the measured change of entropy most closely: PCC {show(pcc, 'pcc')}"
    tied = [name for name, other in known if name != best and _overlap(other, pcc)]
    text += f"; not told apart from it: {', '.join(tied)} (their intervals overlap)." if tied else "."
    summed = found.sums[best].over_steps.pcc
    return text + (f" Its sum over a step: PCC {show(summed, 'pcc')} over {summed.n} steps." if summed.value else "")


def _overlap(one: Value, other: Value) -> bool:
    if one.low is None or one.high is None or other.low is None or other.high is None:
        return False
    return one.low <= other.high and other.low <= one.high


def _facts(found: Diagnosis) -> list[tuple[str, str]]:
    steps = found.pooled.steps
    rates, updates = {one.learning_rate for one in steps}, {one.updates for one in steps}
    clips = {f"{one.clip[0]:g} / {one.clip[1]:g}" for one in steps}
    shown = f"{steps[0].step} to {steps[-1].step}" if len(steps) > 1 else str(steps[0].step)
    sequences = sum(np.unique(one.sequence).size for one in steps)
    return [
        ("Method", found.run.method),
        ("Probed steps", f"{len(steps)} ({shown})"),
        ("Tokens", f"{found.pooled.step.size} in {sequences} sequences"),
        ("Updates a step", _range(updates)),
        ("Learning rate", _range(rates)),
        ("Clip range, low / high", ", ".join(sorted(clips))),
        ("Run", f"{found.run.state}, step {found.run.step}"),
        ("Page made", now()),
    ]


def _range(values: set[int] | set[float]) -> str:
    return f"{min(values):g}" if len(values) == 1 else f"{min(values):g} to {max(values):g}"


def _rows(found: Diagnosis, rows: Mapping[str, Agreement], names: Sequence[str]) -> list[dict[str, Any]]:
    return [
        {"name": name, "css": _css(found, name), "cells": agreement_cells(one, names)} for name, one in rows.items()
    ]


def _by_step(found: Diagnosis) -> list[tuple[int, str, list[str]]]:
    """Step, measured change of the mean, and PCC of each estimator: the numbers behind the first picture."""
    measured = _measured(found)
    return [
        (step.step, show(measured[step.step]), [_step_pcc(found, name, step.step) for name in found.estimators])
        for step in found.pooled.steps
    ]


def _step_pcc(found: Diagnosis, name: str, step: int) -> str:
    one = found.target[name].steps.get(step)
    return show(one.pcc, "pcc") if one else "not stored"


def _measured(found: Diagnosis) -> dict[int, Value]:
    """Measured change of mean entropy by step, over every token whose change is finite."""
    return {
        one.step: mean(one.change, np.ones(one.change.size, dtype=bool), one.sequence) for one in found.pooled.steps
    }


def _series(values: Mapping[int, float | None]) -> Series:
    """By step; undefined ones are missing, so that the line has a gap."""
    known = {step: value for step, value in values.items() if value is not None}
    return Series(tuple(known), tuple(known.values()), tuple(step for step in values if step not in known))


def _line(found: Diagnosis, name: str, label: str, values: Mapping[int, float | None]) -> Line:
    return Line(label, _TAGS.get(name, name), _css(found, name), _series(values))


def _pcc_chart(found: Diagnosis) -> str:
    lines = [
        _line(found, name, name, {step: one.pcc.value for step, one in accuracy.steps.items()})
        for name, accuracy in found.target.items()
    ]
    return line_chart("chart-pcc", lines, "Correlation with the measured change, step by step", "PCC")


def _sums_chart(found: Diagnosis) -> str:
    """The measured change of mean entropy, and each estimator's prediction times its one scale factor. None for one
    step or two, where the factor alone makes them agree."""
    if len(found.pooled.steps) < FEWEST:
        return ""
    lines = []
    for name, one in found.sums.items():
        scale = one.over_steps.scale.value
        if scale is not None:
            values = {step: _times(scale, each.predicted.value) for step, each in one.steps.items()}
            lines.append(_line(found, name, f"{name} times {scale:.3g}", values))
    data = _series({step: value.value for step, value in _measured(found).items()})
    lines.append(Line("measured", "measured", "control", data))
    return line_chart("chart-sums", lines, "Predicted and measured change of mean entropy", "nats per token")


def _times(scale: float, value: float | None) -> float | None:
    return None if value is None else scale * value


def _scatters(found: Diagnosis) -> list[dict[str, Any]]:
    """One picture for each estimator, of the same tokens as far as they are finite."""
    change = found.pooled.change
    pictures = []
    for name in found.estimators:
        omega = found.pooled.omega(name)
        both = np.flatnonzero(np.isfinite(omega) & np.isfinite(change))
        kept = both[sample(both.size, POINTS, SAMPLE_SEED)]
        scale, pcc = found.target[name].pooled.scale.value, found.target[name].pooled.pcc
        title = f"{name}: Omega and measured change"
        labels = ("Ω, nats per unit step", "measured change, nats")
        svg, outside = scatter(f"scatter-{name}", omega[kept], change[kept], scale, _css(found, name), title, labels)
        if svg:
            fit = "no scale factor" if scale is None else f"line: change = {digits(scale)} Ω"
            note = f"{kept.size} of {both.size} tokens, {outside} at the edge; {fit}; PCC {show(pcc, 'pcc')}."
            pictures.append({"name": name, "css": _css(found, name), "svg": Markup(svg), "note": note})
    return pictures


def _quadrant_charts(found: Diagnosis) -> list[dict[str, Any]]:
    kinds = {kind.name: kind for kind in QUADRANTS}
    rows = [one for one in found.quadrants if one.name not in (ALL, NEITHER)]

    def rows_of(pick: Callable[[Any], Value]) -> list[Bar]:
        return [
            Bar(f"{one.name}  {kinds[one.name].meaning}", _where(one.name), _QUADRANT_COLOUR, pick(one)) for one in rows
        ]

    drawn = [
        ("share", "Share of the tokens", "per cent of tokens", rows_of(lambda one: one.share), True),
        ("change", "Mean measured change of entropy", "nats per token", rows_of(lambda one: one.change), False),
    ]
    charts = [(title, bars(f"quadrant-{key}", some, title, label, part)) for key, title, label, some, part in drawn]
    return [{"title": title, "svg": Markup(svg)} for title, svg in charts if svg]


def _where(name: str) -> str:
    kind = next(kind for kind in QUADRANTS if kind.name == name)
    return f"A {'>' if kind.positive else '<'} 0, π {'>' if kind.above else '<'} exp(−H)"
