"""Grade the answers of an evaluation again, without generating them: with another grader, or a newer version.

The old records stay until the new file is whole. The records are replaced first and the meta file, with the new
protocol, second: a kill between the two is noticed by every reader, and regrading again mends it.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from steer_experiments.grading import Grader
from steer_experiments.run_dir import RunDir, now

from .evaluate import GRADING_THREADS, verdict_of
from .plan import close_graders, full_name, grader_of
from .records import Meta, Record, RecordFile, read_meta

Say = Callable[[str], None]


@dataclass(frozen=True)
class Regrading:
    """What became of one suite of one run. ``changed``: how many verdicts are others now."""

    run: Path
    suite: str
    state: Literal["regraded", "failed"]
    reason: str | None = None
    old: str = ""
    new: str = ""
    samples: int = 0
    changed: int = 0


def regrade_runs(
    runs: Sequence[Path], suites: Sequence[str] = (), grader: str | None = None, say: Say = print
) -> list[Regrading]:
    """Regrade the evaluated suites of each run (``suites``: only these) with ``grader`` (None: the one that graded
    them, in the version that is installed now). A suite that cannot be regraded is a failed one with its reason."""
    done = []
    try:
        for path in runs:
            found = sorted(meta.name.removesuffix(".meta.json") for meta in RunDir(path).eval.glob("*.meta.json"))
            wanted = [name for name in found if not suites or name in suites]
            lacking = [name for name in suites if found and name not in found]
            done += [Regrading(path, name, "failed", "not evaluated: run steer eval") for name in lacking]
            done += [Regrading(path, "", "failed", "nothing is evaluated: run steer eval")] if not found else []
            done += [_regrade(path, name, grader) for name in wanted]
    finally:
        close_graders()
    for one in done:
        say(describe(one))
    return done


def describe(one: Regrading) -> str:
    """One line a person can read."""
    where = f"{one.run}: {one.suite}".rstrip(": ")
    if one.state == "failed":
        return f"{where}: failed: {one.reason}"
    return f"{where}: {one.samples} answers regraded, {one.changed} verdicts changed ({one.old} -> {one.new})"


def _regrade(path: Path, suite: str, name: str | None) -> Regrading:
    folder = RunDir(path).eval
    try:
        with RecordFile(folder / f"{suite}.jsonl") as file:
            meta = read_meta(folder / f"{suite}.meta.json")
            assert meta is not None
            return _with_lock(path, suite, file, meta, grader_of(name or meta.protocol.grader.split("@")[0]))
    except (ValueError, OSError) as error:
        return Regrading(path, suite, "failed", str(error))


def _with_lock(path: Path, suite: str, file: RecordFile, meta: Meta, grader: Grader) -> Regrading:
    old, new = list(file.records), full_name(grader)
    with ThreadPoolExecutor(GRADING_THREADS) as pool:
        records = list(pool.map(lambda record: _again(record, grader, meta.protocol.max_new_tokens), old))
    changed = sum(one.verdict != other.verdict for one, other in zip(old, records, strict=True))
    step = {"from": meta.protocol.grader, "to": new, "time": now(), "verdicts_changed": changed}
    context = meta.context | {"regraded": [*meta.context.get("regraded", []), step]}
    file.replace(records)
    replace(meta, protocol=replace(meta.protocol, grader=new), context=context).write(
        RunDir(path).eval / f"{suite}.meta.json"
    )
    return Regrading(path, suite, "regraded", None, meta.protocol.grader, new, len(records), changed)


def _again(record: Record, grader: Grader, max_new_tokens: int) -> Record:
    grade = grader.grade(record.output, record.gold)
    verdict, reason = verdict_of(grade, record.verdict == "truncated", max_new_tokens)
    return replace(record, answer=grade.answer, verdict=verdict, reason=reason, grader=full_name(grader))
