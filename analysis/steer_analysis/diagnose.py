"""``steer diagnose``: how accurate the entropy-change estimators were in a run, as numbers, JSON and tables of text."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.box import SIMPLE
from rich.console import Group
from rich.table import Table
from rich.text import Text
from steer_experiments.run_dir import now, write_json

from .agreement import BOOTSTRAP_SEED, RESAMPLES, Agreement, Value
from .estimators import Accuracy, Pooled, Quadrant, Sums, pool, quadrants, source_wise, sums, target_wise
from .probes import ProbeStep, load_probes
from .runs import Run, read_run
from .shaping import plan_shaping, shape_steps
from .statistics import CONFIDENCE

JSON_NAME, PAGE_NAME = "diagnose.json", "diagnose.html"
WIDTH = 150  # columns of the tables where the output is no terminal
STATISTICS = {
    "pcc": "PCC",
    "srcc": "SRCC",
    "srcc_magnitude": "SRCC of magnitudes",
    "sign": "equal signs",
    "scale": "scale",
    "mse": "MSE",
    "mse_zero": "MSE of 0",
}
"""The fields of :class:`.agreement.Agreement` that are shown, and how they are called."""
PERCENT = ("sign",)
SIGNED = ("pcc", "srcc", "srcc_magnitude")


@dataclass(frozen=True)
class Diagnosis:
    """Everything computed from the probe of one run."""

    run: Run
    pooled: Pooled
    estimators: Sequence[str]
    target: Mapping[str, Accuracy]
    source: Mapping[str, Accuracy]
    sums: Mapping[str, Sums]
    quadrants: Sequence[Quadrant]
    problems: Sequence[str]
    """What could not be read or computed, or makes the numbers mean less."""


def diagnose(path: Path) -> Diagnosis:
    """The diagnosis of the run at ``path``. Raises ``ConfigError`` when it has no probe file that can be used."""
    probes = load_probes(path)
    pooled, names = pool(probes.steps), probes.estimators
    candidates, loss, notes = plan_shaping(path)
    shaped, not_shaped = shape_steps(candidates, probes.steps, loss)
    source = {name: source_wise(pooled, name) for name in names}
    target = {name: target_wise(pooled, name) for name in names}
    return Diagnosis(
        run=read_run(path),
        pooled=pooled,
        estimators=names,
        target=target,
        source={name: found for name, found in source.items() if found},
        sums={name: sums(pooled, name) for name in names},
        quadrants=quadrants(pooled, names, shaped),
        problems=[*probes.problems, *_left_out(target), *_changing(probes.steps), *notes, *not_shaped],
    )


def _left_out(target: Mapping[str, Accuracy]) -> list[str]:
    return [
        f"{name}: {found.pooled.left_out} tokens left out, Omega or the measured change is not finite or not stored"
        for name, found in target.items()
        if found.pooled.left_out
    ]


def _changing(steps: Sequence[ProbeStep]) -> list[str]:
    """Omega is per unit step size: where that changes, one scale factor over all steps means less."""
    seen: dict[str, list[float]] = {
        "learning rate": sorted({step.learning_rate for step in steps}),
        "number of updates": sorted({float(step.updates) for step in steps}),
    }
    return [
        f"the {what} was not the same in all steps ({values[0]:g} to {values[-1]:g}): pooled scale factors mix them"
        for what, values in seen.items()
        if len(values) > 1
    ]


def settings(found: Diagnosis) -> dict[str, Any]:
    """What the intervals are: the same for every number over steps."""
    return {
        "confidence": CONFIDENCE,
        "interval": "percentile bootstrap over clusters",
        "clustered_by": found.pooled.clustered_by,
        "clustered_by_within_a_step": "sequence",
        "resamples": RESAMPLES,
        "seed": BOOTSTRAP_SEED,
    }


def write_numbers(found: Diagnosis, path: Path) -> None:
    """``diagnose.json``: every number as ``{"value", "low", "high", "n"}``; null where it is not defined."""
    steps = [
        {"step": one.step, "tokens": one.sequence.size, "sequences": len(set(one.sequence.tolist()))}
        | {"updates": one.updates, "learning_rate": one.learning_rate, "clip": list(one.clip)}
        for one in found.pooled.steps
    ]
    whole: dict[str, Any] = {
        "made": now(),
        "run": found.run.label,
        "method": found.run.method,
        "settings": settings(found),
    }
    whole |= {"tokens": int(found.pooled.step.size), "steps": steps, "problems": list(found.problems)}
    whole |= {
        "target": {name: asdict(one) for name, one in found.target.items()},
        "source": {name: asdict(one) for name, one in found.source.items()},
        "sums": {name: asdict(one) for name, one in found.sums.items()},
        "quadrants": [asdict(one) for one in found.quadrants],
    }
    write_json(path, whole)


# --- as text ---------------------------------------------------------------------------------------------------------


def show(value: Value, name: str = "") -> str:
    """A number with its interval in the digits that suit it, or that it is not defined."""
    if value.value is None:
        return "not defined"
    low, high = value.low, value.high
    interval = "no interval" if low is None or high is None else f"{digits(low, name)}, {digits(high, name)}"
    return f"{digits(value.value, name)} [{interval}]"


def digits(number: float, name: str = "") -> str:
    """Correlations as ``+0.12``, shares in per cent, everything else with three significant digits."""
    if name in SIGNED:
        return f"{number:+.2f}"
    return f"{100 * number:.1f}" if name in PERCENT else f"{number:.3g}"


def heading(name: str) -> str:
    return STATISTICS[name] + (", %" if name in PERCENT else "")


def as_text(found: Diagnosis) -> Group:
    """The diagnosis as tables for a terminal or a log."""
    pooled = found.pooled
    parts: list[Table | Text] = [
        Text(f"{found.run.label} ({found.run.method}): {len(pooled.steps)} probed steps, {pooled.step.size} tokens"),
        _agreements("Omega against the measured change of entropy at the same token", found.target),
    ]
    if found.source:
        parts.append(_agreements("Omega against influence, the effect of a token's own update", found.source))
    parts += [_sums(found), _quadrants(found)]
    if found.quadrants[0].mass:
        parts.append(_masses(found))
    drawn = f"{RESAMPLES} resamples of whole {pooled.clustered_by}s, seed {BOOTSTRAP_SEED}"
    parts.append(Text(f"[...]: 95 % percentile bootstrap, {drawn}."))
    parts += [Text(f"problem: {problem}") for problem in found.problems]
    return Group(*parts)


def _two_lines(cells: Iterable[str]) -> list[str]:
    """Each interval below its number: the table stays narrow."""
    return [cell.replace(" [", "\n[") for cell in cells]


def _table(title: str, *head: str) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", box=SIMPLE, pad_edge=False)
    for index, name in enumerate(head):
        table.add_column(name, justify="left" if index == 0 else "right", overflow="fold")
    return table


def _agreements(title: str, accuracies: Mapping[str, Accuracy]) -> Table:
    names = [name for name in STATISTICS if name != "mse_zero"]
    table = _table(title, "estimator", *(heading(name) for name in names), "n", "left out")
    for estimator, one in accuracies.items():
        table.add_row(estimator, *_two_lines(agreement_cells(one.pooled, names)))
    return table


def agreement_cells(one: Agreement, names: Sequence[str]) -> list[str]:
    """The shown statistics, then n and how many were left out."""
    return [*(show(getattr(one, name), name) for name in names), str(one.mse.n), str(one.left_out)]


def _sums(found: Diagnosis) -> Table:
    names = ["pcc", "sign", "scale"]
    head = ("estimator", *(heading(name) for name in names), "n steps", "left out")
    table = _table("Mean Omega of a step against the measured change of mean entropy", *head)
    for estimator, one in found.sums.items():
        table.add_row(estimator, *_two_lines(agreement_cells(one.over_steps, names)))
    return table


def _quadrants(found: Diagnosis) -> Table:
    head = ("quadrant", "tokens", "share, %", "mean change", *(f"mean {name}" for name in found.estimators))
    table = _table("Quadrants: I A > 0, pi > exp(-H); II A > 0, below; III A < 0, below; IV A < 0, above", *head)
    for one in found.quadrants:
        cells = [show(one.share, "sign"), show(one.change), *(show(one.omega[name]) for name in found.estimators)]
        table.add_row(one.name, str(one.tokens), *_two_lines(cells))
    return table


def _masses(found: Diagnosis) -> Table:
    names = [one.name for one in found.quadrants]
    table = _table("Weight mass, sum |A'| / sum |A|, of interventions on these tokens", "intervention", *names)
    for label in found.quadrants[0].mass:
        table.add_row(label, *_two_lines(show(one.mass[label]) for one in found.quadrants))
    return table
