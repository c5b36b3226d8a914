"""Run a study to its end, as many trials at a time as there is room for, and survive being killed anywhere.

A trial's jobs go on when the controller is killed. Any number of controllers may run one study: each looks after the
configurations whose leases it holds, and takes over those of a controller that is gone. Everything needed for that is
in files: the run directories, the executor's records, the leases, and Optuna's storage.
"""

import signal
import sys
import time
from collections.abc import Callable, Sequence

from steer_experiments import processes
from steer_experiments.failures import Failure
from steer_openrlhf.errors import ConfigError

from .attend import Attendant
from .budget import StudyClock
from .claims import fail_strays
from .executors.base import Executor, ExecutorError, make_executor
from .leases import Leases
from .opening import Opener
from .runs import Trial
from .study import NOW, Study
from .trials import Arm, Configuration, Owed

__all__ = ["Controller", "Trial"]

POLL_S = 1.0
SHORTEST_POLL_S = 0.01
POLL_SHARE = 0.015
"""Of how long a run takes: so long its slot may stand empty unseen."""
SHORT_S = 30.0
SLOTS_PER_READY = 8
"""Where runs are shorter, one trial for so many slots is drawn and written ahead, so that a slot waits for nothing but
the start of a process. Its values are drawn with a result or two less."""
LOOK_S = 2.0
"""How often the storage is asked what other controllers did."""
TROUBLE_S = 5.0
"""How long an executor that does not answer is left alone."""
LONGEST_PAUSE_S = 300.0
TRIAL_COMMAND = (sys.executable, "-m", "steer_experiments.train", "{config}", "--run-dir", "{run_dir}")


class StopNow(Exception):
    """Asked to stop a second time while the storage was away."""


class Controller:
    """``command`` is a template with ``{config}`` and ``{run_dir}``: any program that honours the run directory's
    contract. ``tell`` is called with one line for every event."""

    def __init__(
        self,
        study: Study,
        tell: Callable[[str], None],
        command: Sequence[str] = TRIAL_COMMAND,
        poll_s: float = POLL_S,
        executor: Executor | None = None,
    ) -> None:
        self.study, self.tell, self.poll_s = study, tell, poll_s
        self.running: list[Trial] = []
        self.executor = executor or make_executor(study.sweep.executor, study.path)
        self.attendant = Attendant(study, self._say)
        self.leases = Leases(study.path / "leases")
        self.opener = Opener(study, self.leases, self.executor, self.attendant, command)
        self.pause_s = 5.0
        """After a failure of the infrastructure, before its configuration is tried again; doubled every time."""
        self.trouble_s = TROUBLE_S
        self._owed = {arm.kind: Owed(arm, study.sweep.retries) for arm in study.arms}
        self._clock = StudyClock(study.path)
        self._later: dict[str, tuple[float, float]] = {}
        self._lost: list[str] = []
        self._stop: list[int] = []
        self._stop_request = study.stop_request()
        self._looked = self._troubled = -float("inf")
        self._spent = False

    def _say(self, line: str) -> None:
        self.tell(line)

    def run(self, watch: Callable[[Sequence[Trial]], None] = lambda running: None) -> bool:
        """Until nothing is owed, also by other controllers (True), or somebody asks to stop (False). ``watch`` sees
        what runs, every poll."""
        self.study.patience.tell, self.study.patience.meanwhile = self._say, self._meanwhile
        with processes.stop_requests(polite=2) as self._stop:
            try:
                return self._run(watch)
            except StopNow:
                return False
            finally:
                self.leases.release_all()
                self._clock.close()
                self.opener.close()

    def _run(self, watch: Callable[[Sequence[Trial]], None]) -> bool:
        while True:
            self._keep_leases()
            self._look_around()
            self._submit_wanted()
            self._attend_all()
            if self._stop:
                self._end_all()
                return False
            self._start_due()
            if not self.running and self._over():
                return True
            watch(self.running)
            self._pause()

    def _pause(self) -> None:
        """Short where trials are short: a slot must not stand empty for long beside how long it is used."""
        typical_s = self.attendant.typical_s
        pause_s = self.poll_s if typical_s is None or not self.running else max(SHORTEST_POLL_S, POLL_SHARE * typical_s)
        end = time.monotonic() + min(self.poll_s, pause_s)
        while not self._stop and (left := end - time.monotonic()) > 0:
            time.sleep(min(left, 0.1))

    # -- what runs -----------------------------------------------------------------------------------------------------

    def _keep_leases(self) -> None:
        """Move our counters. What another controller took over while we stood still is no longer ours."""
        names, self._lost = [*self._lost, *self.leases.beat()], []
        for name in names:
            lost = [one for one in self.running if one.arm.lease(one.configuration.index) == name]
            self.running = [one for one in self.running if one not in lost]
            for trial in lost:
                self._say(f"trial {trial.name}: another controller looks after it now")
        self._clock.hours()

    def _meanwhile(self) -> None:
        """While the storage is away: trials go on, and stay ours."""
        self._lost += self.leases.beat()
        if len(self._stop) > 1:
            for trial in self.running:
                self.attendant.cancel(trial, force=True)
            raise StopNow

    def _attend_all(self) -> None:
        if time.monotonic() - self._troubled < self.trouble_s:
            return
        for trial in list(self.running):
            try:
                ended = self.attendant.attend(trial)
            except ExecutorError as error:
                self._trouble(error)
                return
            if ended:
                self._leave(trial)
                if not self._stop:
                    self._submit_wanted()

    def _trouble(self, error: ExecutorError) -> None:
        self._troubled = time.monotonic()
        self._say(f"the executor does not answer, trying again: {error}")

    def _leave(self, trial: Trial) -> None:
        self.running.remove(trial)
        lease = trial.arm.lease(trial.configuration.index)
        failure = trial.ending or trial.failure
        if failure and failure.kind == "infrastructure":
            _, pause_s = self._later.get(lease, (0.0, self.pause_s / 2))
            pause_s = min(2 * pause_s, LONGEST_PAUSE_S)
            self._later[lease] = time.monotonic() + pause_s, pause_s
        self.leases.release(lease)
        self._budget_spent()

    def _end_all(self) -> None:
        """Ask every running trial to stop and wait: each ends its training and says that it was stopped. Asked a second
        time, make them."""
        self._say(f"stopping {len(self.running)} running trials; the same command continues the study")
        forced = False
        for trial in self.running:
            if trial.ending is None:
                trial.ending = Failure("interrupted", "the controller was asked to stop")
        while self.running:
            force = len(self._stop) > 1 and not forced
            forced = forced or force
            try:
                for trial in self.running:
                    self.attendant.cancel(trial, force)
            except ExecutorError as error:
                self._trouble(error)
            self._attend_all()
            self._keep_leases()
            self._hear_stop()
            time.sleep(min(self.poll_s, 0.05) if self.running else 0)

    # -- what others left ----------------------------------------------------------------------------------------------

    def _look_around(self) -> None:
        """Now and then: what other controllers did, and trials nobody looks after any more."""
        if time.monotonic() - self._looked < LOOK_S:
            return
        first, self._looked = self._looked < 0, time.monotonic()
        self.study.refresh()
        self._hear_stop()
        ours = {(one.arm.kind, one.frozen.number) for one in self.running}
        for arm in self.study.arms:
            if first:
                fail_strays(self.study, arm)
            for frozen in sorted(arm.unfinished.values(), key=lambda one: one.number):
                index = frozen.user_attrs.get("config")
                if index is not None and (arm.kind, frozen.number) not in ours:
                    self._adopt(arm, index)
        self._budget_spent()

    def _hear_stop(self) -> None:
        """A request in the study's directory counts like Ctrl-C; one that wants it now like a second one too."""
        request = self.study.stop_request()
        if request != self._stop_request:
            self._stop_request = request
            self._stop += [signal.SIGTERM] * (2 if request.startswith(NOW) else 1)

    def _adopt(self, arm: Arm, index: int) -> None:
        name = dict(self.study.places(arm)).get(index, str(index)) if arm.kind != "searched" else str(index)
        trial = self._take(arm.configuration(index, name), new=False)
        if trial is None:
            return
        try:
            states = [one.executor.state(one.handle) for one in trial.runs if one.open and one.handle]
            if any(state in ("pending", "running") for state in states):
                self._say(f"trial {trial.name}: still running, adopted")
            if trial.ending:
                self.attendant.cancel(trial)
        except ExecutorError as error:
            self._trouble(error)

    def _take(self, configuration: Configuration, new: bool) -> Trial | None:
        try:
            trial = self.opener.take(configuration, new)
        except ExecutorError as error:
            self._trouble(error)
            return None
        if trial is not None:
            self.running.append(trial)
        return trial

    # -- starting ------------------------------------------------------------------------------------------------------

    def _room(self) -> int:
        if time.monotonic() - self._troubled < self.trouble_s:
            return 0
        try:
            return self.executor.free()
        except ExecutorError as error:
            self._trouble(error)
            return 0

    def _submit_wanted(self) -> None:
        """Further jobs of trials that were begun come before new trials: what is begun should end."""
        waiting = [one for one in self.running if one.wanted(self.attendant.may_prune(one))]
        room = self._room() if waiting else 0
        for trial in waiting:
            room -= self._submit(trial, room)

    def _submit(self, trial: Trial, room: int) -> int:
        """Submit what a trial wants, as far as there is room; how many it were."""
        n = 0
        for run in trial.wanted(self.attendant.may_prune(trial))[: max(room, 0)]:
            try:
                self.opener.submit(trial, run)
            except ExecutorError as error:
                if "no free" not in str(error):  # another controller was quicker: no trouble
                    self._trouble(error)
                return n
            except ConfigError as error:
                self._give_up(trial, Failure("config", str(error)))
                return n
            except OSError as error:
                self._give_up(trial, Failure("infrastructure", f"{run.run.path}: cannot be written: {error}"))
                return n
            n += 1
        return n

    def _give_up(self, trial: Trial, failure: Failure) -> None:
        """A trial that cannot be started. Jobs of its other seeds end first."""
        trial.ending = trial.ending or failure
        if trial.finished:
            self.attendant.fail(trial, failure)
            self._leave(trial)

    def _start_due(self) -> None:
        if self._spent or self._looked < 0:
            return
        room = self._room() + self._ahead()
        for arm in self.study.arms:
            if room <= 0 or (arm.kind == "finalist" and not self._search_over()):
                return
            room = self._start_of(arm, room)

    def _ahead(self) -> int:
        """How many trials to begin beyond what there is room for."""
        typical_s, slots = self.attendant.typical_s, self.study.sweep.executor.slots
        if typical_s is None or typical_s > SHORT_S:
            return 0
        return slots // SLOTS_PER_READY - sum(bool(one.wanted(self.attendant.may_prune(one))) for one in self.running)

    def _start_of(self, arm: Arm, room: int) -> int:
        owed, now = self._owed[arm.kind], time.monotonic()
        for configuration in owed.due(self.study.places(arm)):
            lease = arm.lease(configuration.index)
            if self._later.get(lease, (0.0,))[0] > now:
                continue
            trial = self._take(configuration, new=True)
            if trial is not None:
                self._submit(trial, self._room())
                room -= 1
            if room <= 0:
                break
        return room

    def _search_over(self) -> bool:
        return self._owed["searched"].over(self.study.places(self.study.searched))

    # -- the end -------------------------------------------------------------------------------------------------------

    def _over(self) -> bool:
        """Whether nothing is left to do for anybody."""
        trials = [one for arm in self.study.arms for one in arm.unfinished.values()]
        if any("config" in one.user_attrs for one in trials):
            self.study.refresh()
            return False
        if self._spent:
            return True
        arms = [arm for arm in self.study.arms if arm.kind != "finalist" or self._search_over()]
        return all(self._owed[arm.kind].over(self.study.places(arm)) for arm in arms)

    def _budget_spent(self) -> None:
        """Whether the budget allows no further trial; running ones end."""
        budget, hours = self.study.sweep.budget, self._clock.hours()
        if self._spent or budget is None:
            return
        spent = sum(self.study.gpu_hours().values()) + sum(one.gpu_hours_now() for one in self.running)
        told = []
        if budget.gpu_hours is not None and spent >= budget.gpu_hours:
            told.append(f"{spent:.2f} of {budget.gpu_hours:g} GPU-hours")
        if budget.hours is not None and hours >= budget.hours:
            told.append(f"{hours:.2f} of {budget.hours:g} hours")
        if told:
            self._spent = True
            self._say(f"the budget is spent ({', '.join(told)}): no new trial is started")
