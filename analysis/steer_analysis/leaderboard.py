"""The leaderboard: rows computed from run directories, one table per protocol, failures listed as states."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from steer_experiments.run_dir import ENDED

from .records import UNSCORED, VERDICTS, Evaluation, Protocol
from .runs import ENTROPY, Run, differing_settings, series, short_names
from .statistics import Estimate, bootstrap_mean, count_verdicts, item_means, paired_difference

BOOTSTRAP_SEED = 0
BASELINE = "ppo"


@dataclass(frozen=True)
class Row:
    """One finished, completely scored run under one protocol. Entropies in nats, None when not recorded."""

    run: Run
    parameters: str
    accuracy: Estimate
    difference: Estimate | None
    """Against the mean of its ``ppo`` runs (see :func:`_baselines`), item by item; None for those, and without any."""
    tied: bool
    """Its interval overlaps the leader's."""
    verdicts: Mapping[str, int]
    entropy_final: float | None
    entropy_min: float | None


@dataclass(frozen=True)
class Table:
    """Rows of one protocol, best first: only these may be compared."""

    protocol: Protocol
    rows: Sequence[Row]


@dataclass(frozen=True)
class Unranked:
    """A run without a row, and why."""

    run: Run
    state: str
    reason: str


@dataclass(frozen=True)
class Leaderboard:
    """All tables (most rows first) and every run that is in none."""

    tables: Sequence[Table]
    unranked: Sequence[Unranked]


def build_leaderboard(runs: Sequence[Run]) -> Leaderboard:
    """Rank what can be ranked; every run appears in a table or among the unranked."""
    groups: dict[Protocol, list[Run]] = defaultdict(list)
    unranked = []
    for run in runs:
        if problem := _why_unranked(run):
            unranked.append(problem)
            continue
        for suite, evaluation in run.evaluations.items():
            if lost := _unscored(evaluation):
                unranked.append(Unranked(run, "unscored", f"{suite}: {lost}"))
            else:
                groups[evaluation.meta.protocol].append(run)
    tables = [_table(protocol, members) for protocol, members in groups.items()]
    return Leaderboard(sorted(tables, key=lambda t: (-len(t.rows), t.protocol.suite, t.protocol.hash)), unranked)


def _why_unranked(run: Run) -> Unranked | None:
    if run.state != "finished":
        waiting = "still at work" if run.state not in ENDED else "no reason was recorded"
        return Unranked(run, run.state, run.reason or "; ".join(run.problems) or waiting)
    if not run.evaluations:
        return Unranked(run, "not evaluated", "; ".join(run.problems) or "run steer eval")
    return None


def _unscored(evaluation: Evaluation) -> str | None:
    """A grader that failed gives no score: neither a 0 nor a smaller denominator."""
    counts = count_verdicts((record.verdict for record in evaluation.records), VERDICTS)
    lost = {verdict: counts[verdict] for verdict in UNSCORED if counts[verdict]}
    if not lost:
        return None
    named = ", ".join(f"{verdict} {count}" for verdict, count in lost.items())
    return f"{sum(lost.values())} of {len(evaluation.records)} samples have no score (grader: {named})"


def scores_by_item(evaluation: Evaluation) -> dict[str, float]:
    """Each item's mean accuracy over its samples."""
    scores: dict[str, list[float]] = defaultdict(list)
    for record in evaluation.records:
        scores[record.item].append(float(record.verdict == "correct"))
    return item_means(scores)


def _table(protocol: Protocol, runs: Sequence[Run]) -> Table:
    scores = {run.path: scores_by_item(run.evaluations[protocol.suite]) for run in runs}
    accuracy = {path: bootstrap_mean(items.values(), BOOTSTRAP_SEED) for path, items in scores.items()}
    ordered = sorted(runs, key=lambda run: -accuracy[run.path].mean)
    keys = differing_settings(runs)
    names = short_names(keys)
    rows = [
        Row(
            run=run,
            parameters=_parameters(run, keys, names),
            accuracy=accuracy[run.path],
            difference=_difference(scores[run.path], [scores[one.path] for one in _baselines(run, runs)]),
            tied=run is not ordered[0] and accuracy[run.path].overlaps(accuracy[ordered[0].path]),
            verdicts=count_verdicts((r.verdict for r in run.evaluations[protocol.suite].records), VERDICTS),
            entropy_final=_entropy(run)[0],
            entropy_min=_entropy(run)[1],
        )
        for run in ordered
    ]
    return Table(protocol, rows)


def _baselines(run: Run, runs: Sequence[Run]) -> list[Run]:
    """The ``ppo`` runs this one may be compared with: those of its own study, else those that differ from it in nothing
    but the intervention and the seed."""
    if run.method == BASELINE:
        return []
    own = [one for one in runs if one.method == BASELINE]
    same_study = [one for one in own if run.study is not None and one.study == run.study]
    return same_study or [one for one in own if _without_intervention(one) == _without_intervention(run)]


def _without_intervention(run: Run) -> dict[str, Any]:
    return {key: value for key, value in run.settings.items() if not key.startswith("steer.")}


def _difference(ours: Mapping[str, float], baselines: Sequence[Mapping[str, float]]) -> Estimate | None:
    if not baselines:
        return None
    mean = {item: sum(one[item] for one in baselines) / len(baselines) for item in baselines[0]}
    return paired_difference(ours, mean, BOOTSTRAP_SEED)


def _parameters(run: Run, keys: Sequence[str], names: Mapping[str, str]) -> str:
    given = [(names[key], run.settings[key]) for key in keys if run.settings.get(key) is not None]
    return ", ".join(f"{name}={value:.4g}" if isinstance(value, float) else f"{name}={value}" for name, value in given)


def _entropy(run: Run) -> tuple[float | None, float | None]:
    """Policy entropy at the last step and at its lowest, nats."""
    values = series(run.metrics, ENTROPY).values
    return (values[-1], min(values)) if values else (None, None)
