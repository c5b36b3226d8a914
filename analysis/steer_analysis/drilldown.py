"""The data behind "item by item" on a page: what each row got right, and raw outputs as far as they fit.

Model outputs are hostile text: they travel as JSON in which no ``<`` occurs, and the page shows them as text only.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from markupsafe import Markup
from steer_experiments.run_dir import RunDir

from .leaderboard import BASELINE, Leaderboard, Row, Table
from .records import VERDICTS, Evaluation, Record, load_evaluation
from .runs import Run

BUDGET = 3_500_000  # characters of prompts and outputs on a page
MOST_ROWS = 40  # columns of counts in a suite
MOST_CELLS = 150_000  # counts in a suite: rows times items
_FIRST_RUNS = 4  # that share a suite's budget before others get what is left
_MOST_READ = 24  # runs whose records are read for a suite
_HEAD, _TAIL = 600, 1_200  # characters kept of a longer output; answers stand at the end
_PROMPT = 1_500


@dataclass
class _Chosen:
    """What of a suite goes on the page, and how much."""

    budget: int
    outputs: list[list[Any]] = field(default_factory=list)
    prompts: dict[str, tuple[str, str, str]] = field(default_factory=dict)
    """Item -> level, prompt, gold."""
    used: int = 0
    cut: int = 0


def drilldown(board: Leaderboard, budget: int = BUDGET) -> Markup:
    """The JSON of every suite, to stand in a ``script`` element of type ``application/json``."""
    share = budget // max(1, len(board.tables))
    value = {"verdicts": VERDICTS, "suites": [_suite(table, share) for table in board.tables]}
    return Markup(in_script(json.dumps(value, separators=(",", ":"), ensure_ascii=False, allow_nan=False)))


def in_script(text: str) -> str:
    """JSON that cannot end its ``script`` element, open a comment or break a line: ``<``, ``>``, ``&`` and the two line
    separators only occur inside strings, where they can be written as escapes."""
    for sign in "<>&\u2028\u2029":
        text = text.replace(sign, f"\\u{ord(sign):04x}")
    return text


def _suite(table: Table, budget: int) -> dict[str, Any]:
    items = table.rows[0].scores[0].items
    rows = _columns(table, len(items))
    chosen = _Chosen(budget)
    order = list(_runs(rows))
    whole = sum(row.scores[0].n * len(items) * len(row.runs) for row in table.rows)
    for place, (column, run) in enumerate(order[:_MOST_READ]):
        left = chosen.budget - chosen.used
        if left <= 0:
            break
        waiting = max(1, min(_FIRST_RUNS, len(order)) - place)
        _choose(chosen, column, run, table.protocol.suite, left // waiting)
    samples = table.protocol.n_samples
    return {
        "name": f"{table.protocol.suite} ({table.protocol.hash})",
        "n": samples,
        "rows": [row.arm.label for row in rows],
        "seeds": [len(row.runs) for row in rows],
        "items": [[item, *chosen.prompts.get(item, ("", "", ""))] for item in items],
        "right": [[sum(one.ballots[place].right for one in row.scores) for row in rows] for place in range(len(items))],
        "outputs": chosen.outputs,
        "note": _note(len(chosen.outputs), whole, chosen.cut, len(rows), len(table.rows)),
    }


def _columns(table: Table, n_items: int) -> list[Row]:
    """The best rows and the baseline."""
    most = max(2, min(MOST_ROWS, MOST_CELLS // max(1, n_items)))
    baseline = [place for place, row in enumerate(table.rows) if row.arm.method == BASELINE][:1]
    best = [place for place in range(len(table.rows)) if place not in baseline]
    return [table.rows[place] for place in sorted(baseline + best[: most - len(baseline)])]


def _runs(rows: Sequence[Row]) -> Iterator[tuple[int, Run]]:
    """(column, run): the best row and the baseline first, then the others, then their further seeds."""
    places = sorted(range(len(rows)), key=lambda place: (place != 0, rows[place].arm.method != BASELINE, place))
    for seed in range(max((len(row.runs) for row in rows), default=0)):
        for place in places:
            if seed < len(rows[place].runs):
                yield place, rows[place].runs[seed]


def _choose(chosen: _Chosen, column: int, run: Run, suite: str, budget: int) -> None:
    """Add a run's outputs, the first sample of every item before any second, until ``budget`` is used."""
    try:
        evaluation = load_evaluation(RunDir(run.path).eval, suite)
    except ValueError:
        return  # changed since it was scored: its counts stay, its texts are left out
    stop = chosen.used + budget
    for record in _in_turn(evaluation):
        if chosen.used >= stop:
            return
        _add(chosen, column, run, record)


def _in_turn(evaluation: Evaluation) -> list[Record]:
    return sorted(evaluation.records, key=lambda record: (record.sample, record.item))


def _add(chosen: _Chosen, column: int, run: Run, record: Record) -> None:
    if record.item not in chosen.prompts:
        prompt, _ = shorten(record.prompt, _PROMPT // 2, _PROMPT // 2)
        chosen.prompts[record.item] = (record.level, prompt, record.gold[:_PROMPT])
        chosen.used += len(prompt) + len(record.gold) + 20
    output, cut = shorten(record.output, _HEAD, _TAIL)
    chosen.cut += cut > 0
    answer = None if record.answer is None else record.answer[:300]
    line = [record.item, column, run.seed, record.sample, VERDICTS.index(record.verdict), answer, output]
    chosen.outputs.append([*line, record.reason[:300] if record.reason else None])
    chosen.used += len(output) + len(answer or "") + len(record.reason or "") + len(record.item) + 25


def shorten(text: str, head: int, tail: int) -> tuple[str, int]:
    """The first and last characters of a longer text, with how many were left out said between; and that number."""
    cut = len(text) - head - tail
    if cut <= 60:  # the sentence would be longer than what it replaces
        return text, 0
    return f"{text[:head]}\n[… {cut} characters left out …]\n{text[-tail:]}", cut


def _note(shown: int, whole: int, cut: int, columns: int, rows: int) -> str:
    """What is here and what is not."""
    parts = [f"{shown} of {whole} outputs are on this page"]
    if shown < whole:
        parts.append("best row and baseline first; all of them are in each run's eval folder")
    if cut:
        parts.append(f"{cut} of them shortened in the middle")
    if columns < rows:
        parts.append(f"counts of {columns} of {rows} rows")
    return "; ".join(parts) + "."
