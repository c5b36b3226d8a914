"""Watch a run's process: heartbeat, one line a step, and why it ended."""

import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, Self

from . import processes
from .checks import explain, grader_failure
from .run_dir import RunDir

POLL_S = 0.5
HEARTBEAT_S = 5.0
TAIL_LINES = 15


@dataclass(frozen=True)
class Verdict:
    """How a process, and with it a run, ended."""

    state: Literal["finished", "failed", "stopped"]
    reason: str | None = None
    code: int | None = None

    def unless(self, mistakes: Sequence[str]) -> Self:
        """Failed instead, when there are mistakes."""
        return replace(self, state="failed", reason="; ".join(mistakes)) if mistakes else self


@dataclass(frozen=True)
class Progress:
    """What the metrics say now. Rates in [0, 1], entropy in nats; None: not known yet."""

    step: int = 0
    reward: float | None = None
    validation: float | None = None
    entropy: float | None = None
    seconds_per_step: float | None = None

    def seconds_left(self, total: int | None) -> float | None:
        known = total is not None and self.seconds_per_step is not None
        return max(total - self.step, 0) * self.seconds_per_step if known else None  # type: ignore[operator]

    def line(self, total: int | None) -> str:
        numbers = [("reward", self.reward), ("validation", self.validation), ("entropy", self.entropy)]
        parts = [f"step {self.step}/{total or '?'}", *(f"{name} {show(value)}" for name, value in numbers)]
        parts.append(f"{show(self.seconds_per_step, 1)} s/step")
        left = self.seconds_left(total)
        return "  ".join([*parts, "" if left is None else f"{left // 60:.0f}:{left % 60:02.0f} left"]).rstrip()


def show(value: float | None, digits: int = 3) -> str:
    """A number, or a dash where there is none."""
    return "-" if value is None else f"{value:.{digits}f}"


def progress_of(rows: Sequence[Mapping[str, Any]]) -> Progress:
    """The state of a run from its metrics. ``validation`` is the last ``eval/eval_*_pass1``."""
    trained = [row for row in rows if any(name.startswith("train/") for name in row)]
    evaluated = [row[name] for row in rows for name in row if name.startswith("eval/") and name.endswith("_pass1")]
    last = trained[-1] if trained else {}
    recent = trained[-6:]
    steps = recent[-1]["step"] - recent[0]["step"] if recent else 0
    return Progress(
        step=last.get("step", 0),
        reward=last.get("train/rollout/reward_mean"),
        validation=evaluated[-1] if evaluated else None,
        entropy=last.get("train/steer/entropy"),
        seconds_per_step=(recent[-1]["time"] - recent[0]["time"]) / steps if steps > 0 else None,
    )


def watch(
    run: RunDir,
    child: subprocess.Popen[bytes],
    stop: Sequence[int],
    minutes: float | None,
    say: Callable[[str], None] | None = None,
) -> Verdict:
    """Wait until the child ends, has to be ended (and end it), or writes no metrics for ``minutes`` (None: for ever).

    ``stop`` becomes non-empty when somebody asks us to end; ``say`` is called with a line for every new step.
    """
    status = run.read_status()
    assert status is not None
    before = status.seconds - time.monotonic()
    beat = moved = time.monotonic()
    size, verdict = 0, None
    while (code := child.poll()) is None:
        time.sleep(POLL_S)
        moment = time.monotonic()
        grown = run.metrics.stat().st_size if run.metrics.exists() else 0
        if grown != size:
            size, moved, beat = grown, moment, moment
            _report(run, before + moment, say)
        elif moment - beat >= HEARTBEAT_S:
            beat = moment
            _heartbeat(run, before + moment)
        if verdict := _reason_to_end(run, stop, moment - moved, minutes):
            code = processes.end_child(child)
            break
    _heartbeat(run, before + time.monotonic())
    return replace(verdict, code=code) if verdict else _judge_exit(run, code)


def _reason_to_end(run: RunDir, stop: Sequence[int], idle_s: float, minutes: float | None) -> Verdict | None:
    if stop:
        return Verdict("stopped", f"stopped by {signal.Signals(stop[0]).name}")
    if reason := grader_failure(run):
        return Verdict("failed", reason)
    if minutes is not None and idle_s > minutes * 60:
        return Verdict("failed", f"stalled: no metrics for {minutes:g} minutes (stall_minutes)")
    return None


def _judge_exit(run: RunDir, code: int) -> Verdict:
    if reason := grader_failure(run):
        return Verdict("failed", reason, code)
    if code == 0:
        return Verdict("finished", code=0)
    how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
    known = explain(run.log_tail(200))
    return Verdict("failed", f"the process {how}" + (f": {known}" if known else ""), code)


def _report(run: RunDir, seconds: float, say: Callable[[str], None] | None) -> None:
    rows, status = run.read_metrics(), run.read_status()
    assert status is not None
    progress = progress_of(rows)
    if progress.step != status.step and say:
        say(progress.line(status.total_steps))
    run.write_status(status.changed(step=progress.step, seconds=seconds))


def _heartbeat(run: RunDir, seconds: float) -> None:
    status = run.read_status()
    assert status is not None
    run.write_status(status.changed(seconds=seconds))


def finish(run: RunDir, verdict: Verdict) -> None:
    """Write how the run ended, with the end of its log where it did not end well, and say so."""
    status = run.read_status()
    assert status is not None
    reason, tail = verdict.reason, run.log_tail(TAIL_LINES)
    if verdict.state != "finished" and tail:
        reason = "\n".join([f"{reason}; last lines of {run.log.name}:", *tail])
    run.write_status(status.changed(state=verdict.state, reason=reason, exit_code=verdict.code))
    print(f"{verdict.state}: {run.path}" + (f"\n{reason}" if reason else ""), flush=True)
