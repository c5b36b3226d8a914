"""Several suites in one table: a column for each, and their average (one weight each) where all of them are there."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from steer_experiments.data.sources import GROUPS

from .arms import Arm
from .leaderboard import Leaderboard, Row, Table, baselines, ranks, suite_draws
from .records import Protocol
from .runs import Run
from .statistics import Estimate, Floats, Sample, interval


@dataclass(frozen=True)
class CombinedRow:
    """An arm's rows by suite. ``average``, ``difference`` and ranks only where every suite is there, over the runs that
    have them all."""

    arm: Arm
    by_suite: Mapping[str, Row]
    average: Estimate | None
    difference: Estimate | None
    first: int | None
    last: int | None


@dataclass(frozen=True)
class Combined:
    """Rows whose suites were measured under the same protocols, best average first, then those without one."""

    name: str
    suites: tuple[str, ...]
    protocols: Mapping[str, Protocol]
    rows: Sequence[CombinedRow]


@dataclass(frozen=True)
class _Member:
    arm: Arm
    rows: dict[str, Row]


def combine(board: Leaderboard) -> list[Combined]:
    """A combined table for each group of which two suites were evaluated, one for each set of protocols."""
    found = []
    for name, suites in GROUPS.items():
        tables = [table for table in board.tables if table.protocol.suite in suites]
        if len({table.protocol.suite for table in tables}) > 1:
            found += [_combined(name, suites, protocols, rows) for protocols, rows in _sets(tables)]
    return sorted(found, key=lambda one: -len(one.rows))


def _sets(tables: Sequence[Table]) -> list[tuple[dict[str, Protocol], list[_Member]]]:
    """Arms that agree in the protocol of every suite they share. An arm evaluated on one suite under two protocols
    takes part under the one with most rows."""
    members: dict[int, _Member] = {}
    for table in tables:
        for row in table.rows:
            rows = members.setdefault(id(row.arm), _Member(row.arm, {})).rows
            rows.setdefault(table.protocol.suite, row)
    protocol_of = {id(row): table.protocol for table in tables for row in table.rows}
    sets: list[tuple[dict[str, Protocol], list[_Member]]] = []
    for member in sorted(members.values(), key=lambda one: -len(one.rows)):
        own = {suite: protocol_of[id(row)] for suite, row in member.rows.items()}
        for protocols, together in sets:
            if all(protocols.get(suite, protocol) == protocol for suite, protocol in own.items()):
                protocols.update(own)
                together.append(member)
                break
        else:
            sets.append((own, [member]))
    return sets


def _combined(
    name: str, suites: tuple[str, ...], protocols: Mapping[str, Protocol], members: Sequence[_Member]
) -> Combined:
    whole = [(member, runs) for member in members if (runs := _complete_runs(member, suites))]
    averages = _averages(whole, suites, protocols)
    places = ranks([average for average, _ in averages])
    rows = [
        CombinedRow(member.arm, member.rows, average, difference, *place)
        for (member, _), (average, difference), place in zip(whole, averages, places, strict=True)
    ]
    rows.sort(key=lambda row: -row.average.mean if row.average else 0.0)
    ranked = {id(row.arm) for row in rows}
    rest = [member for member in members if id(member.arm) not in ranked]
    rows += [CombinedRow(member.arm, member.rows, None, None, None, None) for member in rest]
    return Combined(name, suites, protocols, rows)


def _complete_runs(member: _Member, suites: Sequence[str]) -> list[Run]:
    """The arm's runs that have a score on every suite."""
    if any(suite not in member.rows for suite in suites):
        return []
    scored = [{run.path for run in member.rows[suite].runs} for suite in suites]
    return [run for run in member.arm.runs if all(run.path in paths for paths in scored)]


def _averages(
    whole: Sequence[tuple[_Member, list[Run]]], suites: Sequence[str], protocols: Mapping[str, Protocol]
) -> list[tuple[Estimate, Estimate | None]]:
    """Mean over suites and its paired difference: items drawn in each suite, training seeds once for all suites."""
    if not whole:
        return []
    arms = [member.arm for member, _ in whole]
    places = [tuple(baselines(arm, arms)) for arm in arms]
    pools = list(dict.fromkeys(place for place in places if place))
    means, draws = np.zeros(len(whole)), None
    other_means, other_draws = np.zeros(len(pools)), None
    for suite in suites:
        samples = [_sample(member.rows[suite], runs) for member, runs in whole]
        pooled = [Sample(np.concatenate([samples[place].values_SI for place in pool])) for pool in pools]
        draws = _added(draws, suite_draws(protocols[suite], samples))
        other_draws = _added(other_draws, suite_draws(protocols[suite], pooled, stream=1))
        means += [sample.mean for sample in samples]
        other_means += [sample.mean for sample in pooled]
    assert draws is not None
    assert other_draws is not None
    n_items, count = sum(protocols[suite].n_items for suite in suites), len(suites)
    found: list[tuple[Estimate, Estimate | None]] = []
    for index, (_, runs) in enumerate(whole):
        average = Estimate(means[index] / count, *interval(draws[index] / count), n_items, len(runs))
        against = None
        if places[index]:
            pool = pools.index(places[index])
            low, high = interval((draws[index] - other_draws[pool]) / count)
            fewest = min(len(runs), sum(len(whole[place][1]) for place in pools[pool]))
            against = Estimate((means[index] - other_means[pool]) / count, low, high, n_items, fewest)
        found.append((average, against))
    return found


def _added(total: Floats | None, more: Floats) -> Floats:
    return more if total is None else total + more


def _sample(row: Row, runs: Sequence[Run]) -> Sample:
    paths = {run.path for run in runs}
    chosen = [scores for run, scores in zip(row.runs, row.scores, strict=True) if run.path in paths]
    return Sample(np.stack([one.accuracy_I for one in chosen]))
