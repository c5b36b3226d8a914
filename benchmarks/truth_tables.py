"""What influence_truth.py measured, as tables in Markdown: one column a seed, then mean and range."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from steer_analysis.agreement import Agreement

SUM_AIM, SOURCE_AIM = 0.1, 0.99


@dataclass(frozen=True)
class Truth:
    """Of one seed and optimizer. Changes and predictions of the mean entropy are in nats per unit rate."""

    tokens: int
    with_advantage: int
    entropy: float
    gradient_norm: float
    measured: Mapping[float, float]
    predicted: Mapping[str, float]
    source: Mapping[float, Mapping[str, Agreement]]
    target: Mapping[str, Agreement]


def row(label: str, values: Sequence[float], form: str, aim: str = "", cells: Sequence[str] = ()) -> str:
    """A line of Markdown: a cell for each seed (``cells``, or the values themselves), then their mean and range."""
    shown = cells or [form.format(value) for value in values]
    spread = f"{form} ({form} to {form})".format(statistics.mean(values), min(values), max(values))
    return f"| {label} | {' | '.join(shown)} | {spread} | {aim} |"


def table(truths: Sequence[Truth], seeds: Sequence[int], rates: Sequence[float], rate: float, aimed: bool) -> str:
    """All that was found under one optimizer; ``rate`` is the one of the source- and target-wise measurements."""
    lines = [
        "| | " + " | ".join(f"seed {seed}" for seed in seeds) + " | mean (min to max) | aim |",
        "|---" * (len(seeds) + 3) + "|",
        row("response tokens", [one.tokens for one in truths], "{:.0f}"),
        row("of these with an advantage", [one.with_advantage for one in truths], "{:.0f}"),
        row("mean entropy before, nats", [one.entropy for one in truths], "{:.3f}"),
        row("norm of the gradient", [one.gradient_norm for one in truths], "{:.2f}"),
        *sum_rows(truths, rates, rate, aimed),
        *(
            line
            for each in truths[0].source
            for line in agreement_rows(f"source-wise, rate {each:g}", [one.source[each] for one in truths], aimed)
        ),
        *agreement_rows("target-wise", [one.target for one in truths], False),
    ]
    return "\n".join(lines)


def sum_rows(truths: Sequence[Truth], rates: Sequence[float], rate: float, aimed: bool) -> list[str]:
    """Measured changes, and predicted by measured: the whole influence at every rate, all others at ``rate``."""
    lines = [
        row(f"change of mean entropy, rate {each:g}, nats", [one.measured[each] * each for one in truths], "{:+.5f}")
        for each in rates
    ]
    shown = [("influence", each) for each in rates]
    shown += [(name, rate) for name in truths[0].predicted if name != "influence"]
    for name, each in shown:
        ratios = [one.predicted[name] / one.measured[each] for one in truths]
        aim = ""
        if aimed and name == "influence":
            reached = all(abs(ratio - 1) <= SUM_AIM for ratio in ratios)
            aim = f"within {SUM_AIM:.0%}: {'reached' if reached else 'missed'}"
        lines.append(row(f"predicted / measured, {name}, rate {each:g}", ratios, "{:.4g}", aim))
    return lines


def agreement_rows(what: str, found: Sequence[Mapping[str, Agreement]], aimed: bool) -> list[str]:
    """PCC / SRCC / SRCC of magnitudes for each seed; mean and range of the PCC. ``n``: tokens, one number if the same
    for every seed."""
    lines = []
    for name in found[0]:
        every = [(one[name].pcc.value, one[name].srcc.value, one[name].srcc_magnitude.value) for one in found]
        assert all(value is not None for values in every for value in values), f"{what} {name} is not defined"
        pccs, aim = [float(values[0] or 0.0) for values in every], ""
        if aimed and name == "influence":
            aim = f"PCC {SOURCE_AIM}: {'reached' if min(pccs) >= SOURCE_AIM else 'missed'}"
        cells = [" / ".join(f"{value:.3f}" for value in values) for values in every]
        counts = " / ".join(dict.fromkeys(str(one[name].pcc.n) for one in found))
        lines.append(row(f"{what}, {name} (n {counts})", pccs, "{:.4f}", aim, cells))
    return lines
