"""The leaderboard's tables as a page draws them."""

from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from . import tables
from .combined import Combined, CombinedRow, combine
from .curves import Shown
from .grids import DASH, Cell, Column, Grid, RowOfCells, number, text
from .leaderboard import BASELINE, Leaderboard, Row, Table
from .provenance import protocol_facts, row_facts
from .records import VERDICTS
from .reported import REPORTED_MARK, Reported
from .statistics import Estimate
from .svg import interval_bar

PERCENT = "95 % interval in brackets"


def board_grids(board: Leaderboard, shown: Mapping[int, Shown]) -> list[dict[str, Any]]:
    """For each protocol: its table, its verdicts, and where each row's numbers come from."""
    found = []
    for place, table in enumerate(board.tables):
        facts = [dict(row_facts(row, table.protocol)) for row in table.rows]
        own = {name for name, _ in protocol_facts(table.protocol)}
        differing = [name for name in facts[0] if name not in own and len({one[name] for one in facts}) > 1]
        found.append(
            {
                "grid": _table(table, place, shown),
                "verdicts": _verdicts(table, place, shown),
                "facts": [(name, value) for name, value in facts[0].items() if name not in differing],
                "provenance": _provenance(table, place, differing, facts),
                "suite": table.protocol.suite,
            }
        )
    return found


def combined_grids(board: Leaderboard, shown: Mapping[int, Shown]) -> list[Grid]:
    """A table for each group of suites with their average."""
    return [_combined(one, place, shown) for place, one in enumerate(combine(board))]


def _css(row: Row | CombinedRow, shown: Mapping[int, Shown]) -> str:
    one = shown.get(id(row.arm))
    return one.css if one else "rest"


def _scale(values: Sequence[Estimate]) -> tuple[float, float]:
    low, high = min(value.low for value in values), max(value.high for value in values)
    pad = max(0.01, 0.05 * (high - low))
    return max(0.0, low - pad), min(1.0, high + pad)


def _estimate(value: Estimate | None, signed: bool = False) -> Cell:
    if value is None:
        return Cell(DASH)
    mean, _, interval = (tables.signed(value) if signed else tables.estimate(value)).partition(" ")
    return number(mean, value.mean, interval)


def _bar_column(low: float, high: float) -> Column:
    return Column(f"{100 * low:.0f} % to {100 * high:.0f} %", sortable=False)


def _bar(key: str, value: Estimate, scale: tuple[float, float], reference: float | None, css: str) -> Cell:
    return Cell("", drawn=Markup(interval_bar(key, value, *scale, reference, css)))


def _table(table: Table, place: int, shown: Mapping[int, Shown]) -> Grid:
    scale = _scale([row.accuracy for row in table.rows])
    base = [row.accuracy.mean for row in table.rows if row.arm.method == BASELINE]
    reference = sum(base) / len(base) if base else None
    columns = [
        Column("rank", True, "1 and one more for each row whose interval lies wholly above; a range is a tie"),
        Column("run"),
        Column("method"),
        Column("parameters"),
        Column("accuracy, %", True, f"avg@{table.protocol.n_samples}; {PERCENT}"),
        _bar_column(*scale),
        Column(f"vs {BASELINE}", True, f"points, paired item by item; {PERCENT}"),
        Column("cut, unparsed, %", True, "shares of truncated and of unparsed answers"),
        Column("entropy", True, "policy entropy at the end, and its minimum, nats"),
        Column("steps", True),
        Column("seeds", True, "training seeds in the numbers"),
    ]
    rows = [
        RowOfCells(
            [
                number(tables.rank(row.first, row.last), row.first),
                text(row.arm.label, swatch=_css(row, shown)),
                text(row.arm.method),
                text(row.arm.parameters or DASH, css="values"),
                _estimate(row.accuracy),
                _bar(f"bar-{place}-{index}", row.accuracy, scale, reference, _css(row, shown)),
                _estimate(row.difference, signed=True),
                number(
                    f"{100 * row.share('truncated'):.1f}, {100 * row.share('unparsed'):.1f}", row.share("truncated")
                ),
                _entropy(row),
                number(tables.steps(row), max(run.step for run in row.runs)),
                number(str(len(row.runs)), len(row.runs), _named_seeds(row)),
            ],
            "leader" if row.first == 1 else "",
        )
        for index, row in enumerate(table.rows)
    ]
    about = tables.describe(table.protocol)
    return Grid(f"table-{place}", table.protocol.suite, columns, rows, heading=1, about=about)


def _entropy(row: Row) -> Cell:
    if row.entropy_final is None or row.entropy_min is None:
        return Cell(DASH)
    return number(f"{row.entropy_final:.3f}", row.entropy_final, f"min {row.entropy_min:.3f}")


def _named_seeds(row: Row) -> str:
    named = ", ".join(DASH if run.seed is None else str(run.seed) for run in row.runs)
    return f"of {len(row.arm.runs)}: {named}" if len(row.runs) < len(row.arm.runs) else named


def _verdicts(table: Table, place: int, shown: Mapping[int, Shown]) -> Grid:
    columns = [Column("run"), *(Column(verdict, True) for verdict in VERDICTS), Column("n", True)]
    rows = [
        RowOfCells(
            [
                text(row.arm.label, swatch=_css(row, shown)),
                *(number(str(row.verdicts[verdict]), row.verdicts[verdict]) for verdict in VERDICTS),
                number(str(sum(row.verdicts.values())), sum(row.verdicts.values())),
            ]
        )
        for row in table.rows
    ]
    caption = "Counts add up to n. Truncated: cut at the token limit, whatever was said so far."
    return Grid(f"verdicts-{place}", caption, columns, rows, filterable=False)


def _provenance(table: Table, place: int, names: Sequence[str], facts: Sequence[Mapping[str, str]]) -> Grid:
    rows = [
        RowOfCells([text(row.arm.label), *(text(one[name], css="wrap") for name in names)])
        for row, one in zip(table.rows, facts, strict=True)
    ]
    caption = "What differs between the rows; what is not here is the same in all of them."
    columns = [Column("run"), *(Column(name) for name in names)]
    return Grid(f"provenance-{place}", caption, columns, rows, filterable=False)


def _combined(table: Combined, place: int, shown: Mapping[int, Shown]) -> Grid:
    averages = [row.average for row in table.rows if row.average]
    scale = _scale(averages) if averages else (0.0, 1.0)
    base = [row.average.mean for row in table.rows if row.average and row.arm.method == BASELINE]
    reference = sum(base) / len(base) if base else None
    columns = [
        Column("rank", True),
        Column("run"),
        Column("parameters"),
        Column("average, %", True, f"of the {len(table.suites)} suites, one weight each; {PERCENT}"),
        _bar_column(*scale),
        Column(f"vs {BASELINE}", True, f"points, paired item by item; {PERCENT}"),
        *(Column(suite, True, f"avg@{_samples(table, suite)}, %; {PERCENT}") for suite in table.suites),
    ]
    rows = []
    for index, row in enumerate(table.rows):
        suites = [_estimate(row.by_suite[one].accuracy if one in row.by_suite else None) for one in table.suites]
        css = _css(row, shown)
        bar = _bar(f"average-{place}-{index}", row.average, scale, reference, css) if row.average else Cell("")
        head = [number(tables.rank(row.first, row.last), row.first), text(row.arm.label, swatch=css)]
        head.append(text(row.arm.parameters or DASH, css="values"))
        average = [_estimate(row.average), bar, _estimate(row.difference, signed=True)]
        rows.append(RowOfCells([*head, *average, *suites], "leader" if row.first == 1 else ""))
    about = f"average of {', '.join(table.suites)}; only where all {len(table.suites)} were evaluated"
    return Grid(f"combined-{place}", table.name, columns, rows, heading=1, about=about)


def _samples(table: Combined, suite: str) -> str:
    return str(table.protocols[suite].n_samples) if suite in table.protocols else "n"


def reported_grid(paper: Reported, place: int) -> Grid:
    """A paper's rows, each marked as reported."""
    columns = [
        Column("model"),
        Column("setting"),
        Column("method"),
        *(Column(suite, True, metric) for suite, metric in paper.metrics.items()),
        Column("average", True),
        Column("kind", sortable=False),
    ]
    rows = [
        RowOfCells(
            [
                *(text(word) for word in (one.model, one.setting, one.method)),
                *(number(f"{one.accuracy[suite]:.1f}", one.accuracy[suite]) for suite in paper.suites),
                number(f"{one.average:.1f}", one.average),
                Cell(REPORTED_MARK, css="mark"),
            ],
            "reported",
        )
        for one in paper.rows
    ]
    return Grid(f"reported-{place}", paper.title, columns, rows, heading=2, about=paper.about, note=paper.note)


def unranked_grid(board: Leaderboard) -> Grid:
    """Runs without a row, and why."""
    rows = [
        RowOfCells(
            [
                text(one.run.label),
                text(one.run.method),
                Cell(one.state, one.state, css=f"state {one.state.replace(' ', '-')}"),
                number(str(one.run.step), one.run.step),
                text(one.reason, css="reason"),
            ]
        )
        for one in board.unranked
    ]
    columns = [Column("run"), Column("method"), Column("state"), Column("step", True), Column("reason")]
    return Grid("unranked", "A run that failed has a state and a reason, never a number.", columns, rows)
