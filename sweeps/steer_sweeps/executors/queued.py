"""What places with a queue of their own share: the slots of a study are counted by the jobs it has there."""

from abc import ABC, abstractmethod
from contextlib import AbstractContextManager
from pathlib import Path

from .base import ExecutorError, Job, JobState
from .locks import locked
from .records import Record, live_jobs, record_of


class Queued(ABC):
    """Half of an :class:`.base.Executor`: a handle is the job's name."""

    def __init__(self, slots: int, study_dir: Path) -> None:
        self.slots, self.study_dir = slots, study_dir

    @abstractmethod
    def find(self, name: str) -> str | None: ...

    @abstractmethod
    def state(self, handle: str) -> JobState: ...

    @abstractmethod
    def _start(self, job: Job, record: Record) -> None:
        """Hand a job that is written down to the queue."""

    def free(self) -> int:
        with self._one_at_a_time():
            return max(self.slots - self._running(), 0)

    def submit(self, job: Job) -> str:
        """Raises :class:`ExecutorError` when no slot is free."""
        with self._one_at_a_time():
            if self.find(job.name) is not None:
                return job.name
            if self._running() >= self.slots:
                raise ExecutorError("no free slot")
            record = record_of(self.study_dir, job.name)
            record.write(job)
            record.mark_live()
            self._start(job, record)
        return job.name

    def _running(self) -> int:
        return len([record for record in live_jobs(self.study_dir) if not self._over(record)])

    def _over(self, record: Record) -> bool:
        over = self.state(record.path.name) in (JobState.ended, JobState.lost)
        if over:
            record.live.unlink(missing_ok=True)
        return over

    def _one_at_a_time(self) -> AbstractContextManager[None]:
        """No controller counts while another submits."""
        return locked(self.study_dir / "jobs.lock")
