"""Evaluate final checkpoints on a suite: generate, grade, keep every sample. One process serves many runs.

A run that cannot be evaluated is an outcome with a reason; the others go on.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from .generate import Completion, Engine, Sampling
from .plan import CHAT, Plan, make_meta, make_plan, request_seed
from .records import Meta, Record, RecordFile, Verdict, load_evaluation, read_meta
from .suites import Item

REQUESTS_AT_ONCE = 1024  # generated, graded and made durable together
Say = Callable[[str], None]


@dataclass(frozen=True)
class Outcome:
    """What became of one run's evaluation."""

    run: Path
    suite: str
    state: Literal["evaluated", "already evaluated", "failed"]
    reason: str | None = None
    samples: int = 0
    generated: int = 0
    seconds: float = 0.0


def evaluate_runs(
    runs: Sequence[Path], suite: str | None = None, redo: bool = False, say: Say = print
) -> list[Outcome]:
    """Evaluate each run's checkpoint on ``suite`` (None: the one its own config names), one after the other.

    What is already complete is left as it is; what was interrupted continues. ``redo`` throws old records away.
    Starts vLLM inside this process on a machine without CUDA: call it from a process of its own.
    """
    outcomes = []
    for path in runs:
        started = time.monotonic()
        try:
            outcome = _evaluate(path, suite, redo, started)
        except (ValueError, OSError, RuntimeError) as error:  # ours, and what vLLM says of a checkpoint it cannot load
            outcome = Outcome(path, suite or "", "failed", str(error), seconds=time.monotonic() - started)
        outcomes.append(outcome)
        say(describe(outcome))
    return outcomes


def describe(outcome: Outcome) -> str:
    """One line a person can read."""
    where = f"{outcome.run}: {outcome.suite}".rstrip(": ")
    if outcome.state == "failed":
        return f"{where}: failed: {outcome.reason}"
    kept = outcome.samples - outcome.generated
    parts = f"{outcome.generated} generated" + (f", {kept} kept" if kept else "")
    return f"{where}: {outcome.state}, {outcome.samples} samples ({parts}) in {outcome.seconds:.1f} s"


def _evaluate(path: Path, suite: str | None, redo: bool, started: float) -> Outcome:
    plan = make_plan(path, suite)
    with RecordFile(plan.records_path, discard=redo) as file:
        if redo:
            plan.meta_path.unlink(missing_ok=True)
        _require_same(plan, read_meta(plan.meta_path))
        missing = _missing(plan, file.records)
        if not missing and _is_complete(plan):
            return Outcome(path, plan.suite.name, "already evaluated", samples=len(file.records))
        make_meta(plan, complete=False).write(plan.meta_path)
        for records in _sample(plan, missing):
            file.append(records)
        if len(file.records) != plan.protocol.expected_records:
            raise ValueError(f"{file.path}: {len(file.records)} records, expected {plan.protocol.expected_records}")
        make_meta(plan, complete=True).write(plan.meta_path)
        seconds = time.monotonic() - started
        return Outcome(path, plan.suite.name, "evaluated", None, len(file.records), len(missing), seconds)


def _require_same(plan: Plan, old: Meta | None) -> None:
    """Refuse to mix records of two protocols or of two checkpoints in one file."""
    if old is None:
        return
    now_, then = vars(plan.protocol), vars(old.protocol)
    changed = [f"{key} {then[key]!r} -> {now_[key]!r}" for key in now_ if now_[key] != then[key]]
    if old.checkpoint_sha256 != plan.checkpoint_sha256:
        changed.append("the checkpoint's files")
    if changed:
        raise ValueError(f"{plan.meta_path} is of another evaluation ({'; '.join(changed)}): use --redo to replace it")


def _is_complete(plan: Plan) -> bool:
    try:
        load_evaluation(plan.run.eval, plan.suite.name)
    except ValueError:
        return False
    return True


def _missing(plan: Plan, records: Sequence[Record]) -> list[tuple[Item, int]]:
    """Items and sample numbers that have no record yet. ``ValueError`` for records that are not of this suite."""
    samples = range(plan.protocol.n_samples)
    wanted = {(item.id, sample): (item, sample) for item in plan.suite.items for sample in samples}
    done = {record.key for record in records}
    if odd := sorted(done - wanted.keys()):
        raise ValueError(f"{plan.records_path}: {len(odd)} records are not of this suite ({odd[0]}): use --redo")
    return [one for key, one in wanted.items() if key not in done]


def _sample(plan: Plan, missing: Sequence[tuple[Item, int]]) -> Iterator[list[Record]]:
    """Graded records of what is missing, a batch at a time."""
    if not missing:
        return
    protocol = plan.protocol
    sampling = Sampling(protocol.temperature, protocol.top_p, protocol.max_new_tokens)
    texts = sorted({plan.text(item) for item, _ in missing})
    chat = protocol.prompt == CHAT
    try:
        with closing(Engine(plan.run.checkpoint, texts, sampling, chat)) as engine:
            for start in range(0, len(missing), REQUESTS_AT_ONCE):
                yield _batch(plan, missing[start : start + REQUESTS_AT_ONCE], engine)
    except (OSError, RuntimeError, ValueError):
        raise
    except Exception as error:  # vLLM asserts on some checkpoints and finds keys missing in others
        raise RuntimeError(f"{type(error).__name__}: {error}") from error


def _batch(plan: Plan, asked: Sequence[tuple[Item, int]], engine: Engine) -> list[Record]:
    seeds = [request_seed(plan.protocol.seed, item.id, sample) for item, sample in asked]
    answers = engine.generate([plan.text(item) for item, _ in asked], seeds)
    return [
        _record(plan, item, sample, seed, answer)
        for (item, sample), seed, answer in zip(asked, seeds, answers, strict=True)
    ]


def _record(plan: Plan, item: Item, sample: int, seed: int, answer: Completion) -> Record:
    """A truncated answer is not judged on what it happened to say last, but the grader's opinion is kept as reason."""
    grade = plan.grader.grade(answer.text, item.gold)
    verdict: Verdict = grade.state
    reason = grade.reason
    if answer.truncated:
        verdict, reason = "truncated", f"cut at {plan.protocol.max_new_tokens} tokens; graded as it is: {grade.state}"
    return Record(
        item=item.id,
        level=item.level,
        sample=sample,
        seed=seed,
        prompt=plan.text(item),
        output=answer.text,
        answer=grade.answer,
        gold=item.gold,
        verdict=verdict,
        reason=reason,
        grader=plan.protocol.grader,
    )
