"""Scatter plots and bars with intervals as SVG text, beside the line charts of :mod:`.svg`."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

import numpy as np
from numpy.typing import NDArray

from .agreement import Value
from .svg import BOTTOM, HEIGHT, RIGHT, TOP, WIDTH, Frame, axes, nice_ticks, picture

_KEPT = 0.97  # share of the points inside a scatter's axes; one outlier must not flatten the rest
_ROW, _LABELS, _NUMBERS = 46, 190, 12
_BAR = 16


def scatter(
    chart_id: str,
    x: NDArray[np.floating],
    y: NDArray[np.floating],
    scale: float | None,
    css: str,
    title: str,
    labels: tuple[str, str],
) -> tuple[str, int]:
    """Points, the line ``y = scale x``, and how many points lie outside the axes and are drawn at their edge.

    The axes hold the middle 97 % of each column and 0. Empty text when there is no point.
    """
    if not x.size:
        return "", 0
    ticks_x, ticks_y = _middle(x), _middle(y)
    frame = Frame((ticks_x[0], ticks_x[-1]), (ticks_y[0], ticks_y[-1]))
    inside_x, inside_y = np.clip(x, *frame.x), np.clip(y, *frame.y)
    outside = (inside_x != x) | (inside_y != y)
    dots = []
    for across, up, out in zip(inside_x, inside_y, outside, strict=True):
        at_x, at_y = frame.at(float(across), float(up))
        kind = ' class="outside"' if out else ""
        dots.append(f'<circle{kind} cx="{at_x:.1f}" cy="{at_y:.1f}" r="2.6"/>')
    parts = [axes(frame, ticks_x, ticks_y, *labels), _upright(frame), f'<g class="points {css}">{"".join(dots)}</g>']
    parts.append(_fit(frame, scale, css))
    described = f"{title}: {x.size} points, {int(outside.sum())} of them outside the axes; {labels[1]} over {labels[0]}"
    return picture(chart_id, WIDTH, HEIGHT, title, described, "".join(parts)), int(outside.sum())


def _middle(values: NDArray[np.floating]) -> list[float]:
    tail = (1 - _KEPT) / 2
    low, high = np.quantile(values.astype(np.float64), [tail, 1 - tail])
    return nice_ticks(min(0.0, float(low)), max(0.0, float(high)), 5)


def _upright(frame: Frame) -> str:
    x, _ = frame.at(0, frame.y[0])
    return f'<line class="grid zero" x1="{x:.1f}" x2="{x:.1f}" y1="{TOP}" y2="{HEIGHT - BOTTOM}"/>'


def _fit(frame: Frame, scale: float | None, css: str) -> str:
    """The part of the line ``y = scale x`` inside the frame."""
    if scale is None:
        return ""
    low, high = frame.x
    if scale:
        ends = sorted((frame.y[0] / scale, frame.y[1] / scale))
        low, high = max(low, ends[0]), min(high, ends[1])
    (x1, y1), (x2, y2) = frame.at(low, scale * low), frame.at(high, scale * high)
    return f'<line class="fit {css}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'


@dataclass(frozen=True)
class Bar:
    """A row of a bar picture: two lines of label, its classes, and its value."""

    label: str
    below: str
    css: str
    value: Value


def bars(chart_id: str, rows: Sequence[Bar], title: str, x_label: str, percent: bool = False) -> str:
    """Horizontal bars from 0 with their 95 % intervals; ``percent`` shows values times 100. Undefined is said so."""
    factor = 100 if percent else 1
    known = [number for row in rows for number in _numbers(row.value)]
    if not known:
        return ""
    ticks = nice_ticks(factor * min(0.0, *known), factor * max(0.0, *known), 5)
    bottom = TOP + _ROW * len(rows)

    def across(value: float) -> float:
        return _LABELS + (WIDTH - _LABELS - RIGHT) * (value - ticks[0]) / (ticks[-1] - ticks[0])

    parts = []
    for tick in ticks:
        zero = " zero" if tick == 0 else ""
        x = f"{across(tick):.1f}"
        parts.append(f'<line class="grid{zero}" x1="{x}" x2="{x}" y1="{TOP}" y2="{bottom}"/>')
        parts.append(f'<text class="tick" x="{x}" y="{bottom + 16}" text-anchor="middle">{tick:g}</text>')
    middle = (_LABELS + WIDTH - RIGHT) / 2
    parts.append(f'<text class="axis" x="{middle}" y="{bottom + 34}" text-anchor="middle">{escape(x_label)}</text>')
    for index, row in enumerate(rows):
        parts.append(_bar(row, TOP + _ROW * (index + 0.5), factor, across(0), across))
    described = f"{title}: " + "; ".join(f"{row.label} {_said(row.value, factor)}" for row in rows)
    return picture(chart_id, WIDTH, bottom + 40, title, described, "".join(parts))


def _numbers(value: Value) -> list[float]:
    return [number for number in (value.value, value.low, value.high) if number is not None]


def _said(value: Value, factor: float) -> str:
    if value.value is None:
        return "not defined"
    text = f"{factor * value.value:.3g}"
    if value.low is not None and value.high is not None:
        text += f" [{factor * value.low:.3g}, {factor * value.high:.3g}]"
    return text


def _bar(row: Bar, y: float, factor: float, zero: float, across: Callable[[float], float]) -> str:
    head = f'<text class="name" x="{_LABELS - _NUMBERS}" y="{y - 2:.1f}" text-anchor="end">{escape(row.label)}</text>'
    head += f'<text class="tick" x="{_LABELS - _NUMBERS}" y="{y + 12:.1f}" text-anchor="end">{escape(row.below)}</text>'
    if row.value.value is None:
        return f'{head}<text class="tick" x="{zero + 6:.1f}" y="{y + 4:.1f}">not defined</text>'
    end = across(factor * row.value.value)
    left, width = min(zero, end), max(abs(end - zero), 1.0)
    text = escape(f"{row.label}: {_said(row.value, factor)}, n {row.value.n}")
    shape = f'<rect x="{left:.1f}" y="{y - _BAR / 2:.1f}" width="{width:.1f}" height="{_BAR}" rx="2"/>'
    whisker = ""
    if row.value.low is not None and row.value.high is not None:
        low, high = across(factor * row.value.low), across(factor * row.value.high)
        ends = "".join(f"M{x:.1f} {y - 4:.1f}V{y + 4:.1f}" for x in (low, high))
        whisker = f'<path class="whisker" d="M{low:.1f} {y:.1f}H{high:.1f}{ends}"/>'
    return f'{head}<g class="barred {row.css}"><title>{text}</title>{shape}{whisker}</g>'
