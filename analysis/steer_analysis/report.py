"""The HTML report of a study or run: one self-contained page, drawn from run directories alone."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from markupsafe import Markup
from steer_experiments.run_dir import RunDir, now, write_text
from steer_openrlhf.registry import HOST_LOSSES

from . import tables
from .leaderboard import BASELINE, Leaderboard, Table, build_leaderboard
from .pages import render
from .runs import ENTROPY, Run, differing_settings, read_runs, series, short_names
from .study import study_facts
from .svg import Line, interval_bar, line_chart

_COLOURS = 8  # classes c0..c7 of the page; later runs repeat them with another dash
_CONTROLS = (*HOST_LOSSES, "uniform")
OMEGA = "train/steer/omega_abs_p90"
GRADE_FAILED = "train/grade_failed"  # share of a rollout's answers whose grader failed
_EVAL_PREFIX, _EVAL_SUFFIX = "eval/eval_", "_pass1"


@dataclass(frozen=True)
class Chart:
    """What one chart shows: a metric of ``metrics.jsonl`` (the first of ``names`` that occurs)."""

    key: str
    title: str
    y_label: str
    note: str
    names: Sequence[str]
    percent: bool = False


@dataclass(frozen=True)
class Shown:
    """A run as the page shows it: its classes, its short tag, and how it is described beside its switch."""

    index: int
    run: Run
    css: str
    tag: str
    parameters: str


def write_report(source: Path, output: Path) -> Path:
    """Write the report of the study or run at ``source``; returns ``output``."""
    write_text(output, render_report(source))
    return output


def render_report(source: Path) -> str:
    """The page as text. Raises ``ConfigError`` when ``source`` is neither a study nor a run."""
    runs = read_runs([source])
    board = build_leaderboard(runs)
    shown = _shown(runs)
    return render(
        "report.html.j2",
        name=source.resolve().name,
        made=now(),
        facts=study_facts(source, runs),
        counts=_counts(runs),
        headline=[_headline(table) for table in board.tables],
        shown=shown,
        tables=_tables(board, {one.run.path: one for one in shown}),
        footnote=tables.FOOTNOTE,
        unranked=board.unranked,
        charts=_charts(runs, shown),
        differing=_differing(runs),
        shared=_shared(runs),
        short=_short,
        durations={one.index: _duration(one.run) for one in shown},
        problems=[(one.run.label, problem) for one in shown for problem in _problems(one.run)],
        colours=_COLOURS,
    )


def _shown(runs: Sequence[Run]) -> list[Shown]:
    keys = differing_settings(runs)
    names = short_names(keys)
    found = []
    steered = 0
    for index, run in enumerate(runs):
        css = f"run-{index} control control-{run.method}" if run.method in _CONTROLS else ""
        if not css:
            css = f"run-{index} c{steered % _COLOURS}" + (" again" if steered >= _COLOURS else "")
            steered += 1
        values = [f"{names[key]} {_short(run.settings[key])}" for key in keys if run.settings.get(key) is not None]
        unique = [other.method for other in runs].count(run.method) == 1 and run.method in _CONTROLS
        tag = run.method if unique else run.label.removeprefix("trial ")[:8]
        found.append(Shown(index, run, css, tag, ", ".join(values)))
    return found


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _counts(runs: Sequence[Run]) -> str:
    """``8 finished, 1 failed, 1 running``."""
    states = [run.state for run in runs]
    return ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states)) or "no runs yet"


def _headline(table: Table) -> str:
    """The result in words, with its uncertainty."""
    best, tied = table.rows[0], sum(row.tied for row in table.rows)
    what = _named(best.run, best.parameters)
    text = f"Best on {table.protocol.suite}: {what} with {tables.estimate(best.accuracy)} %"
    if best.difference:
        text += f", {tables.signed(best.difference)} points against {BASELINE}"
    if len(table.rows) == 1:
        return text + "."
    others = f"{tied} of the other {len(table.rows) - 1} rows overlap its interval" if tied else "no other row overlaps"
    return f"{text}. {others[0].upper()}{others[1:]}" + (": ties, not a ranking." if tied else " its interval.")


def _tables(board: Leaderboard, shown: Mapping[Path, Shown]) -> list[dict[str, Any]]:
    """The tables with their interval bars on one scale each."""
    found = []
    for number, table in enumerate(board.tables):
        low = min(row.accuracy.low for row in table.rows)
        high = max(row.accuracy.high for row in table.rows)
        pad = max(0.01, 0.05 * (high - low))
        low, high = max(0.0, low - pad), min(1.0, high + pad)
        baselines = [row.accuracy.mean for row in table.rows if row.run.method == BASELINE]
        reference = sum(baselines) / len(baselines) if baselines else None
        rows = [
            {
                "cells": cells,
                "row": row,
                "css": shown[row.run.path].css,
                "difference": tables.signed(row.difference) if row.difference else "–",
                "bar": Markup(
                    interval_bar(f"bar-{number}-{rank}", row.accuracy, low, high, reference, shown[row.run.path].css)
                ),
            }
            for rank, (row, cells) in enumerate(zip(table.rows, tables.map_rows(table), strict=True))
        ]
        scale = (f"{100 * low:.0f} %", f"{100 * high:.0f} %")
        protocol = table.protocol
        found.append({"protocol": protocol, "about": tables.describe(protocol), "rows": rows, "scale": scale})
    return found


def _charts(runs: Sequence[Run], shown: Sequence[Shown]) -> list[dict[str, Any]]:
    found = []
    for chart in _catalogue(runs):
        lines = []
        notes = [chart.note]
        for one in shown:
            data = series(one.run.metrics, next((name for name in chart.names if _has(one.run, name)), ""))
            lines.append(Line(_label(one), one.tag, f"{one.css} state-{one.run.state}", data))
            if data.missing:
                notes.append(f"{one.run.label}: not a finite number at step {', '.join(map(str, data.missing[:5]))}.")
        svg = line_chart(f"chart-{chart.key}", lines, chart.title, chart.y_label, chart.percent)
        if svg:
            found.append({"title": chart.title, "notes": notes, "svg": Markup(svg)})
    return found


def _label(one: Shown) -> str:
    return _named(one.run, one.parameters)


def _named(run: Run, parameters: str) -> str:
    """``trial 3 (steer, lambda_min 0.7)``; a baseline that is named after its method is not named twice."""
    more = ", ".join(word for word in (run.method, parameters) if word and word != run.label)
    return f"{run.label} ({more})" if more else run.label


def _has(run: Run, name: str) -> bool:
    return any(name in row for row in run.metrics)


def _catalogue(runs: Sequence[Run]) -> list[Chart]:
    """The charts of the page, in order; the validation metric is named after the data source it was measured on."""
    names = sorted({name for run in runs for row in run.metrics for name in row if name.startswith(_EVAL_PREFIX)})
    measured = [name for name in names if name.endswith(_EVAL_SUFFIX)]
    sources = ", ".join(name.removeprefix(_EVAL_PREFIX).removesuffix(_EVAL_SUFFIX) for name in measured)
    during = f"Measured by OpenRLHF during training on {sources}: the study's objective, not the leaderboard."
    reward = "Mean reward of the rollout of each step."
    entropy = "Mean entropy of the policy over response tokens. Near 0 nothing is left to explore."
    weight = "Mean weight on the tokens' advantages: 1 is plain PPO. The uniform control gives every token this mean."
    omega = "What the weights are computed from: nine tokens in ten have a smaller absolute estimate."
    change = "Difference of the mean entropy to the step before: what the weights are there to moderate."
    return [
        Chart("reward", "Training reward", "mean reward", reward, ["train/rollout/reward_mean"]),
        Chart("validation", "Validation accuracy", "pass@1, %", during, measured, percent=True),
        Chart("entropy", "Policy entropy", "nats per token", entropy, [ENTROPY]),
        Chart("change", "Entropy change per step", "nats per token", change, [f"{ENTROPY}_change"]),
        Chart("weight", "STEER weight", "mean weight", weight, ["train/steer/weight_mean"]),
        Chart("omega", "Estimated entropy change of a token", "90 % quantile of |Ω|", omega, [OMEGA]),
    ]


def _problems(run: Run) -> list[str]:
    """What a reader must know before believing this run: damaged files, rewards that were given without a grade."""
    failed = [step for step, share in _points(run, GRADE_FAILED) if share > 0]
    lost = [f"the grader failed during training at step {', '.join(map(str, failed[:8]))}"] if failed else []
    return [*run.problems, *lost]


def _points(run: Run, name: str) -> list[tuple[int, float]]:
    found = series(run.metrics, name)
    return list(zip(found.steps, found.values, strict=True))


def _differing(runs: Sequence[Run]) -> dict[str, str]:
    return short_names(differing_settings(runs))


def _shared(runs: Sequence[Run]) -> dict[str, str]:
    """Settings with the same value in all runs."""
    keys = dict.fromkeys(key for run in runs for key in run.settings)
    differing = set(differing_settings(runs))
    return {key: _short(runs[0].settings[key]) for key in keys if key not in differing}


def _duration(run: Run) -> str:
    """Wall time from start to the last heartbeat, or a dash."""
    read: Callable[[str], datetime] = datetime.fromisoformat
    try:
        status = RunDir(run.path).read_status()
        seconds = (read(status.updated) - read(status.started)).total_seconds() if status else None
    except ValueError:
        seconds = None
    return "–" if seconds is None else f"{seconds:.0f} s" if seconds < 600 else f"{seconds / 60:.0f} min"
