"""The leaderboard as text: Markdown to read, CSV to compute with."""

import csv
import io
from collections.abc import Iterable, Sequence

from .leaderboard import BASELINE, BOOTSTRAP_SEED, Leaderboard, Row, Table
from .records import VERDICTS, Protocol
from .runs import Run
from .statistics import RESAMPLES, Estimate

_HEAD = (
    "rank",
    "run",
    "method",
    "parameters",
    "accuracy [95 %]",
    f"vs {BASELINE} [95 %]",
    "verdicts",
    "entropy final (min)",
    "steps",
    "seed",
)
_ALIGN_RIGHT = {"rank", "steps", "seed"}
FOOTNOTE = (
    "Accuracy: mean over items of the mean over samples. Intervals: 95 % percentile bootstrap over items "
    f"({RESAMPLES} resamples, seed {BOOTSTRAP_SEED}); they hold the trained model fixed and say nothing about another "
    f"training seed. ≈: the interval overlaps the leader's. vs {BASELINE}: paired, item by item, in points. "
    "Entropy in nats."
)


def to_markdown(board: Leaderboard) -> str:
    """Every table with its protocol, then the runs that have no row."""
    parts = ["# Leaderboard"]
    for table in board.tables:
        parts += [f"## {table.protocol.suite}", describe(table.protocol), _markdown(_HEAD, map_rows(table))]
    if board.tables:
        parts.append(FOOTNOTE)
    if len(board.tables) > 1:
        parts.append("Tables have different protocols: their accuracies must not be compared.")
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
    return [_cells(rank, row) for rank, row in enumerate(table.rows, start=1)]


def _cells(rank: int, row: Row) -> tuple[str, ...]:
    return (
        f"{rank} ≈" if row.tied else str(rank),
        row.run.label,
        row.run.method,
        row.parameters or "–",
        estimate(row.accuracy),
        signed(row.difference) if row.difference else "–",
        verdicts(row),
        entropy(row),
        str(row.run.step),
        "–" if row.run.seed is None else str(row.run.seed),
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
        return "–"
    return f"{row.entropy_final:.3f} ({row.entropy_min:.3f})"


def _markdown(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    rule = [("--:" if name in _ALIGN_RIGHT else "---") for name in head]
    lines = [head, rule, *([" ".join(cell.replace("|", "\\|").split()) for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def to_csv(board: Leaderboard) -> str:
    """One line for each row and each run without one (whose numbers are empty, never 0). Accuracies from 0 to 1."""
    out = io.StringIO()
    writer = csv.DictWriter(out, _CSV_HEAD, restval="", lineterminator="\n")
    writer.writeheader()
    for table in board.tables:
        for rank, row in enumerate(table.rows, start=1):
            writer.writerow(_csv_row(table.protocol, rank, row))
    for one in board.unranked:
        writer.writerow(_csv_run(one.run) | {"state": one.state, "reason": one.reason})
    return out.getvalue()


_CSV_HEAD = (
    *("protocol", "suite", "rank", "tied_with_leader", "run", "path", "method", "parameters", "state", "reason"),
    *("accuracy", "accuracy_low", "accuracy_high", "vs_ppo", "vs_ppo_low", "vs_ppo_high", "n_items", "n_samples"),
    *VERDICTS,
    *("entropy_final", "entropy_min", "steps", "seed"),
)


def _csv_run(run: Run) -> dict[str, object]:
    own = {"run": run.label, "path": run.path, "method": run.method, "state": run.state}
    return own | {"steps": run.step, "seed": run.seed}


def _csv_row(protocol: Protocol, rank: int, row: Row) -> dict[str, object]:
    ours, paired = row.accuracy, row.difference
    cells = _csv_run(row.run) | {"protocol": protocol.hash, "suite": protocol.suite, "rank": rank}
    cells |= {"tied_with_leader": row.tied, "parameters": row.parameters}
    cells |= {"accuracy": ours.mean, "accuracy_low": ours.low, "accuracy_high": ours.high}
    cells |= {"n_items": protocol.n_items, "n_samples": protocol.n_samples} | dict(row.verdicts)
    if paired:
        cells |= {"vs_ppo": paired.mean, "vs_ppo_low": paired.low, "vs_ppo_high": paired.high}
    return cells | {"entropy_final": row.entropy_final, "entropy_min": row.entropy_min}
