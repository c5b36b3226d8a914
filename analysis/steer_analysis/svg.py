"""Line charts and interval bars as SVG text: pure functions, no drawing library, colours left to the page's CSS."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from .runs import Series
from .statistics import Estimate

WIDTH, HEIGHT = 560, 300
LEFT, RIGHT, TOP, BOTTOM = 62, 78, 12, 40  # margins of the plot, in the viewBox's units
_HOVER_POINTS, _PATH_POINTS = 60, 600  # kept of a line; a longer one is thinned to its extremes
_BEHIND_POINTS = 40
_LABEL_GAP = 12
_FEW_POINTS = 12  # a chart of lines this short shows their points
_SAME, _TINY = 1e-9, 1e-30  # relative difference, and size, below which values count as equal
BAR_WIDTH, BAR_HEIGHT = 220, 22


@dataclass(frozen=True)
class Line:
    """A named line. ``css`` are the classes that give it its colour and its switch; ``tag`` is written at its end.

    ``band``: (step, low, high) of what is drawn around it, such as the lowest and highest of several seeds.
    """

    label: str
    tag: str
    css: str
    data: Series
    band: tuple[tuple[int, float, float], ...] = ()


@dataclass(frozen=True)
class Frame:
    """Data ranges and their place in the picture."""

    x: tuple[float, float]
    y: tuple[float, float]

    def at(self, step: float, value: float) -> tuple[float, float]:
        across = (step - self.x[0]) / (self.x[1] - self.x[0])
        up = (value - self.y[0]) / (self.y[1] - self.y[0])
        return LEFT + across * (WIDTH - LEFT - RIGHT), HEIGHT - BOTTOM - up * (HEIGHT - TOP - BOTTOM)


def line_chart(
    chart_id: str,
    lines: Sequence[Line],
    title: str,
    y_label: str,
    percent: bool = False,
    behind: Sequence[Series] = (),
) -> str:
    """A chart of lines over steps with a gap wherever a value was not finite; ``percent`` shows values times 100.

    ``behind`` are drawn thin and without names. ``chart_id`` names the chart for screen readers and must be unique on
    the page. Empty text when nothing has a value.
    """
    drawn = [line for line in lines if line.data.values]
    if not drawn:
        return ""
    scale = 100 if percent else 1
    every = [*(line.data for line in drawn), *behind]
    values = [scale * value for data in every for value in data.values]
    values += [scale * end for line in drawn for _, *ends in line.band for end in ends]
    steps = [step for data in every for step in data.steps]
    last = max(1, *steps)
    ticks_y = nice_ticks(min(values), max(values), 5)
    ticks_x = [tick for tick in nice_ticks(0, last, 7, whole=True) if tick <= last]
    frame = Frame((0, last), (ticks_y[0], ticks_y[-1]))
    dotted = max(len(line.data.steps) for line in drawn) <= _FEW_POINTS
    parts = [
        axes(frame, ticks_x, ticks_y, "training step", y_label),
        _behind(frame, behind, scale),
        *(_line(frame, line, scale, dotted) for line in drawn),
    ]
    parts.append(_tags(frame, drawn, scale))
    described = f"{title}: {len(drawn)} lines up to step {max(steps)}, {y_label}. {_ends(drawn, scale)}"
    return picture(chart_id, WIDTH, HEIGHT, title, described, "".join(parts))


def _ends(lines: Sequence[Line], scale: float) -> str:
    """The last value of each line, for who cannot see the picture."""
    return "; ".join(f"{line.label} ends at {scale * line.data.values[-1]:.4g}" for line in lines)


def _behind(frame: Frame, lines: Sequence[Series], scale: float) -> str:
    """All of them as one thin path."""
    parts = []
    for data in lines:
        points = [(step, scale * value) for step, value in zip(data.steps, data.values, strict=True)]
        ends = [frame.at(step, value) for step, value in thin(points, _BEHIND_POINTS)]
        parts.append("M" + "L".join(f"{x:.0f} {y:.0f}" for x, y in ends) if ends else "")
    path = "".join(parts)
    return f'<path class="behind" d="{path}"/>' if path else ""


def _band(frame: Frame, line: Line, scale: float) -> str:
    if len(line.band) < 2:
        return ""
    steps = {step for step, _ in thin([(step, high) for step, _, high in line.band], _PATH_POINTS)}
    band = [one for one in line.band if one[0] in steps]
    above = [frame.at(step, scale * high) for step, _, high in band]
    below = [frame.at(step, scale * low) for step, low, _ in reversed(band)]
    return f'<path class="band" d="M{"L".join(f"{x:.1f} {y:.1f}" for x, y in above + below)}Z"/>'


def nice_ticks(low: float, high: float, wanted: int, whole: bool = False) -> list[float]:
    """Round numbers, evenly spaced, that enclose [``low``, ``high``]; at least two. ``whole``: integers only."""
    size = max(abs(low), abs(high))
    if high - low <= _SAME * size or size < _TINY:  # nothing to see between them: show their surroundings
        pad = 0.1 * size if size >= _TINY else 1.0
        low, high = low - pad, high + pad
    raw = (high - low) / wanted
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * nice for nice in (1, 2, 2.5, 5, 10) if power * nice >= raw * (1 - 1e-9))
    step = max(1.0, float(math.ceil(step))) if whole else step
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [float(f"{index * step:.12g}") for index in range(first, last + 1)]


def axes(
    frame: Frame,
    ticks_x: Sequence[float],
    ticks_y: Sequence[float],
    x_label: str,
    y_label: str,
    names_x: Sequence[str] = (),
) -> str:
    """Grid lines, tick numbers (``names_x`` in their place on the x axis) and the names of both axes."""
    parts = []
    for tick in ticks_y:
        _, y = frame.at(frame.x[0], tick)
        zero = " zero" if tick == 0 and ticks_y[0] < 0 else ""
        parts.append(f'<line class="grid{zero}" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text class="tick" x="{LEFT - 7}" y="{y + 4:.1f}" text-anchor="end">{tick:g}</text>')
    for tick, name in zip(ticks_x, names_x or [f"{tick:g}" for tick in ticks_x], strict=True):
        x, _ = frame.at(tick, frame.y[0])
        parts.append(f'<text class="tick" x="{x:.1f}" y="{HEIGHT - BOTTOM + 17}" text-anchor="middle">{name}</text>')
    middle = (LEFT + WIDTH - RIGHT) / 2
    parts.append(f'<text class="axis" x="{middle}" y="{HEIGHT - 6}" text-anchor="middle">{escape(x_label)}</text>')
    down = (HEIGHT - BOTTOM + TOP) / 2
    turned = f'transform="rotate(-90 12 {down})"'
    parts.append(f'<text class="axis" x="12" y="{down}" text-anchor="middle" {turned}>{escape(y_label)}</text>')
    return "".join(parts)


def _line(frame: Frame, line: Line, scale: float, dotted: bool) -> str:
    """The path, broken at missing steps, and points that say their value when the pointer is on them."""
    points = [(step, scale * value) for step, value in zip(line.data.steps, line.data.values, strict=True)]
    path, before = [], None
    for step, value in thin(points, _PATH_POINTS):
        broken = before is None or any(before < gap < step for gap in line.data.missing)
        x, y = frame.at(step, value)
        path.append(f"{'M' if broken else 'L'}{x:.1f} {y:.1f}")
        before = step
    dots = []
    for step, value in thin(points, _HOVER_POINTS):
        x, y = frame.at(step, value)
        text = escape(f"{line.label}, step {step}: {value:.4g}")
        dots.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4"><title>{text}</title></circle>')
    few = " few" if dotted or len(points) == 1 else ""
    drawn = f'<path d="{"".join(path)}"/>{"".join(dots)}'
    return f'<g class="line{few} {line.css}">{_band(frame, line, scale)}{drawn}</g>'


def _tags(frame: Frame, lines: Sequence[Line], scale: float) -> str:
    """Each line's tag at its end; those that end at the same step are pushed apart so that none covers another."""
    columns: dict[int, list[tuple[float, Line]]] = {}
    for line in lines:
        _, y = frame.at(line.data.steps[-1], scale * line.data.values[-1])
        columns.setdefault(line.data.steps[-1], []).append((y, line))
    parts = []
    for step, ends in columns.items():
        x, _ = frame.at(step, frame.y[0])
        ends.sort(key=lambda end: end[0])
        places = spread([y for y, _ in ends], _LABEL_GAP, TOP, HEIGHT - BOTTOM)
        for place, (_, line) in zip(places, ends, strict=True):
            text = escape(line.tag)
            parts.append(f'<text class="tag {line.css}" x="{x + 7:.1f}" y="{place + 4:.1f}">{text}</text>')
    return "".join(parts)


def spread(places: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Ascending ``places`` moved as little as a sweep down and one up need to keep ``gap``, within [low, high]."""
    gap = min(gap, (high - low) / max(1, len(places) - 1))
    moved: list[float] = []
    for place in places:
        moved.append(max(place, moved[-1] + gap if moved else low))
    for index in range(len(moved) - 1, -1, -1):
        moved[index] = min(moved[index], moved[index + 1] - gap if index + 1 < len(moved) else high)
    return moved


def thin(points: Sequence[tuple[int, float]], limit: int) -> list[tuple[int, float]]:
    """At most about ``limit`` points: the ends, and each stretch's lowest and highest, so that no spike is lost."""
    if len(points) <= limit:
        return list(points)
    size = math.ceil(2 * len(points) / limit)
    kept = {points[0], points[-1]}
    for start in range(0, len(points), size):
        stretch = points[start : start + size]
        kept |= {min(stretch, key=lambda point: point[1]), max(stretch, key=lambda point: point[1])}
    return sorted(kept)


def interval_bar(bar_id: str, value: Estimate, low: float, high: float, reference: float | None, css: str) -> str:
    """A mean and its interval on the scale [low, high] that all rows share, with a mark at the baseline's mean."""

    def across(number: float) -> float:
        return 6 + (BAR_WIDTH - 12) * (number - low) / (high - low)

    middle = BAR_HEIGHT / 2
    parts = [f'<line class="rail" x1="6" x2="{BAR_WIDTH - 6}" y1="{middle}" y2="{middle}"/>']
    if reference is not None:
        x = across(reference)
        parts.append(f'<line class="reference" x1="{x:.1f}" x2="{x:.1f}" y1="0" y2="{BAR_HEIGHT}"/>')
    ends = f'x1="{across(value.low):.1f}" x2="{across(value.high):.1f}"'
    parts.append(f'<g class="line {css}"><line class="interval" {ends} y1="{middle}" y2="{middle}"/>')
    parts.append(f'<circle class="mean" cx="{across(value.mean):.1f}" cy="{middle}" r="5"/></g>')
    title = f"{100 * value.mean:.1f} %, 95 % interval {100 * value.low:.1f} to {100 * value.high:.1f} %"
    return picture(bar_id, BAR_WIDTH, BAR_HEIGHT, title, "", "".join(parts), css="bar")


def picture(name: str, width: int, height: int, title: str, description: str, body: str, css: str = "chart") -> str:
    """An ``svg`` element that a screen reader names by its title and description; ``name`` is unique on the page."""
    described = f'<desc id="{name}-d">{escape(description)}</desc>' if description else ""
    labelled = f"{name}-t {name}-d" if description else f"{name}-t"
    head = f'<svg class="{css}" viewBox="0 0 {width} {height}" role="img" aria-labelledby="{labelled}">'
    return f'{head}<title id="{name}-t">{escape(title)}</title>{described}{body}</svg>'
