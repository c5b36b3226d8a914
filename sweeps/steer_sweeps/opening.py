"""Taking up a trial: a new one, or one that another controller left; and submitting its jobs."""

import os
from collections.abc import Sequence
from typing import Any

from optuna.trial import FrozenTrial
from pydantic import TypeAdapter
from steer_experiments.failures import Failure
from steer_experiments.run_dir import write_yaml
from steer_openrlhf.errors import ConfigError

from .attend import Attendant, short
from .claims import begin
from .executors.base import Executor, ExecutorError, Job, make_executor
from .executors.config import ExecutorConfig
from .leases import Leases
from .runs import SeedRun, Trial, recalled
from .study import Study
from .tracking import wandb_variables
from .trials import LETTERS, Arm, Configuration

_CONFIG: TypeAdapter[ExecutorConfig] = TypeAdapter(ExecutorConfig)


class Opener:
    """``tell`` gets a line for every start; ``command`` is the controller's."""

    def __init__(
        self, study: Study, leases: Leases, executor: Executor, attendant: Attendant, command: Sequence[str]
    ) -> None:
        self.study, self.leases, self.executor = study, leases, executor
        self.attendant, self.command = attendant, command
        self._config = study.sweep.executor.model_dump(mode="json")
        self._others: dict[str, Executor] = {}

    def close(self) -> None:
        for executor in (self.executor, *self._others.values()):
            executor.close()

    def take(self, configuration: Configuration, new: bool) -> Trial | None:
        """The trial of a configuration, ours from now on: the one that runs, or with ``new`` a new one. None when it is
        another controller's, or not owed. Raises :class:`ExecutorError`."""
        lease = configuration.arm.lease(configuration.index)
        if not self.leases.take(lease):
            return None
        frozen = begin(self.study, configuration, self.leases.owner, self._config, new)
        if frozen is None:
            self.leases.release(lease)
            return None
        try:
            return self._opened(configuration.arm, frozen, configuration)
        except ExecutorError:
            self.leases.release(lease)
            raise
        except ConfigError as error:  # its values cannot be drawn
            self.study.fail(configuration.arm, frozen, "config", str(error))
            self.attendant.tell(f"{configuration.name}: config: {error}")
            self.leases.release(lease)
            return None

    def _opened(self, arm: Arm, frozen: FrozenTrial, configuration: Configuration) -> Trial:
        study, name = self.study, self.study.run_name(arm, frozen)
        values = study.draw(arm, frozen)
        config = _CONFIG.validate_python(frozen.user_attrs.get("executor", self._config))
        executor = self._executor_for(config)
        attempt = frozen.user_attrs.get("attempt", 0)
        name_of = f"{study.token}-{LETTERS[arm.kind]}{frozen.number}-s{{}}-a{attempt}".format
        runs = []
        for seed, run_dir in zip(study.seeds(arm), study.run_dirs(arm, frozen), strict=True):
            run = recalled(SeedRun(seed, run_dir, name_of(seed), executor), frozen.user_attrs)
            if run.handle is None and not run.over and run_dir.path.exists():  # perhaps killed after it was submitted
                run.handle = executor.find(run.job)
            runs.append(run)
        trial = Trial(arm, frozen, configuration, name, values, runs, config.gpus_per_trial)
        self._recall(trial)
        return trial

    def _recall(self, trial: Trial) -> None:
        """What an earlier controller decided or reported, and what it may not have come to."""
        if ending := trial.frozen.user_attrs.get("ending"):
            trial.ending, trial.pruned = Failure(*ending), ending[0] == "pruned"
        reported = trial.frozen.intermediate_values
        if len(trial.runs) == 1:
            trial.runs[0].reported = max(0, len(reported) - 1)  # the last one again: was the pruner asked?
        else:
            self.attendant.catch_up(trial)

    def _executor_for(self, config: Any) -> Executor:
        """Our own, or that of an earlier controller that the sweep file no longer names: its jobs are still there."""
        ours = self.study.sweep.executor
        if config.model_copy(update={"slots": ours.slots}) == ours or config.name == ours.name == "local":
            return self.executor
        key = config.model_dump_json()
        if key not in self._others:
            try:
                self._others[key] = make_executor(config, self.study.path)
            except ConfigError as error:
                raise ExecutorError(f"an earlier executor of this study: {error}") from None
        return self._others[key]

    def submit(self, trial: Trial, run: SeedRun) -> None:
        """Start one run of a trial. Raises :class:`ExecutorError`, :class:`ConfigError` where its values make no sense
        together, and ``OSError`` where its directory cannot be written."""
        name = trial.name if trial.arm.searched else trial.configuration.name
        if len(trial.runs) > 1:
            name = f"{name}-s{run.seed}"
        experiment = self.study.sweep.experiment(name, trial.values, seed=run.seed)
        run.run.path.mkdir(parents=True, exist_ok=True)
        write_yaml(run.run.config, experiment.resolved(), sync=False)
        fields = {"config": str(run.run.config), "run_dir": str(run.run.path)}
        command = tuple(word.format(**fields) for word in self.command)
        env = wandb_variables(self.study.sweep.name, experiment.name, run.job, os.environ)
        run.handle = run.executor.submit(Job(run.job, command, run.run.path.absolute(), trial.gpus, env))
        if run.handle != run.job:  # else it is found again by its name
            self.study.note(trial.frozen, **{f"handle/{run.seed}": run.handle})
        run.watched = True
        run.look()
        shown = "".join(f"  {key}={short(value)}" for key, value in trial.values.items())
        seed = f" (seed {run.seed})" if len(trial.runs) > 1 else ""
        self.attendant.tell(f"trial {trial.name}: started{seed}{shown}")
