"""The leaderboard as JSON: everything the other formats show, with the curves and where each number comes from."""

import json
from collections.abc import Sequence
from typing import Any

from .combined import Combined, combine
from .kcurves import Curve, k_curves
from .leaderboard import BASELINE, BOOTSTRAP_SEED, Leaderboard, Row, Table, Unranked
from .provenance import protocol_facts, row_facts
from .reported import Reported, beside
from .statistics import CONFIDENCE, RESAMPLES, Estimate

VERSION = 1
"""Of this format: raised when a reader of the old one would be misled."""


def to_json(board: Leaderboard, reported: Sequence[Reported] | None = None) -> str:
    """Accuracies from 0 to 1, entropies in nats; what was not recorded is null or says so."""
    value = {
        "version": VERSION,
        "interval": {"confidence": CONFIDENCE, "resamples": RESAMPLES, "seed": BOOTSTRAP_SEED},
        "baseline": BASELINE,
        "combined": [_combined(one) for one in combine(board)],
        "tables": [_table(one) for one in board.tables],
        "without_a_row": [_unranked(one) for one in board.unranked],
        "reported": [_reported(one) for one in (beside(board) if reported is None else reported)],
    }
    return json.dumps(value, indent=1, allow_nan=False, ensure_ascii=False) + "\n"


def _unranked(one: Unranked) -> dict[str, Any]:
    own = {"run": one.run.label, "path": str(one.run.path), "method": one.run.method, "seed": one.run.seed}
    return own | {"state": one.state, "reason": one.reason, "step": one.run.step}


def _estimate(value: Estimate | None) -> dict[str, Any] | None:
    return None if value is None else dict(vars(value))


def _curve(curve: Curve) -> dict[str, Any]:
    return {str(k): _estimate(value) for k, value in curve.items()}


def _table(table: Table) -> dict[str, Any]:
    curves = k_curves(table.protocol, table.rows)
    rows = [
        _row(row, table) | {"pass_at_k": _curve(one.passed), "maj_at_k": _curve(one.majority)}
        for row, one in zip(table.rows, curves, strict=True)
    ]
    return {"suite": table.protocol.suite, "protocol": dict(protocol_facts(table.protocol)), "rows": rows}


def _row(row: Row, table: Table) -> dict[str, Any]:
    n = sum(row.verdicts.values())
    return {
        "run": row.arm.label,
        "method": row.arm.method,
        "parameters": row.arm.parameters,
        "rank": [row.first, row.last],
        "tied_with_leader": row.tied,
        "accuracy": _estimate(row.accuracy),
        "difference": _estimate(row.difference),
        "verdicts": dict(row.verdicts),
        "shares": {verdict: count / n for verdict, count in row.verdicts.items()},
        "entropy_final": row.entropy_final,
        "entropy_min": row.entropy_min,
        "runs": [{"path": str(run.path), "seed": run.seed, "steps": run.step} for run in row.runs],
        "provenance": dict(row_facts(row, table.protocol)),
    }


def _combined(table: Combined) -> dict[str, Any]:
    rows = [
        {
            "run": row.arm.label,
            "method": row.arm.method,
            "parameters": row.arm.parameters,
            "rank": None if row.first is None else [row.first, row.last],
            "accuracy": {suite: _estimate(one.accuracy) for suite, one in row.by_suite.items()},
            "average": _estimate(row.average),
            "difference": _estimate(row.difference),
        }
        for row in table.rows
    ]
    protocols = {suite: protocol.hash for suite, protocol in table.protocols.items()}
    return {"name": table.name, "suites": table.suites, "protocols": protocols, "rows": rows}


def _reported(paper: Reported) -> dict[str, Any]:
    about = {key: value for key, value in vars(paper).items() if key != "rows"}
    return about | {"ranked": False, "unit": "per cent", "rows": [dict(vars(row)) for row in paper.rows]}
