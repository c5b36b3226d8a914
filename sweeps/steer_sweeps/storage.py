"""Where a study is kept: Optuna's journal file, or any database Optuna knows; and patience while it is away."""

import fcntl
import json
import os
import re
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

from optuna.exceptions import StorageInternalError
from optuna.storages import BaseStorage, JournalStorage, get_storage
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock
from optuna.trial import TrialState
from steer_openrlhf.errors import ConfigError

JOURNAL = "journal.log"
AWAY_S = 3600.0
"""How long a storage may be away before the controller gives up. Its trials go on in any case."""
LONGEST_WAIT_S = 5.0
_VARIABLE = re.compile(r"\$\{(\w+)\}")
T = TypeVar("T")


class JournalLock(JournalFileOpenLock):
    """Optuna's own journal locks are files that stay behind when their holder is killed. The kernel lifts this one.

    Whoever gets it first cuts an incomplete last line, left by a killed writer or a full disk: the next line would be
    appended to it, and both be lost.
    """

    def __init__(self, journal: Path) -> None:
        super().__init__(str(journal))
        self._journal = journal
        self._path = journal.with_suffix(".lock")
        self._handle: int | None = None

    def acquire(self) -> bool:
        self._handle = os.open(self._path, os.O_CREAT | os.O_RDWR, 0o644)
        fcntl.flock(self._handle, fcntl.LOCK_EX)
        cut_torn_end(self._journal)
        return True

    def release(self) -> None:
        assert self._handle is not None
        os.close(self._handle)
        self._handle = None


def cut_torn_end(journal: Path) -> None:
    """Cut an incomplete last line. Call it while nobody writes."""
    try:
        handle = os.open(journal, os.O_RDWR)
    except FileNotFoundError:
        return
    try:
        end = size = os.fstat(handle).st_size
        while end and os.pread(handle, 1, end - 1) != b"\n":
            block = max(0, end - 4096)
            end = block + os.pread(handle, end - block, block).rfind(b"\n") + 1
        if end < size:
            os.ftruncate(handle, end)
    finally:
        os.close(handle)


class Journal(JournalFileBackend):
    """Optuna's journal file. What is written within :meth:`together` reaches the file in one write, or not at all.

    Being killed loses nothing that was written. A power cut loses nothing up to the last end of a trial, and with
    ``durable`` nothing at all: where jobs run on other machines, they go on, and what was begun must be known.
    """

    def __init__(self, path: Path, durable: bool = True) -> None:
        self._own_lock = JournalLock(path)
        super().__init__(str(path), self._own_lock)
        self._durable = durable
        self._held: list[dict[str, Any]] | None = None

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        if self._held is None:
            self._write(logs)
        else:
            self._held += logs

    def _write(self, logs: list[dict[str, Any]]) -> None:
        text = "".join(json.dumps(log, separators=(",", ":")) + "\n" for log in logs)
        self._own_lock.acquire()
        try:
            with open(self._file_path, "ab") as file:
                file.write(text.encode())
                file.flush()
                if self._durable or any(_ends_trial(log) for log in logs):
                    os.fsync(file.fileno())
        finally:
            self._own_lock.release()

    @contextmanager
    def together(self) -> Iterator[None]:
        assert self._held is None, "not nested"
        self._held = []
        try:
            yield
            held, self._held = self._held, None
        finally:
            self._held = None
        if held:
            self.append_logs(held)


def _ends_trial(log: Mapping[str, Any]) -> bool:
    return log.get("state") is not None and TrialState(log["state"]).is_finished()


def open_storage(path: Path, url: str | None, durable: bool = True) -> BaseStorage:
    """The storage of the study in ``path``: its journal (``durable``: see :class:`Journal`), or the database of
    ``url``.

    Raises:
        ConfigError: the database cannot be reached, or its driver is missing. The message holds no password.
    """
    if url is None:
        return JournalStorage(Journal(path / JOURNAL, durable))
    full = resolved_url(url, os.environ)
    try:
        from optuna.storages import RDBStorage
        from sqlalchemy.exc import SQLAlchemyError

        return get_storage(RDBStorage(full, engine_kwargs={"pool_pre_ping": True}))
    except ImportError as error:
        raise ConfigError([f"storage = {url!r}: its driver is missing ({error}); pip install it"]) from None
    except SQLAlchemyError as error:
        reason = _without_password(str(error).split("\n")[0], full)
        raise ConfigError([f"storage = {url!r}: cannot be used: {reason}; start it, or mend the URL"]) from None


def together(storage: BaseStorage) -> AbstractContextManager[None]:
    """A block whose writes reach a journal's disk at once. Nothing written in it can be read before its end."""
    backend = getattr(storage, "_backend", None)
    return backend.together() if isinstance(backend, Journal) else nullcontext()


def resolved_url(url: str, variables: Mapping[str, str]) -> str:
    """``${NAME}`` replaced by environment variables: a password stands in no file. Raises :class:`ConfigError`."""
    missing = [name for name in _VARIABLE.findall(url) if name not in variables]
    if missing:
        raise ConfigError([f"storage = {url!r}: the environment variable {name} is not set" for name in missing])
    return _VARIABLE.sub(lambda found: variables[found.group(1)], url)


def _without_password(text: str, url: str) -> str:
    password = urlsplit(url).password
    return text.replace(password, "***") if password else text


def _away() -> tuple[type[Exception], ...]:
    """What a storage raises that cannot be reached now. Files: a full disk, a file server that is away."""
    known: tuple[type[Exception], ...] = (StorageInternalError, OSError)
    if "sqlalchemy" in sys.modules:
        from sqlalchemy.exc import SQLAlchemyError

        known = (*known, SQLAlchemyError)
    return known


class Patience:
    """Repeats what a storage could not do. The action must be one that may be done twice.

    ``tell`` hears that the storage went and came back; ``meanwhile`` is called before every new attempt.
    """

    def __init__(self, away_s: float = AWAY_S) -> None:
        self.away_s = away_s
        self.tell: Callable[[str], None] = lambda line: None
        self.meanwhile: Callable[[], None] = lambda: None

    def __call__(self, action: Callable[[], T]) -> T:
        began, wait_s = None, 0.1
        while True:
            try:
                result = action()
            except _away() as error:
                moment = time.monotonic()
                if began is None:
                    began = moment
                    self.tell(f"the study's storage does not answer, trying again: {_cause(error)}")
                elif moment - began > self.away_s:
                    raise ConfigError(
                        [
                            f"the study's storage is away since {moment - began:.0f} s: {_cause(error)}; "
                            "its trials go on: run the same command again when it is back"
                        ]
                    ) from error
            else:
                if began is not None:
                    self.tell(f"the study's storage is back after {time.monotonic() - began:.0f} s")
                return result
            self.meanwhile()
            time.sleep(wait_s)
            wait_s = min(2 * wait_s, LONGEST_WAIT_S)


def _cause(error: BaseException) -> str:
    while error.__cause__ is not None:
        error = error.__cause__
    return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no reason given'}"
