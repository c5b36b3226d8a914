"""The leaderboard: rows computed from run directories, one table per protocol, failures listed as states."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from steer_experiments.run_dir import ENDED

from .arms import Arm, group_runs
from .metrics import Scores, accuracy
from .records import UNSCORED, VERDICTS, Protocol
from .runs import ENTROPY, Run, series
from .statistics import Estimate, Floats, Sample, difference, estimate, require_same_items, resampled_means

BOOTSTRAP_SEED = 0
BASELINE = "ppo"
_OTHER_SIDE = 1  # the stream of a difference's second side


@dataclass(frozen=True)
class Row:
    """The finished, completely scored runs of one arm under one protocol. Entropies in nats, None when not recorded."""

    arm: Arm
    runs: tuple[Run, ...]
    """Those of the arm's runs that are in the numbers; the others are among the unranked."""
    scores: tuple[Scores, ...]
    accuracy: Estimate
    difference: Estimate | None
    """Against its ``ppo`` runs (see :func:`baselines`), item by item; None for those, and without any."""
    first: int
    """Its best rank: 1 and one more for every row whose interval lies wholly above."""
    last: int
    """Its worst rank: the number of rows less those whose interval lies wholly below."""
    tied: bool
    """Not the first row, and its interval overlaps the first row's."""
    entropy_final: float | None
    entropy_min: float | None

    @property
    def verdicts(self) -> Mapping[str, int]:
        """How many samples of each verdict, over all seeds."""
        return {name: sum(one.verdicts[name] for one in self.scores) for name in VERDICTS}

    def share(self, verdict: str) -> float:
        """Share of all samples with this verdict."""
        return sum(one.share(verdict) for one in self.scores) / len(self.scores)

    @property
    def sample(self) -> Sample:
        return accuracy(self.scores)


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
    arms: Sequence[Arm]


def build_leaderboard(runs: Sequence[Run]) -> Leaderboard:
    """Rank what can be ranked; every run appears in a table or among the unranked."""
    arms = group_runs(runs)
    groups: dict[Protocol, list[tuple[Arm, list[Run]]]] = defaultdict(list)
    unranked = []
    for arm in arms:
        members: dict[Protocol, list[Run]] = defaultdict(list)
        for run in arm.runs:
            unranked += _sort_in(run, members)
        for protocol, found in members.items():
            groups[protocol].append((arm, found))
    tables = [_table(protocol, members) for protocol, members in groups.items()]
    ordered = sorted(tables, key=lambda t: (-len(t.rows), t.protocol.suite, t.protocol.hash))
    return Leaderboard(ordered, unranked, arms)


def _sort_in(run: Run, members: dict[Protocol, list[Run]]) -> list[Unranked]:
    """Add a run to the protocols it can be ranked under; what it cannot be ranked for."""
    if problem := _why_unranked(run):
        return [problem]
    problems = []
    for suite, evaluation in run.evaluations.items():
        if lost := _unscored(evaluation.scores):
            problems.append(Unranked(run, "unscored", f"{suite}: {lost}"))
        else:
            members[evaluation.meta.protocol].append(run)
    return problems


def _why_unranked(run: Run) -> Unranked | None:
    if run.state != "finished":
        waiting = "still at work" if run.state not in ENDED else "no reason was recorded"
        return Unranked(run, run.state, run.reason or "; ".join(run.problems) or waiting)
    if not run.evaluations:
        return Unranked(run, "not evaluated", "; ".join(run.problems) or "run steer eval")
    return None


def _unscored(scores: Scores) -> str | None:
    """A grader that failed gives no score: neither a 0 nor a smaller denominator."""
    lost = {verdict: scores.verdicts[verdict] for verdict in UNSCORED if scores.verdicts[verdict]}
    if not lost:
        return None
    named = ", ".join(f"{verdict} {count}" for verdict, count in lost.items())
    return f"{sum(lost.values())} of {sum(scores.verdicts.values())} samples have no score (grader: {named})"


def _table(protocol: Protocol, members: Sequence[tuple[Arm, Sequence[Run]]]) -> Table:
    scores = [tuple(run.evaluations[protocol.suite].scores for run in runs) for _, runs in members]
    for one in scores:
        for each in one:
            require_same_items(each.items, scores[0][0].items)
    samples = [accuracy(one) for one in scores]
    draws = suite_draws(protocol, samples)
    against = _differences([arm for arm, _ in members], samples, draws, protocol)
    rows = [
        Row(
            arm=arm,
            runs=tuple(runs),
            scores=own,
            accuracy=estimate(sample, drawn),
            difference=paired,
            first=0,
            last=0,
            tied=False,
            entropy_final=_mean([_entropy(run)[0] for run in runs]),
            entropy_min=_mean([_entropy(run)[1] for run in runs]),
        )
        for (arm, runs), own, sample, drawn, paired in zip(members, scores, samples, draws, against, strict=True)
    ]
    rows.sort(key=lambda row: -row.accuracy.mean)
    places = ranks([row.accuracy for row in rows])
    ranked = [
        replace(row, first=first, last=last, tied=row is not rows[0] and row.accuracy.overlaps(rows[0].accuracy))
        for row, (first, last) in zip(rows, places, strict=True)
    ]
    return Table(protocol, ranked)


def suite_draws(protocol: Protocol, samples: Sequence[Sample], stream: int = 0) -> Floats:
    """Bootstrap means of samples of one suite."""
    return resampled_means(samples, BOOTSTRAP_SEED, stream=stream, items_of=protocol.suite)


def ranks(estimates: Sequence[Estimate]) -> list[tuple[int, int]]:
    """Best and worst rank of each: intervals that overlap are a tie, so only those wholly above or below count."""
    lows = np.sort([one.low for one in estimates])
    highs = np.sort([one.high for one in estimates])
    n = len(estimates)
    return [
        (
            1 + n - int(np.searchsorted(lows, one.high, side="right")),
            n - int(np.searchsorted(highs, one.low, side="left")),
        )
        for one in estimates
    ]


def baselines(arm: Arm, arms: Sequence[Arm]) -> list[int]:
    """The places of the vanilla arms this one is compared with: ``ppo`` of its own study, else what differs from it in
    nothing but the intervention. None for a vanilla arm.

    Vanilla is ``ppo`` with one clip range for both sides and no entropy bonus. Where every ``ppo`` arm that fits has
    another clip range or a bonus, those that differ in nothing but ``steer.*`` count.
    """
    if arm.method == BASELINE and _plain(arm):
        return []
    own = [place for place, one in enumerate(arms) if one.method == BASELINE and one is not arm]
    study = arm.runs[0].study
    same_study = [place for place in own if study is not None and arms[place].runs[0].study == study]
    plain = [place for place in same_study or own if _plain(arms[place])]
    fitting = plain if same_study else [place for place in plain if _without(arms[place], True) == _without(arm, True)]
    if fitting or arm.method == BASELINE:
        return fitting
    return same_study or [place for place in own if _without(arms[place], False) == _without(arm, False)]


_VARIED = ("openrlhf.actor.eps_clip", "openrlhf.actor.dual_clip", "openrlhf.actor.entropy_coef")
"""Settings of OpenRLHF's own loss that are an arm's intervention, by the start of their names."""


def _plain(arm: Arm) -> bool:
    settings = arm.runs[0].settings
    clip = settings.get("openrlhf.actor.eps_clip_low_high")
    even = not isinstance(clip, list | tuple) or len(set(clip)) == 1
    return even and not settings.get("openrlhf.actor.entropy_coef")


def _without(arm: Arm, varied: bool) -> dict[str, Any]:
    """Settings without the intervention's own; ``varied``: and without those of OpenRLHF's loss that are one."""
    own = ("steer.", *_interventions(arm), *(_VARIED if varied else ()))
    return {key: value for key, value in arm.runs[0].settings.items() if not key.startswith(own)}


def _interventions(arm: Arm) -> tuple[str, ...]:
    """The section of an intervention's settings is called after it: ``openrlhf.clip_cov.ratio``."""
    return tuple(f"openrlhf.{name}." for name in (arm.method, arm.method.replace("_", "-")))


def _differences(
    arms: Sequence[Arm], samples: Sequence[Sample], draws: Floats, protocol: Protocol
) -> list[Estimate | None]:
    """Each arm against all seeds of its baselines together."""
    pooled: dict[tuple[int, ...], tuple[Sample, Floats]] = {}
    found: list[Estimate | None] = []
    for arm, sample, drawn in zip(arms, samples, draws, strict=True):
        places = tuple(baselines(arm, arms))
        if places and places not in pooled:
            together = Sample(np.concatenate([samples[place].values_SI for place in places]))
            pooled[places] = together, suite_draws(protocol, [together], _OTHER_SIDE)[0]
        found.append(difference(sample, pooled[places][0], drawn, pooled[places][1]) if places else None)
    return found


def _mean(values: Sequence[float | None]) -> float | None:
    """The mean of all; None when one is not recorded."""
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known and len(known) == len(values) else None


def _entropy(run: Run) -> tuple[float | None, float | None]:
    """Policy entropy at the last step and at its lowest, nats."""
    values = series(run.metrics, ENTROPY).values
    return (values[-1], min(values)) if values else (None, None)
