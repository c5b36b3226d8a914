"""Evaluate checkpoints on suites: generate, grade, keep every sample. One process serves many runs, one engine all
suites of a run.

A run that cannot be evaluated is an outcome with a reason; the others go on. An answer is on disk at most two seconds
after it was finished and graded. So what kill -9 costs are the answers the engine was still at, those that waited for
their verdict, and two seconds; everything else is found again and not generated twice.
"""

import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

from steer_experiments.grading import Grade

from .engines import Source, open_source
from .generate import Completion, Request, Sampling
from .plan import Options, Plan, close_graders, make_meta, plan_model, plan_run, request_seed
from .progress import Progress
from .records import Meta, Record, RecordFile, Verdict, load_evaluation, read_meta, require_one_grader
from .suites import Item

SAVE_SECONDS = 2.0
MOST_UNGRADED = 8192  # answers in memory that wait for a verdict; then the engine waits too
GRADING_THREADS = 16
Say = Callable[[str], None]


@dataclass(frozen=True)
class Outcome:
    """What became of one run's evaluation on one suite."""

    run: Path
    suite: str
    state: Literal["evaluated", "already evaluated", "failed"]
    reason: str | None = None
    samples: int = 0
    generated: int = 0
    seconds: float = 0.0


@dataclass(frozen=True)
class Work:
    """A suite of a checkpoint with its open records file and what is missing in it."""

    plan: Plan
    file: RecordFile
    missing: Sequence[tuple[Item, int]]
    meta: Meta | None


@dataclass(frozen=True)
class _Job:
    """One sample that is wanted."""

    work: Work
    item: Item
    sample: int
    seed: int


@dataclass
class _Answered:
    job: _Job
    completion: Completion
    grade: "Future[Grade]" = field(repr=False)


def evaluate_runs(
    runs: Sequence[Path],
    options: Options | None = None,
    redo: bool = False,
    engines: int = 1,
    say: Say = print,
    tell: Say | None = None,
) -> list[Outcome]:
    """Evaluate each run's checkpoint on the suites of ``options`` (none: the one its own config names), one after the
    other.

    What is already complete is left as it is; what was interrupted continues. ``redo`` throws old records away.
    ``engines`` processes share the work, each with a GPU of its own; one engine on a machine without CUDA starts inside
    this process: call it from a process of its own. ``tell`` hears of the progress (default: standard error).
    """
    return _evaluate_all(
        [(path, partial(plan_run, path, options or Options())) for path in runs], redo, engines, say, tell
    )


def evaluate_model(
    model: Path, output: Path, options: Options, redo: bool = False, engines: int = 1, say: Say = print
) -> list[Outcome]:
    """Evaluate a Hugging Face model folder that no run trained; its records go to ``output``/eval."""
    return _evaluate_all([(output, partial(plan_model, model, output, options))], redo, engines, say, None)


def _evaluate_all(
    targets: Sequence[tuple[Path, Callable[[], list[Plan]]]], redo: bool, engines: int, say: Say, tell: Say | None
) -> list[Outcome]:
    source, outcomes = open_source(engines), []
    try:
        for path, plan in targets:
            for outcome in _evaluate(path, plan, redo, source, tell or _to_stderr):
                outcomes.append(outcome)
                say(describe(outcome))
    finally:
        source.close()
        close_graders()
    return outcomes


def _to_stderr(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def describe(outcome: Outcome) -> str:
    """One line a person can read."""
    where = f"{outcome.run}: {outcome.suite}".rstrip(": ")
    if outcome.state == "failed":
        return f"{where}: failed: {outcome.reason}"
    kept = outcome.samples - outcome.generated
    parts = f"{outcome.generated} generated" + (f", {kept} kept" if kept else "")
    return f"{where}: {outcome.state}, {outcome.samples} samples ({parts}) in {outcome.seconds:.1f} s"


def _evaluate(
    path: Path, make_plans: Callable[[], list[Plan]], redo: bool, source: Source, tell: Say
) -> Iterator[Outcome]:
    """One checkpoint on all its suites. A suite whose records are of another evaluation fails alone."""
    started = time.monotonic()
    failed = partial(_failed, path, started)
    try:
        plans = make_plans()
    except (ValueError, OSError) as error:
        yield failed("", error)
        return
    with ExitStack() as open_files:
        works = []
        for plan in sorted(plans, key=lambda one: one.records_path):  # one order for all: nobody waits in a circle
            try:
                works.append(_open(plan, redo, open_files))
            except (ValueError, OSError) as error:
                yield failed(plan.suite.name, error)
        problem = _fill(path, works, source, tell)
        for work in works:
            try:
                if problem and len(work.file.records) < work.plan.protocol.expected_records:
                    raise problem
                yield _finish(path, work, started)
            except (ValueError, OSError, RuntimeError) as error:  # ours, and what vLLM says of a checkpoint
                yield failed(work.plan.suite.name, error)


def _failed(path: Path, started: float, suite: str, error: Exception) -> Outcome:
    return Outcome(path, suite, "failed", str(error), seconds=time.monotonic() - started)


def _open(plan: Plan, redo: bool, open_files: ExitStack) -> Work:
    file = open_files.enter_context(RecordFile(plan.records_path, discard=redo))
    if redo:
        plan.meta_path.unlink(missing_ok=True)
    meta = read_meta(plan.meta_path)
    _require_same(plan, meta)
    require_one_grader(plan.records_path, file.records, plan.protocol)
    return Work(plan, file, _missing(plan, file.records), meta)


def _require_same(plan: Plan, old: Meta | None) -> None:
    """Refuse to mix records of two protocols or of two checkpoints in one file."""
    if old is None:
        return
    now_, then = vars(plan.protocol), vars(old.protocol)
    changed = [f"{key} {then[key]!r} -> {now_[key]!r}" for key in now_ if now_[key] != then[key] and key != "revision"]
    if old.checkpoint_sha256 != plan.checkpoint_sha256:
        changed.append("the checkpoint's files")
    if not changed:
        return
    remedy = "use --redo to replace it"
    if len(changed) == 1 and changed[0].startswith("grader "):
        remedy = f"steer regrade --grader {plan.grader.name} changes it without generating again"
    raise ValueError(f"{plan.meta_path} is of another evaluation ({'; '.join(changed)}): {remedy}")


def _missing(plan: Plan, records: Sequence[Record]) -> list[tuple[Item, int]]:
    """Items and sample numbers that have no record yet. ``ValueError`` for records that are not of this suite."""
    samples = range(plan.protocol.n_samples)
    wanted = {(item.id, sample): (item, sample) for item in plan.suite.items for sample in samples}
    done = {record.key for record in records}
    if odd := sorted(done - wanted.keys()):
        raise ValueError(f"{plan.records_path}: {len(odd)} records are not of this suite ({odd[0]}): use --redo")
    return [one for key, one in wanted.items() if key not in done]


def _fill(path: Path, works: Sequence[Work], source: Source, tell: Say) -> Exception | None:
    """Generate, grade and save all that is missing; the exception that ended it, with everything graded saved."""
    jobs = [job for work in works for job in _jobs(work)]
    if not jobs:
        return None
    for work in works:
        if work.missing:
            make_meta(work.plan, False, work.meta.context if work.meta else None).write(work.plan.meta_path)
    kept = sum(len(work.file.records) for work in works)
    progress = Progress(str(path), len(jobs) + kept, kept, tell)
    started = time.monotonic()
    try:
        _generate(works[0].plan.checkpoint, jobs, source, progress)
    except (OSError, RuntimeError, ValueError) as error:
        return error
    finally:
        _note_cost(works, source, time.monotonic() - started)
    return None


def _jobs(work: Work) -> Iterator[_Job]:
    for item, sample in work.missing:
        yield _Job(work, item, sample, request_seed(work.plan.protocol.seed, item.id, sample))


def _request(job: _Job) -> Request:
    plan = job.work.plan
    how = Sampling(plan.protocol.temperature, plan.protocol.top_p, plan.protocol.max_new_tokens)
    return Request(plan.text(job.item), job.seed, how, plan.chat)


def _generate(checkpoint: Path, jobs: Sequence[_Job], source: Source, progress: Progress) -> None:
    """Answers are graded in threads while the engine goes on, and saved every two seconds."""
    waiting: deque[_Answered] = deque()
    saved = time.monotonic()
    pool = ThreadPoolExecutor(GRADING_THREADS, thread_name_prefix="grading")
    try:
        for finished in source.answers(checkpoint, [_request(job) for job in jobs]):
            for place, completion in finished:
                job = jobs[place]
                grade = pool.submit(job.work.plan.grader.grade, completion.text, job.item.gold)
                waiting.append(_Answered(job, completion, grade))
            while len(waiting) > MOST_UNGRADED:
                waiting[0].grade.result()
                progress.add(_save(waiting))
            if time.monotonic() - saved >= SAVE_SECONDS:
                progress.add(_save(waiting))
                saved = time.monotonic()
        for one in waiting:
            one.grade.result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
        progress.add(_save(waiting))


def _save(waiting: "deque[_Answered]") -> int:
    """Write what has its verdict to its file, and leave the rest; how many were written."""
    done: list[_Answered] = []
    kept: list[_Answered] = []
    for one in waiting:  # asked once: a verdict may come at any moment
        (done if one.grade.done() else kept).append(one)
    waiting.clear()
    waiting.extend(kept)
    done = [one for one in done if not one.grade.cancelled()]
    files: dict[int, tuple[RecordFile, list[Record]]] = {}
    for one in done:
        file = one.job.work.file
        files.setdefault(id(file), (file, []))[1].append(_record(one.job, one.completion, one.grade.result()))
    for file, records in files.values():
        file.append(records)
    return len(done)


def _record(job: _Job, completion: Completion, grade: Grade) -> Record:
    plan = job.work.plan
    verdict, reason = verdict_of(grade, completion.truncated, plan.protocol.max_new_tokens)
    return Record(
        item=job.item.id,
        level=job.item.level,
        sample=job.sample,
        seed=job.seed,
        prompt=plan.text(job.item),
        output=completion.text,
        answer=grade.answer,
        gold=job.item.gold,
        verdict=verdict,
        reason=reason,
        grader=plan.protocol.grader,
        tokens=completion.tokens,
    )


def verdict_of(grade: Grade, truncated: bool, max_new_tokens: int) -> tuple[Verdict, str | None]:
    """A truncated answer is not judged on what it happened to say last, but the grader's opinion is kept as reason."""
    if truncated:
        return "truncated", f"cut at {max_new_tokens} tokens; graded as it is: {grade.state}"
    return grade.state, grade.reason


def _note_cost(works: Sequence[Work], source: Source, seconds: float) -> None:
    """Add this generation's time and devices to the meta files of the suites it was for."""
    total = sum(len(work.missing) for work in works)
    for work in works:
        if not work.missing:
            continue
        meta = read_meta(work.plan.meta_path)
        context: dict[str, Any] = dict(meta.context) if meta else {}
        earlier = context.get("generation", {}).get("seconds", 0.0)
        spent = round(earlier + seconds * len(work.missing) / total, 3)
        context["generation"] = {"seconds": spent, "engines": source.processes, "device": source.device}
        make_meta(work.plan, False, context).write(work.plan.meta_path)


def _finish(path: Path, work: Work, started: float) -> Outcome:
    """Count, and say in the meta file that the evaluation is complete."""
    plan, records = work.plan, work.file.records
    name = plan.suite.name
    if not work.missing and _is_complete(plan):
        return Outcome(path, name, "already evaluated", samples=len(records))
    if len(records) != plan.protocol.expected_records:
        raise ValueError(f"{work.file.path}: {len(records)} records, expected {plan.protocol.expected_records}")
    meta = read_meta(plan.meta_path)
    make_meta(plan, True, meta.context if meta else None).write(plan.meta_path)
    return Outcome(path, name, "evaluated", None, len(records), len(work.missing), time.monotonic() - started)


def _is_complete(plan: Plan) -> bool:
    try:
        load_evaluation(plan.run.eval, plan.suite.name)
    except ValueError:
        return False
    return True
