"""The pictures of the report that show training: which arms have a colour, their lines, their bands over seeds."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup
from steer_openrlhf.registry import HOST_LOSSES

from .arms import Arm
from .leaderboard import Leaderboard
from .runs import ENTROPY, Run, Series, series
from .svg import Line, line_chart

COLOURS = 8  # classes c0..c7 of the page; later arms repeat them with another dash
MOST_SHOWN = 14  # arms with a colour of their own; the rest is drawn thin behind them
MOST_BEHIND = 150
OMEGA = "train/steer/omega_abs_p90"
_TAG = 13  # letters that fit beside a line's end
_CONTROLS = (*HOST_LOSSES, "uniform")
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
    """An arm as the page shows it: its classes, and its short tag."""

    index: int
    arm: Arm
    css: str
    tag: str

    @property
    def states(self) -> str:
        """The states of its runs that have not finished; empty when all have."""
        return ", ".join(dict.fromkeys(run.state for run in self.arm.runs if run.state != "finished"))


def choose_shown(board: Leaderboard) -> list[Shown]:
    """The arms that get a colour: all of a few; of many the controls and the best of the first table."""
    arms = list(board.arms)
    if len(arms) > MOST_SHOWN:
        best = [row.arm for row in board.tables[0].rows] if board.tables else []
        wanted = [arm for arm in arms if arm.method in _CONTROLS][: MOST_SHOWN // 2]
        wanted += [arm for arm in [*best, *arms] if arm.method not in _CONTROLS]
        kept = list({id(arm): arm for arm in wanted}.values())[:MOST_SHOWN]
        chosen = {id(arm) for arm in kept}
        arms = [arm for arm in arms if id(arm) in chosen]
    found: list[Shown] = []
    coloured = 0
    controls: set[str] = set()
    for index, arm in enumerate(arms):
        css = f"run-{index} control control-{arm.method}"
        first = arm.method in _CONTROLS and arm.method not in controls
        controls.add(arm.method)
        if not first:
            css = f"run-{index} c{coloured % COLOURS}" + (" again" if coloured >= COLOURS else "")
            coloured += 1
        found.append(Shown(index, arm, css, arm.label.removeprefix("trial ")[:_TAG]))
    return found


def charts(board: Leaderboard, shown: Sequence[Shown]) -> list[dict[str, Any]]:
    """Title, notes and picture of every metric that occurs."""
    coloured = {id(one.arm) for one in shown}
    rest = [arm for arm in board.arms if id(arm) not in coloured]
    found = []
    for chart in _catalogue(board.arms):
        lines, notes = [], [chart.note]
        for one in shown:
            more, lost = _lines(one, chart)
            lines += more
            notes += lost
        behind = [data for arm in _spread_out(rest) if (data := _series(arm.runs[0], chart)).values]
        svg = line_chart(f"chart-{chart.key}", lines, chart.title, chart.y_label, chart.percent, behind)
        if svg:
            found.append({"title": chart.title, "notes": notes, "svg": Markup(svg)})
    return found


def behind_note(board: Leaderboard, shown: Sequence[Shown]) -> str:
    """What of the other arms is drawn; empty when there are none."""
    rest = len(board.arms) - len(shown)
    if rest <= 0:
        return ""
    drawn = min(rest, MOST_BEHIND)
    return (
        f"In colour: the controls and the best of the first table. Thin grey: {drawn} of the other {rest} arms, "
        "first seed each, evenly chosen."
    )


def _spread_out(arms: Sequence[Arm]) -> list[Arm]:
    """At most :data:`MOST_BEHIND`, evenly chosen."""
    if len(arms) <= MOST_BEHIND:
        return list(arms)
    return [arms[place * len(arms) // MOST_BEHIND] for place in range(MOST_BEHIND)]


def _series(run: Run, chart: Chart) -> Series:
    return series(run.metrics, next((name for name in chart.names if any(name in row for row in run.metrics)), ""))


def _lines(one: Shown, chart: Chart) -> tuple[list[Line], list[str]]:
    """The arm's mean over its finished seeds with their band, and each unfinished run by itself; what is missing."""
    done = [run for run in one.arm.runs if run.state == "finished"]
    data = {run.path: _series(run, chart) for run in one.arm.runs}
    notes = [
        f"{run.label}: not a finite number at step {', '.join(map(str, data[run.path].missing[:5]))}."
        for run in one.arm.runs
        if data[run.path].missing
    ]
    lines = []
    if done:
        mean, band = over_seeds([data[run.path] for run in done])
        named = one.arm.named + (f", mean of {len(done)} seeds" if len(done) > 1 else "")
        lines.append(Line(named, one.tag, f"{one.css} state-finished", mean, band))
    for run in one.arm.runs:
        if run.state != "finished":
            label = one.arm.named if len(one.arm.runs) == 1 else f"{run.label} ({run.state})"
            lines.append(Line(label, one.tag, f"{one.css} state-{run.state.replace(' ', '-')}", data[run.path]))
    return lines, notes


def over_seeds(seeds: Sequence[Series]) -> tuple[Series, tuple[tuple[int, float, float], ...]]:
    """The mean over seeds where every one has a value, and (step, lowest, highest) there; no band for one seed.

    A step that one seed lacks is missing: a mean over fewer seeds would be another curve.
    """
    if len(seeds) == 1:
        return seeds[0], ()
    values = [dict(zip(one.steps, one.values, strict=True)) for one in seeds]
    every = sorted(set().union(*values))
    whole = [step for step in every if all(step in one for one in values)]
    at = {step: [one[step] for one in values] for step in whole}
    missing = sorted({step for step in every if step not in at} | {step for one in seeds for step in one.missing})
    mean = Series(tuple(whole), tuple(sum(at[step]) / len(seeds) for step in whole), tuple(missing))
    return mean, tuple((step, min(at[step]), max(at[step])) for step in whole)


def _catalogue(arms: Sequence[Arm]) -> list[Chart]:
    """The charts of the page, in order; the validation metric is named after the data source it was measured on."""
    rows = (row for arm in arms for run in arm.runs for row in run.metrics)
    names = sorted({name for row in rows for name in row if name.startswith(_EVAL_PREFIX)})
    measured = [name for name in names if name.endswith(_EVAL_SUFFIX)]
    sources = ", ".join(name.removeprefix(_EVAL_PREFIX).removesuffix(_EVAL_SUFFIX) for name in measured)
    during = f"Measured by OpenRLHF during training on {sources}: the study's objective, not the leaderboard."
    reward = "Mean reward of the rollout of each step."
    entropy = "Mean entropy of the policy over response tokens. Near 0 nothing is left to explore."
    weight = "Mean weight on the tokens' advantages: 1 is plain PPO. The uniform control gives every token this mean."
    omega = "What the weights are computed from: nine tokens in ten have a smaller absolute estimate."
    change = "Difference of the mean entropy to the step before: what the weights are there to moderate."
    least = "Share of the tokens whose weight is lambda_min, the smallest there is."
    nats = "nats per token"
    return [
        Chart("reward", "Training reward", "mean reward", reward, ["train/rollout/reward_mean"]),
        Chart("validation", "Validation accuracy", "pass@1, %", during, measured, percent=True),
        Chart("entropy", "Policy entropy", nats, entropy, [ENTROPY]),
        Chart("change", "Entropy change per step", nats, change, [f"{ENTROPY}_change"]),
        Chart("weight", "STEER weight", "mean weight", weight, ["train/steer/weight_mean"]),
        Chart("least", "Tokens at the smallest weight", "share, %", least, ["train/steer/weight_at_min"], percent=True),
        Chart("omega", "Estimated entropy change of a token", "90 % quantile of |Ω|", omega, [OMEGA]),
    ]


def by_arm(shown: Sequence[Shown]) -> Mapping[int, Shown]:
    """The shown arms by identity."""
    return {id(one.arm): one for one in shown}
