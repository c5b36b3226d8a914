"""Looking after the trials that run: reports for the pruner, limits, and how each ended. A result is told once."""

import time
from collections.abc import Callable
from functools import cache

from optuna.pruners import NopPruner
from steer_experiments.checks import verify_host_args
from steer_experiments.config import flag_of
from steer_experiments.failures import Failure, classify
from steer_experiments.recipes import flatten
from steer_experiments.run_dir import read_json

from .executors.base import JobState
from .runs import SECONDS_PER_HOUR, SeedRun, Trial
from .space import Values
from .study import Study

SILENCE_S = 1800.0
"""A run that writes nothing for so long hangs, whatever its supervisor thinks: its heartbeat comes every 5 s."""
PATIENCE_S = 60.0
"""From a polite request to stop to force."""


class Attendant:
    """``tell`` gets a line for every event."""

    def __init__(self, study: Study, tell: Callable[[str], None], silence_s: float = SILENCE_S) -> None:
        self.study, self.tell, self.silence_s = study, tell, silence_s
        self.patience_s = PATIENCE_S
        self.typical_s: float | None = None
        """How long runs take, about; None before one has ended."""

    def may_prune(self, trial: Trial) -> bool:
        """Whether the pruner has a say; then the runs of a trial follow one another."""
        return trial.arm.searched and not isinstance(self.study.pruner, NopPruner)

    def attend(self, trial: Trial) -> bool:
        """Look at every job of a trial; whether it has ended, and the study knows.

        Raises :class:`ExecutorError` when the place does not answer: nothing is known then, and nothing is lost.
        """
        for run in trial.runs:
            if run.open:
                self._look(trial, run)
        if trial.finished:
            self._conclude(trial)
            return True
        return False

    def _look(self, trial: Trial, run: SeedRun) -> None:
        assert run.handle is not None
        state = run.executor.state(run.handle)
        run.executor.sync(run.handle)
        if state in (JobState.ended, JobState.lost):
            self._judge(trial, run)
            return
        run.watched = True
        if state == JobState.pending:
            run.began = None  # waiting in a queue is no work
            return
        try:
            if run.look():
                self._report(trial, run)
        except ValueError as error:  # a damaged file: it cannot become a result
            self._stop_early(trial, Failure("infrastructure", str(error)))
        self._limits(trial, run)
        self._insist(run)

    # -- while it runs -------------------------------------------------------------------------------------------------

    def _report(self, trial: Trial, run: SeedRun) -> None:
        """Hand on what one-seed trials evaluated, one value after the other, each followed by the pruner's word: what
        comes out depends on the values only, not on when somebody looked."""
        sweep = self.study.sweep
        if len(trial.runs) > 1 or len(sweep.directions) > 1 or trial.pruned:
            return
        values = sweep.all_objectives[0].intermediate(run.metrics.read())
        new, run.reported = values[run.reported :], len(values)
        if not new:
            return
        if not self.may_prune(trial):
            self.study.report(trial.frozen, new)
            return
        for step, value in new:
            self.study.report(trial.frozen, [(step, value)])
            if self._pruned(trial, f"at step {step} with {value:.4g}"):
                return

    def _pruned(self, trial: Trial, where: str) -> bool:
        """Ask the pruner; a trial it gives up is stopped. The decision is in the study before anything is stopped."""
        if not self.may_prune(trial) or not self.study.should_prune(trial.arm, trial.frozen):
            return False
        self._decide(trial, "pruned", f"pruned {where}")
        trial.pruned = True
        self.cancel(trial)
        return True

    def _decide(self, trial: Trial, kind: str, reason: str) -> None:
        self.study.note(trial.frozen, ending=[kind, reason])
        trial.ending = Failure(kind, reason)  # type: ignore[arg-type]  # "pruned" is no failure

    def _limits(self, trial: Trial, run: SeedRun) -> None:
        limit, silent_s = self.study.sweep.trial_timeout_hours, time.monotonic() - run.moved
        if trial.ending is not None:
            return
        if limit is not None and run.seconds() > limit * SECONDS_PER_HOUR:
            self._stop_early(trial, Failure("timeout", f"ran longer than trial_timeout_hours = {limit:g}"))
        elif silent_s > self.silence_s:
            reason = f"hung: wrote neither heartbeat nor metrics for {silent_s / 60:.1f} minutes"
            self._stop_early(trial, Failure("timeout", reason))

    def _stop_early(self, trial: Trial, failure: Failure) -> None:
        if trial.ending is None:
            self._decide(trial, failure.kind, failure.reason)
            self.tell(f"trial {trial.name}: {failure.reason}; stopping it")
        self.cancel(trial)

    def cancel(self, trial: Trial, force: bool = False) -> None:
        """Ask every job of a trial to end. One that does not in time is made to (:meth:`_insist`)."""
        for run in trial.runs:
            if run.handle is not None and run.open and (force or run.asked_to_stop is None):
                run.asked_to_stop = time.monotonic()
                run.executor.cancel(run.handle, force)

    def _insist(self, run: SeedRun) -> None:
        if run.asked_to_stop is not None and time.monotonic() - run.asked_to_stop > self.patience_s:
            assert run.handle is not None
            run.asked_to_stop = time.monotonic()
            run.executor.cancel(run.handle, force=True)

    # -- when it has ended ---------------------------------------------------------------------------------------------

    def _judge(self, trial: Trial, run: SeedRun) -> None:
        """What a run became whose job has gone. One that vanished while nobody watched says nothing against its
        configuration: the power may have been cut."""
        assert run.handle is not None
        try:
            run.status = run.run.read_status()
        except ValueError as error:
            run.status = None
            run.failure = Failure("infrastructure", str(error))
        run.hours = run.seconds() / SECONDS_PER_HOUR
        before = run.seconds() if self.typical_s is None else self.typical_s
        self.typical_s = before + 0.1 * (run.seconds() - before)
        if run.failure is None and run.status and run.status.state == "finished":
            self._accept(trial, run)
        elif run.failure is None:
            run.failure = self._failure(run)
        if run.failure:
            if trial.ending is None:
                trial.ending = run.failure
            self._note(run, "stopped" if run.failure.kind in ("interrupted", "preempted") else "failed", run.failure)

    def _failure(self, run: SeedRun) -> Failure:
        assert run.handle is not None
        found = classify(run.run, run.executor.exit_note(run.handle))
        vanished = run.status is None or not run.status.ended
        if vanished and not run.watched and found.kind == "infrastructure":
            return Failure("interrupted", found.reason)
        return found

    def _accept(self, trial: Trial, run: SeedRun) -> None:
        """A result counts only when the training used every value of the trial and its objectives are numbers."""
        sweep = self.study.sweep
        try:
            host_args = read_json(run.run.host_args)
            wrong = verify_host_args(_flags(trial.values), host_args) if host_args else ["host_args.json is missing"]
            if wrong:
                raise ValueError("; ".join(wrong))
            rows = run.run.read_metrics()
            hours = {"wall_hours": run.hours, "gpu_hours": run.hours * trial.gpus}
            values = [one.value(rows) for one in sweep.all_objectives]
            run.limits = [one.value(rows, hours) for one in sweep.constraints]
            self._report(trial, run)
        except ValueError as error:
            run.failure = Failure("nan" if "is no number" in str(error) else "training", str(error))
            return
        run.values = values
        if len(trial.runs) > 1:
            self._keep_seed(trial, run)

    def _keep_seed(self, trial: Trial, run: SeedRun) -> None:
        """Write what one training seed gave; between two seeds the pruner may find the trial hopeless."""
        assert run.values is not None
        limits = {f"limits/{run.seed}": run.limits} if run.limits else {}
        named = {f"value/{run.seed}": run.values, f"hours/{run.seed}": run.hours} | limits
        self.study.note(trial.frozen, **named)
        if len(run.values) > 1:
            return
        place = trial.runs.index(run)
        self.study.report(trial.frozen, [(place, run.values[0])])
        left = any(one.values is None for one in trial.runs)
        if left and trial.ending is None:
            self._pruned(trial, f"after {place + 1} of {len(trial.runs)} training seeds, mean {trial.means()[0]:.4g}")

    def catch_up(self, trial: Trial) -> None:
        """Of an adopted trial with several seeds: report what its last controller did not come to."""
        if len(self.study.sweep.directions) > 1:
            return
        done = {place: one.values[0] for place, one in enumerate(trial.runs) if one.values is not None}
        self.study.report(trial.frozen, [one for one in done.items() if one[0] not in trial.frozen.intermediate_values])
        if done and len(done) < len(trial.runs) and trial.ending is None:
            self._pruned(trial, f"after {len(done)} of {len(trial.runs)} training seeds, mean {trial.means()[0]:.4g}")

    def _conclude(self, trial: Trial) -> None:
        attributes = trial.attributes()
        if trial.pruned:
            assert trial.ending is not None
            self.study.prune(trial.arm, trial.frozen, trial.ending.reason, **attributes)
            self.tell(f"trial {trial.name}: {trial.ending.reason}")
        elif all(one.values is not None for one in trial.runs):
            self._complete(trial)
        else:
            failure = trial.ending or trial.failure
            assert failure is not None
            self.fail(trial, failure)

    def _complete(self, trial: Trial) -> None:
        values, more = trial.means(), {}
        if len(trial.runs) == 1:
            run = trial.runs[0]
            more = {f"value/{run.seed}": run.values, f"hours/{run.seed}": run.hours}
        self.study.complete(trial.arm, trial.frozen, values, **trial.attributes(), **more)
        shown = zip(self.study.sweep.all_objectives, values, strict=True)
        self.tell(f"trial {trial.name}: complete  " + "  ".join(f"{one.metric}={short(value)}" for one, value in shown))

    def fail(self, trial: Trial, failure: Failure) -> None:
        """End a trial without a result."""
        self.study.fail(trial.arm, trial.frozen, failure.kind, failure.reason, **trial.attributes())
        self.tell(f"trial {trial.name}: {failure.kind}: {failure.reason.splitlines()[0] if failure.reason else ''}")

    def _note(self, run: SeedRun, state: str, failure: Failure) -> None:
        """Into the run's own status, which is all that the leaderboard and the report read: a run that vanished, or
        that finished and was not accepted, must not look as if it still ran, or as a result."""
        if run.status is None or run.status.state in ("failed", "stopped"):
            return
        try:
            run.run.write_status(run.status.changed(state=state, reason=failure.reason))
        except OSError as error:
            self.tell(f"{run.run.status}: cannot be written ({error}); the study has the reason")


def _flags(values: Values) -> dict[str, object]:
    """Dotted config keys (a value may be a mapping) as flags; keys that are no flags are left out."""
    flat = flatten(values)
    return {flag: value for key, value in flat.items() if (flag := _flag(key)) is not None}


@cache
def _flag(key: str) -> str | None:
    return flag_of(key)


def short(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
