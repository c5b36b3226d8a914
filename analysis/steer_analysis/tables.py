"""The leaderboard as text: Markdown to read, CSV to compute with."""

import csv
import io
from collections.abc import Iterable, Sequence

from .combined import Combined, CombinedRow, combine
from .kcurves import k_curves
from .leaderboard import BASELINE, BOOTSTRAP_SEED, Leaderboard, Row, Table
from .provenance import row_facts
from .records import VERDICTS, Protocol
from .reported import Reported, beside
from .runs import Run
from .statistics import RESAMPLES, Estimate

DASH = "–"
_HEAD = (
    "rank",
    "run",
    "method",
    "parameters",
    "accuracy [95 %]",
    f"vs {BASELINE} [95 %]",
    "verdicts",
    "truncated, unparsed",
    "entropy final (min)",
    "steps",
    "seeds",
)
_ALIGN_RIGHT = {"rank", "steps"}
FOOTNOTE = (
    "Accuracy: avg@n, the mean over items of the mean over samples. Intervals: 95 % percentile bootstrap over items, "
    f"and over training seeds where a row has several ({RESAMPLES} resamples, seed {BOOTSTRAP_SEED}); with one seed "
    "they hold the trained model fixed and say nothing about another training. Rank 2–5: rows whose intervals overlap "
    f"are tied, so it may be any of these places. vs {BASELINE}: paired, item by item, in points. Entropy in nats, "
    "mean over seeds."
)
REPORTED_NOTE = (
    "Reported by the paper, not measured here: other code, grader and seeds, no intervals. Never ranked with the rows "
    "above."
)


def to_markdown(board: Leaderboard, reported: Sequence[Reported] | None = None) -> str:
    """Every table with its protocol, then what papers report (None: those that report one of these suites), then the
    runs that have no row."""
    parts = ["# Leaderboard"]
    for combined in combine(board):
        parts += [f"## {combined.name}: average of {len(combined.suites)} suites", _combined(combined)]
    for table in board.tables:
        parts += [f"## {table.protocol.suite}", describe(table.protocol), _markdown(_HEAD, map_rows(table))]
        parts += _k_table(table)
    if board.tables:
        parts.append(FOOTNOTE)
    if len(board.tables) > 1:
        parts.append("Tables have different protocols: their accuracies must not be compared.")
    for paper in beside(board) if reported is None else reported:
        parts += [f"## Reported: {paper.source}", REPORTED_NOTE, f"{paper.about}. {paper.note}", _reported(paper)]
    if board.unranked:
        rows = [(one.run.label, one.run.method, one.state, one.reason) for one in board.unranked]
        parts += ["## Without a row", _markdown(("run", "method", "state", "reason"), rows)]
    if not board.tables and not board.unranked:
        parts.append("No runs yet.")
    return "\n\n".join(parts) + "\n"


def describe(protocol: Protocol) -> str:
    """The protocol in one line."""
    return (
        f"protocol {protocol.hash}: {protocol.n_items} items × {protocol.n_samples} samples, "
        f"temperature {protocol.temperature:g}, top_p {protocol.top_p:g}, {protocol.max_new_tokens} new tokens, "
        f"seed {protocol.seed}, grader {protocol.grader}, prompt {protocol.prompt}, "
        f"content {protocol.content_hash[:12]}"
    )


def map_rows(table: Table) -> list[tuple[str, ...]]:
    """The cells of a table, as text, in the order of the heading."""
    return [_cells(row) for row in table.rows]


def _cells(row: Row) -> tuple[str, ...]:
    return (
        rank(row.first, row.last),
        row.arm.label,
        row.arm.method,
        row.arm.parameters or DASH,
        estimate(row.accuracy),
        signed(row.difference) if row.difference else DASH,
        verdicts(row),
        f"{100 * row.share('truncated'):.1f} %, {100 * row.share('unparsed'):.1f} %",
        entropy(row),
        steps(row),
        seeds(row),
    )


def rank(first: int | None, last: int | None) -> str:
    """``3``, or ``2–5`` for a tie."""
    if first is None or last is None:
        return DASH
    return str(first) if first == last else f"{first}–{last}"


def seeds(row: Row) -> str:
    """The training seeds in the numbers, and how many of the arm's are not."""
    named = ", ".join(DASH if run.seed is None else str(run.seed) for run in row.runs)
    return named + (f" ({len(row.runs)} of {len(row.arm.runs)})" if len(row.runs) < len(row.arm.runs) else "")


def steps(row: Row) -> str:
    """The last training step, or the range over seeds."""
    return "–".join(
        str(step) for step in sorted({min(run.step for run in row.runs), max(run.step for run in row.runs)})
    )


def estimate(value: Estimate) -> str:
    """Per cent with interval: ``41.2 [37.0, 45.5]``."""
    return f"{100 * value.mean:.1f} [{100 * value.low:.1f}, {100 * value.high:.1f}]"


def signed(value: Estimate) -> str:
    """A difference in points with its sign and interval."""
    return f"{100 * value.mean:+.1f} [{100 * value.low:+.1f}, {100 * value.high:+.1f}]"


def verdicts(row: Row) -> str:
    """The verdicts that occur, with n."""
    counts = [f"{verdict} {count}" for verdict, count in row.verdicts.items() if count]
    return f"{', '.join(counts)}; n {sum(row.verdicts.values())}"


def entropy(row: Row) -> str:
    """Final and smallest entropy, or a dash where none was recorded."""
    if row.entropy_final is None or row.entropy_min is None:
        return DASH
    return f"{row.entropy_final:.3f} ({row.entropy_min:.3f})"


def _k_table(table: Table) -> list[str]:
    """pass@n and maj@n of every row, where there is more than one sample."""
    n = table.protocol.n_samples
    if n == 1:
        return []
    rows = [
        (one.row.arm.label, estimate(one.passed[n]), estimate(one.majority[n]) if one.majority else DASH)
        for one in k_curves(table.protocol, table.rows, [n])
    ]
    return [_markdown(("run", f"pass@{n} [95 %]", f"maj@{n} [95 %]"), rows)]


def _combined(table: Combined) -> str:
    head = ("rank", "run", "parameters", *table.suites, "average [95 %]", f"vs {BASELINE} [95 %]", "seeds")
    return _markdown(head, [combined_cells(row, table.suites) for row in table.rows])


def combined_cells(row: CombinedRow, suites: Sequence[str]) -> tuple[str, ...]:
    """The cells of a row of several suites; a dash for a suite without a number, and then for the average too."""
    return (
        rank(row.first, row.last),
        row.arm.label,
        row.arm.parameters or DASH,
        *(estimate(row.by_suite[suite].accuracy) if suite in row.by_suite else DASH for suite in suites),
        estimate(row.average) if row.average else DASH,
        signed(row.difference) if row.difference else DASH,
        str(row.average.n_seeds if row.average else max(len(one.runs) for one in row.by_suite.values())),
    )


def _reported(paper: Reported) -> str:
    head = ("model", "setting", "method", *(f"{suite} {metric}" for suite, metric in paper.metrics.items()), "average")
    rows = [
        (
            one.model,
            one.setting,
            one.method,
            *(f"{one.accuracy[suite]:.1f}" for suite in paper.suites),
            f"{one.average:.1f}",
        )
        for one in paper.rows
    ]
    return _markdown(head, rows)


def _markdown(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    rule = [("--:" if name in _ALIGN_RIGHT else "---") for name in head]
    lines = [head, rule, *([" ".join(cell.replace("|", "\\|").split()) for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def to_csv(board: Leaderboard, reported: Sequence[Reported] | None = None) -> str:
    """One line for each row, each run without one (whose numbers are empty, never 0) and each number a paper reports.

    ``kind`` says which. Accuracies from 0 to 1.
    """
    out = io.StringIO()
    writer = csv.DictWriter(out, _CSV_HEAD, restval="", lineterminator="\n")
    writer.writeheader()
    for table in board.tables:
        for row in table.rows:
            writer.writerow(_csv_row(table.protocol, row))
    for one in board.unranked:
        writer.writerow(_csv_run(one.run) | {"state": one.state, "reason": one.reason})
    for paper in beside(board) if reported is None else reported:
        writer.writerows(_csv_reported(paper))
    return out.getvalue()


FACTS = (
    *("suite revision", "content hash", "sampling seed", "decoding", "prompt template", "grader", "checkpoint rule"),
    *("training code", "training versions", "evaluation code", "evaluation versions", "GPU-hours of training"),
)
"""What a line of the CSV says of where its numbers come from."""
_CSV_HEAD = (
    *("protocol", "suite", "rank", "rank_last", "tied_with_leader", "kind", "run", "path", "method", "parameters"),
    *("state", "reason", "accuracy", "accuracy_low", "accuracy_high", "vs_ppo", "vs_ppo_low", "vs_ppo_high"),
    *("n_items", "n_samples", "n_seeds", *VERDICTS, "truncated_share", "unparsed_share"),
    *("entropy_final", "entropy_min", "steps", "seed", *FACTS),
)


def _csv_run(run: Run) -> dict[str, object]:
    own = {"kind": "without a row", "run": run.label, "path": run.path, "method": run.method, "state": run.state}
    return own | {"steps": run.step, "seed": run.seed}


def _csv_row(protocol: Protocol, row: Row) -> dict[str, object]:
    ours, paired, facts = row.accuracy, row.difference, dict(row_facts(row, protocol))
    cells: dict[str, object] = {"kind": "measured", "run": row.arm.label, "method": row.arm.method, "state": "finished"}
    cells |= {"path": ";".join(str(run.path) for run in row.runs), "seed": ";".join(str(run.seed) for run in row.runs)}
    cells |= {"protocol": protocol.hash, "suite": protocol.suite, "rank": row.first, "rank_last": row.last}
    cells |= {"tied_with_leader": row.tied, "parameters": row.arm.parameters, "steps": steps(row)}
    cells |= {"accuracy": ours.mean, "accuracy_low": ours.low, "accuracy_high": ours.high, "n_seeds": ours.n_seeds}
    cells |= {"n_items": protocol.n_items, "n_samples": protocol.n_samples} | dict(row.verdicts)
    cells |= {"truncated_share": row.share("truncated"), "unparsed_share": row.share("unparsed")}
    if paired:
        cells |= {"vs_ppo": paired.mean, "vs_ppo_low": paired.low, "vs_ppo_high": paired.high}
    return cells | {"entropy_final": row.entropy_final, "entropy_min": row.entropy_min} | {f: facts[f] for f in FACTS}


def _csv_reported(paper: Reported) -> Iterable[dict[str, object]]:
    for one in paper.rows:
        for suite, accuracy in one.accuracy.items():
            yield {
                "kind": "reported",
                "suite": suite,
                "run": f"{one.model}, {one.setting}",
                "method": one.method,
                "parameters": paper.metrics[suite],
                "reason": paper.source,
                "accuracy": round(accuracy / 100, 6),
            }
