"""The HTML pages of a study, a run or a leaderboard: self-contained, drawn from run directories alone."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup
from steer_experiments.run_dir import now, write_text

from . import tables
from .agreement import Value
from .arms import short
from .board_view import board_grids, combined_grids, reported_grid, unranked_grid
from .combined import Combined, combine
from .curves import Shown, behind_note, by_arm, charts, choose_shown
from .drilldown import drilldown
from .grids import DASH, Cell, Column, Grid, RowOfCells, number, text
from .importance import Importance, parameter_importance
from .kcharts import entropy_chart, k_chart
from .kcurves import k_curves
from .leaderboard import BASELINE, Leaderboard, Table, build_leaderboard
from .pages import render
from .pictures import Bar, bars
from .probe_view import estimator_charts, probed_runs, quadrant_rows, weight_charts
from .provenance import duration_seconds
from .reported import beside
from .runs import Run, differing_settings, read_runs, series, short_names
from .study import study_facts

GRADE_FAILED = "train/grade_failed"  # share of a rollout's answers whose grader failed


def write_report(source: Path, output: Path) -> Path:
    """Write the report of the study or run at ``source``; returns ``output``."""
    write_text(output, render_report(source))
    return output


def render_report(source: Path) -> str:
    """The page as text. Raises ``ConfigError`` when ``source`` is neither a study nor a run."""
    runs = read_runs([source])
    board = build_leaderboard(runs)
    shown = choose_shown(board)
    probed, probe_notes = probed_runs(shown, compute=len(runs) == 1)
    return render_page(
        "report.html.j2",
        board,
        shown,
        name=source.resolve().name,
        facts=study_facts(source, runs),
        counts=_counts(runs),
        charts=charts(board, shown),
        behind=behind_note(board, shown),
        estimators=estimator_charts(probed),
        quadrants=quadrant_rows(probed),
        weights=weight_charts(probed),
        probe_notes=probe_notes,
        importance=_importance(parameter_importance(source)),
        parameters=_parameters(runs),
        shared=_shared(runs),
    )


def render_leaderboard(board: Leaderboard) -> str:
    """The leaderboard as a page of its own."""
    return render_page("leaderboard.html.j2", board, choose_shown(board), name="Leaderboard")


def render_page(template: str, board: Leaderboard, shown: Sequence[Shown], **values: Any) -> str:
    """A page with what both have: tables, pictures of accuracy, reported rows, items."""
    colours = by_arm(shown)
    runs = [run for arm in board.arms for run in arm.runs]
    papers = beside(board)
    return render(
        template,
        made=now(),
        headline=[*map(_average_headline, combine(board))] or [_headline(table) for table in board.tables],
        arms=len(board.arms),
        runs=len(runs),
        shown=shown,
        tables=board_grids(board, colours),
        combined=combined_grids(board, colours),
        footnote=tables.FOOTNOTE,
        reported=[(paper, reported_grid(paper, place)) for place, paper in enumerate(papers)],
        reported_note=tables.REPORTED_NOTE,
        unranked=unranked_grid(board),
        k_charts=_k_charts(board, colours),
        entropy_charts=_entropy_charts(board, colours),
        items=drilldown(board),
        problems=[(run.label, problem) for run in runs for problem in _problems(run)],
        **values,
    )


def _counts(runs: Sequence[Run]) -> str:
    """``8 finished, 1 failed, 1 running``."""
    states = [run.state for run in runs]
    return ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states)) or "no runs yet"


def _headline(table: Table) -> str:
    """The result in words, with its uncertainty."""
    best, tied = table.rows[0], sum(row.tied for row in table.rows)
    text = f"Best on {table.protocol.suite}: {best.arm.named} with {tables.estimate(best.accuracy)} %"
    if best.difference:
        text += f", {tables.signed(best.difference)} points against {BASELINE}"
    if len(table.rows) == 1:
        return text + "."
    others = f"{tied} of the other {len(table.rows) - 1} rows overlap its interval" if tied else "no other row overlaps"
    return f"{text}. {others[0].upper()}{others[1:]}" + (": ties, not a ranking." if tied else " its interval.")


def _average_headline(table: Combined) -> str:
    """The same of an average over suites."""
    ranked = [row for row in table.rows if row.average]
    if not ranked or ranked[0].average is None:
        return f"No row has all {len(table.suites)} suites of {table.name}."
    best = ranked[0]
    text = f"Best average on {table.name}: {best.arm.named} with {tables.estimate(ranked[0].average)} %"
    if best.difference:
        text += f", {tables.signed(best.difference)} points against {BASELINE}"
    tied = sum(row.first == 1 for row in ranked[1:])
    return f"{text}. {tied} of the other {len(ranked) - 1} rows are tied with it." if len(ranked) > 1 else f"{text}."


def _k_charts(board: Leaderboard, shown: Mapping[int, Shown]) -> list[dict[str, Any]]:
    """pass@k and maj@k of each table with several samples, for the arms in colour."""
    found = []
    for place, table in enumerate(board.tables):
        rows = [row for row in table.rows if id(row.arm) in shown]
        if table.protocol.n_samples == 1 or not rows:
            continue
        curves = k_curves(table.protocol, rows)
        for kind, majority in (("pass@k", False), ("maj@k", True)):
            title = f"{kind} on {table.protocol.suite}"
            svg = k_chart(f"k-{place}-{kind[:4]}", curves, majority, shown, title)
            if svg:
                found.append({"title": title, "svg": Markup(svg)})
    return found


def _entropy_charts(board: Leaderboard, shown: Mapping[int, Shown]) -> list[dict[str, Any]]:
    drawn = [
        (table.protocol.suite, entropy_chart(f"entropy-{place}", table, shown))
        for place, table in enumerate(board.tables)
    ]
    return [{"title": f"Accuracy on {suite} over final entropy", "svg": Markup(svg)} for suite, svg in drawn if svg]


def _importance(found: Importance | None) -> dict[str, Any] | None:
    """The bars of the parameters, or the reason why there are none."""
    if found is None:
        return None
    rows = [Bar(name, "", "c5", Value(share, None, None, found.trials)) for name, share in found.shares.items()]
    svg = bars("importance", rows, "Importance of each searched parameter", "share of importance, %", percent=True)
    return {"svg": Markup(svg), "trials": found.trials, "reason": found.reason}


def _problems(run: Run) -> list[str]:
    """What a reader must know before believing this run: damaged files, rewards that were given without a grade."""
    graded = series(run.metrics, GRADE_FAILED)
    failed = [step for step, share in zip(graded.steps, graded.values, strict=True) if share > 0]
    lost = [f"the grader failed during training at step {', '.join(map(str, failed[:8]))}"] if failed else []
    return [*run.problems, *lost]


def _parameters(runs: Sequence[Run]) -> Grid:
    """Settings that differ between the runs, with state, steps and time of each run."""
    keys = differing_settings(runs)
    names = short_names(keys)
    columns = [Column("run"), Column("method"), *(Column(names[key], note=key) for key in keys)]
    columns += [Column("seed", True), Column("state"), Column("steps", True), Column("time", True)]
    rows = []
    for run in runs:
        seconds = duration_seconds(run)
        state = Cell(run.state, run.state, css=f"state {run.state.replace(' ', '-')}")
        cells = [text(run.label), text(run.method), *(_setting(run.settings.get(key)) for key in keys)]
        cells += [number(str(run.seed), run.seed), state, number(str(run.step), run.step)]
        rows.append(RowOfCells([*cells, number(_duration(seconds), seconds)]))
    caption = "Settings that differ between the runs. A dash: the method does not use it."
    return Grid("parameters", caption, columns, rows)


def _setting(value: Any) -> Cell:
    if value is None:
        return Cell(DASH)
    sort = float(value) if isinstance(value, int | float) else short(value).lower()
    return Cell(short(value), sort, css="values")


def _shared(runs: Sequence[Run]) -> dict[str, str]:
    """Settings with the same value in all runs."""
    keys = dict.fromkeys(key for run in runs for key in run.settings)
    differing = set(differing_settings(runs))
    return {key: short(runs[0].settings[key]) for key in keys if key not in differing}


def _duration(seconds: float | None) -> str:
    """Wall time from start to the last heartbeat, or a dash."""
    return DASH if seconds is None else f"{seconds:.0f} s" if seconds < 600 else f"{seconds / 60:.0f} min"
