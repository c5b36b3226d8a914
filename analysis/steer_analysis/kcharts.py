"""Pictures of accuracy: pass@k and maj@k over k, and accuracy over entropy."""

import math
from collections.abc import Mapping, Sequence
from html import escape

from .curves import Shown
from .kcurves import Curve, KCurves
from .leaderboard import Row, Table
from .svg import BOTTOM, HEIGHT, TOP, WIDTH, Frame, axes, nice_ticks, picture, spread

_GAP, _TAG_WIDTH = 12, 80


def k_chart(chart_id: str, curves: Sequence[KCurves], majority: bool, shown: Mapping[int, Shown], title: str) -> str:
    """A line for each row over k (powers of two are evenly spaced) with its 95 % band; empty without a second k."""
    known = [(shown[id(one.row.arm)], one.majority if majority else one.passed) for one in curves]
    known = [(one, curve) for one, curve in known if len(curve) > 1]
    if not known:
        return ""
    ends = [100 * end for _, curve in known for value in curve.values() for end in (value.low, value.high)]
    ticks_y = nice_ticks(max(0.0, min(ends)), min(100.0, max(ends)), 5)
    ks = list(known[0][1])
    places = [math.log2(k) for k in ks]
    frame = Frame((0, places[-1]), (ticks_y[0], ticks_y[-1]))
    kind = "maj@k" if majority else "pass@k"
    parts = [axes(frame, places, ticks_y, "k, samples drawn", f"{kind}, %", [str(k) for k in ks])]
    parts += [_k_line(frame, one, curve, kind) for one, curve in known]
    last = max(ks)
    parts.append(_tags(frame, [(one, 100 * curve[last].mean) for one, curve in known], places[-1]))
    said = "; ".join(f"{one.arm.named}: {100 * curve[last].mean:.1f} %" for one, curve in known)
    return picture(
        chart_id, WIDTH, HEIGHT, title, f"{title}; {kind} at k = {last}: {said}", "".join(parts), "chart interval-bands"
    )


def _k_line(frame: Frame, one: Shown, curve: Curve, kind: str) -> str:
    def at(k: int, value: float) -> str:
        x, y = frame.at(math.log2(k), 100 * value)
        return f"{x:.1f} {y:.1f}"

    line = "L".join(at(k, value.mean) for k, value in curve.items())
    around = [at(k, value.high) for k, value in curve.items()]
    around += [at(k, value.low) for k, value in reversed(list(curve.items()))]
    dots = []
    for k, value in curve.items():
        x, y = frame.at(math.log2(k), 100 * value.mean)
        text = f"{one.arm.named}, {kind.replace('k', str(k))}: {100 * value.mean:.1f} "
        text += f"[{100 * value.low:.1f}, {100 * value.high:.1f}] %"
        dots.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4"><title>{escape(text)}</title></circle>')
    band = f'<path class="band" d="M{"L".join(around)}Z"/>'
    return f'<g class="line few {one.css}">{band}<path d="M{line}"/>{"".join(dots)}</g>'


def _tags(frame: Frame, ends: Sequence[tuple[Shown, float]], at: float) -> str:
    ordered = sorted(ends, key=lambda end: -end[1])
    x = frame.at(at, frame.y[0])[0]
    places = spread([frame.at(at, value)[1] for _, value in ordered], _GAP, TOP, HEIGHT - BOTTOM)
    return "".join(
        f'<text class="tag {one.css}" x="{x + 7:.1f}" y="{place + 4:.1f}">{escape(one.tag)}</text>'
        for place, (one, _) in zip(places, ordered, strict=True)
    )


def entropy_chart(chart_id: str, table: Table, shown: Mapping[int, Shown]) -> str:
    """Accuracy with its interval over final entropy, a point for each row that has both; empty with fewer than two."""
    rows = [(row, row.entropy_final) for row in table.rows if row.entropy_final is not None]
    if len(rows) < 2:
        return ""
    xs = [entropy for _, entropy in rows]
    ys = [100 * end for row, _ in rows for end in (row.accuracy.low, row.accuracy.high)]
    ticks_x, ticks_y = nice_ticks(min(xs), max(xs), 6), nice_ticks(min(ys), max(ys), 5)
    frame = Frame((ticks_x[0], ticks_x[-1]), (ticks_y[0], ticks_y[-1]))
    parts = [axes(frame, ticks_x, ticks_y, "policy entropy at the end, nats per token", "accuracy, %")]
    coloured_last = sorted(rows, key=lambda one: id(one[0].arm) in shown)
    names: list[tuple[float, float]] = []
    parts += [_point(frame, row, entropy, shown.get(id(row.arm)), names) for row, entropy in coloured_last]
    title = f"Accuracy on {table.protocol.suite} over final entropy"
    return picture(chart_id, WIDTH, HEIGHT, title, f"{title}: {len(rows)} rows", "".join(parts))


def _point(frame: Frame, row: Row, entropy: float, one: Shown | None, names: list[tuple[float, float]]) -> str:
    """A coloured point with its interval and tag, or a small grey one; ``names`` are the places of tags so far."""
    value = row.accuracy
    x, y = frame.at(entropy, 100 * value.mean)
    text = escape(f"{row.arm.named}: entropy {entropy:.3f}, {100 * value.mean:.1f} %")
    if one is None:
        dot = f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.5"><title>{text}</title></circle>'
        return f'<g class="line few rest">{dot}</g>'
    low, high = frame.at(entropy, 100 * value.low)[1], frame.at(entropy, 100 * value.high)[1]
    dot = f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4.5"><title>{text}</title></circle>'
    height = y - 6
    while any(abs(x - other) < _TAG_WIDTH and abs(height - above) < _GAP for other, above in names):
        height += 2
    names.append((x, height))
    name = f'<text class="tag {one.css}" x="{x + 7:.1f}" y="{height:.1f}">{escape(one.tag)}</text>'
    return f'<g class="line few {one.css}"><path d="M{x:.1f} {low:.1f}V{high:.1f}"/>{dot}</g>{name}'
