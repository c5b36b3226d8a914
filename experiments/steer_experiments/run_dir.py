"""The run directory: the contract between floors. JSON only, written whole (temporary name, then ``os.replace``)."""

import json
import os
import tempfile
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict

State = Literal["preparing", "running", "finished", "failed", "stopped"]
_DUMPER = getattr(yaml, "CSafeDumper", yaml.SafeDumper)  # libyaml's is ten times as fast, where it was built
ENDED: frozenset[State] = frozenset({"finished", "failed", "stopped"})


class Status(BaseModel):
    """Where a run stands (``status.json``). ``updated`` is its heartbeat; times are UTC, ISO 8601."""

    model_config = ConfigDict(frozen=True, extra="ignore")  # a newer version may know more

    state: State
    reason: str | None = None
    pid: int
    """The process that supervises the run (``steer train``), with its creation time: a pid alone may be reused."""
    pid_created: float
    pgid: int | None = None
    """The training's own process group."""
    ray_temp_dir: str | None = None
    """Ray's private directory: every process of the run has a file open below it."""
    step: int = 0
    total_steps: int | None = None
    started: str
    updated: str
    seconds: float = 0.0
    """How long the run has been at work, by a clock that nobody sets; from the start to the last heartbeat."""
    exit_code: int | None = None

    @property
    def ended(self) -> bool:
        return self.state in ENDED

    def changed(self, **changes: Any) -> Self:
        """A copy with some fields changed and the heartbeat set to now."""
        return self.model_validate(self.model_dump() | {"updated": now()} | changes)


class RunDir:
    """The files of one run. Nothing is created until something is written."""

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self.config = self.path / "config.yaml"
        self.env = self.path / "env.json"
        self.prepared = self.path / "prepared.json"
        self.metrics = self.path / "metrics.jsonl"
        self.host_args = self.path / "host_args.json"
        self.grader_failure = self.path / "grader_failure.json"
        self.status = self.path / "status.json"
        self.lock = self.path / "run.lock"
        self.log = self.path / "log.txt"
        self.supervisor = self.path / "supervisor.txt"
        self.checkpoint = self.path / "checkpoint"
        self.eval = self.path / "eval"

    def read_status(self) -> Status | None:
        """The status, or None for a run that never started. Raises ``ValueError`` naming a damaged file."""
        found = read_json(self.status)
        return None if found is None else Status.model_validate(found)

    def write_status(self, status: Status) -> None:
        write_json(self.status, status.model_dump())

    def read_metrics(self) -> list[dict[str, Any]]:
        return read_metrics(self.metrics)

    def log_tail(self, lines: int = 15) -> list[str]:
        """The last lines of the training's own output; none when there is no log."""
        return _tail(self.log, lines)

    def supervisor_tail(self, lines: int = 15) -> list[str]:
        """The last lines of what ``steer train`` itself said in a study; none when there are none."""
        return _tail(self.supervisor, lines)


def _tail(path: Path, lines: int) -> list[str]:
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - 64 * 1024))
            text = file.read().decode("utf-8", errors="replace")
    except FileNotFoundError:
        return []
    return [line.split("\r")[-1] for line in text.splitlines() if line.strip()][-lines:]


def now() -> str:
    """This moment in UTC, ISO 8601, whole seconds."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def write_text(path: Path, text: str, sync: bool = True) -> None:
    """Write a file whole or not at all: a reader, or a crash, never sees a part of it. Without ``sync`` that does not
    hold for a power cut: for what can be written again."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            if sync:
                os.fsync(file.fileno())
        os.chmod(temporary, 0o644)  # mkstemp's 0600 would hide results from the rest of a group
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """JSON, indented, whole or not at all. NaN and infinities are refused (``ValueError``): they are not JSON."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def write_yaml(path: Path, value: Mapping[str, Any], sync: bool = True) -> None:
    text = yaml.dump(dict(value), Dumper=_DUMPER, sort_keys=False, allow_unicode=True, width=120)
    write_text(path, text, sync)


def read_json(path: Path) -> dict[str, Any] | None:
    """A JSON object, or None when there is no such file. Raises ``ValueError`` naming a file that is not one."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: is not JSON ({error}); it was damaged from outside, remove the run") from None
    if not isinstance(found, dict):
        raise ValueError(f"{path}: must hold a JSON object, holds {type(found).__name__}")
    return found


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Every line of ``metrics.jsonl``; no file means no lines.

    The last line may be torn (its writer is at work, or was killed) and is then left out.

    Raises:
        ValueError: a line before the last is damaged; the message names file and line number.
    """
    try:
        lines = path.read_bytes().split(b"\n")
    except FileNotFoundError:
        return []
    while lines and not lines[-1].strip():
        lines.pop()
    rows = []
    for number, line in enumerate(lines, start=1):
        row = _row(line)
        if row is not None:
            rows.append(row)
        elif number < len(lines):
            raise _damaged(path, number, line)
    return rows


class MetricsReader:
    """``metrics.jsonl`` while it is written: :meth:`read` costs what was added since it was last called."""

    def __init__(self, path: Path) -> None:
        self.path, self.rows = path, list[dict[str, Any]]()
        self._offset = self._number = 0

    def read(self) -> list[dict[str, Any]]:
        """All complete lines so far; a file that became shorter is read anew. Raises ``ValueError`` for a damaged
        line."""
        try:
            with self.path.open("rb") as file:
                if os.fstat(file.fileno()).st_size < self._offset:
                    self.rows, self._offset, self._number = [], 0, 0
                file.seek(self._offset)
                added = file.read()
        except FileNotFoundError:
            return self.rows
        whole = added[: added.rfind(b"\n") + 1]
        for line in whole.split(b"\n")[:-1]:
            self._number += 1
            if not line.strip():
                continue
            if (row := _row(line)) is None:
                raise _damaged(self.path, self._number, line)
            self.rows.append(row)
        self._offset += len(whole)
        return self.rows


def _row(line: bytes) -> dict[str, Any] | None:
    try:
        row = json.loads(line)
    except (json.JSONDecodeError, UnicodeDecodeError):
        return None
    return row if isinstance(row, dict) else None


def _damaged(path: Path, number: int, line: bytes) -> ValueError:
    return ValueError(f"{path}:{number}: damaged line {line[:60]!r}; only the last line may be incomplete")
