"""From grades to OpenRLHF rewards, with a guard that stops a run whose grader is broken.

OpenRLHF (utils/agent.py, 0.11.2) calls `reward_func` with one-item lists off the main thread and only logs what it
raises. So a grader that keeps failing is reported in `$STEER_RUN_DIR/grader_failure.json`, which the launcher watches,
and from then on every call raises (a sample without a reward also stops OpenRLHF's experience maker).
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from steer_experiments.grading import Grade, Grader

FAILURE_FILE = "grader_failure.json"
RUN_DIR_VARIABLE = "STEER_RUN_DIR"
LIMIT_VARIABLE = "STEER_GRADER_MAX_FAILURES"
DEFAULT_MAX_FAILURES = 20
MAX_FAILURE_SHARE = 0.05
MIN_FAILURES_FOR_SHARE = 3  # a first unlucky call is 100 % of the calls

RewardFunction = Callable[..., dict[str, Any]]


class GraderBroken(RuntimeError):
    """The grader failed too often: rewards of this run can no longer be trusted."""


class FailureGuard:
    """Counts a grader's failures over the calls of one process; raises `GraderBroken` once there are too many."""

    def __init__(self, grader: str, max_failures: int = DEFAULT_MAX_FAILURES) -> None:
        self.grader, self.max_failures = grader, max_failures
        self.calls = self.failures = 0
        self.broken: str | None = None
        self._lock = threading.Lock()

    def count(self, grade: Grade) -> None:
        """Count one grade, log it when it is a failure, raise when there are too many."""
        with self._lock:
            self.calls += 1
            if grade.failed:
                self.failures += 1
                counts = f"failure {self.failures} in {self.calls} calls"
                print(f"[grader {self.grader}] {grade.state}: {grade.reason} ({counts})", file=sys.stderr, flush=True)
                if self.broken is None and self._too_many():
                    self.broken = f"{self.grader} failed in {self.failures} of {self.calls} calls; last: {grade.reason}"
                    self._report()
            if self.broken is not None:
                raise GraderBroken(self.broken)

    def _too_many(self) -> bool:
        share = self.failures / self.calls
        return self.failures >= self.max_failures or (
            self.failures >= MIN_FAILURES_FOR_SHARE and share > MAX_FAILURE_SHARE
        )

    def _report(self) -> None:
        if not (run_dir := os.environ.get(RUN_DIR_VARIABLE)):
            return
        report = {"reason": self.broken, "calls": self.calls, "failures": self.failures, "grader": self.grader}
        temporary = Path(run_dir) / f".{FAILURE_FILE}.{os.getpid()}"
        temporary.write_text(json.dumps(report | {"pid": os.getpid(), "time": time.time()}) + "\n")
        os.replace(temporary, Path(run_dir) / FAILURE_FILE)


def response_of(query: str, prompt: str, specials: Sequence[str]) -> str | None:
    """The response inside `query` up to its first special token; None when `query` does not begin with `prompt`."""
    if not query.startswith(prompt):
        return None
    response = query[len(prompt) :]
    return response[: min((at for s in specials if (at := response.find(s)) >= 0), default=len(response))]


def make_reward_func(grader: Grader, specials: Sequence[str]) -> RewardFunction:
    """An OpenRLHF `reward_func`: 1.0 for a correct response, else 0.0, with the grades as metrics.

    extra_logs (0/1 per sample, averaged to shares by OpenRLHF): grade_correct, grade_unparsed, grade_failed. A failed
    grade is paid 0.0 because OpenRLHF needs a number; it is logged, counted in grade_failed, and guarded.
    """
    guard = FailureGuard(f"{grader.name}@{grader.version}", int(os.environ.get(LIMIT_VARIABLE) or DEFAULT_MAX_FAILURES))

    def grade(query: str, prompt: str, label: str) -> Grade:
        response = response_of(query, prompt, specials)
        if response is None:
            return Grade("error", reason=f"the query does not begin with its prompt {prompt[:80]!r}")
        return grader.grade(response, label)

    def reward_func(queries: list[str], prompts: list[str], labels: list[str], **_: Any) -> dict[str, Any]:
        import torch

        grades = [grade(*row) for row in zip(queries, prompts, labels, strict=True)]
        for each in grades:
            guard.count(each)

        def share(*states: str) -> torch.Tensor:
            return torch.tensor([float(each.state in states) for each in grades])

        logs = {"grade_correct": share("correct"), "grade_unparsed": share("unparsed")}
        logs["grade_failed"] = share("timeout", "error")
        return {"rewards": share("correct"), "scores": share("correct"), "extra_logs": logs}

    return reward_func
