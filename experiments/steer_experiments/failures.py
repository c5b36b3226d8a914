"""Why a run gave no result, in a few classes: what a study does next depends on the class, not on the text."""

import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from .checks import NO_SPACE, OUT_OF_MEMORY, without_guesses
from .run_dir import RunDir

Kind = Literal["config", "out_of_memory", "nan", "infrastructure", "timeout", "preempted", "interrupted", "training"]
UNCOUNTED = frozenset({"interrupted", "preempted", "duplicate"})
"""Ends that say nothing against a configuration: no try is counted. A ``duplicate`` was begun by two."""
NEVER_AGAIN = frozenset({"config", "invalid"})
"""Ends that another try cannot change (``invalid`` is what older studies called ``config``)."""
TAIL_LINES = 15
FULL_BYTES = 1 << 20
"""A disk with less free space than this is full."""

_PREEMPTED = r"preempted|requeued"
_TIMEOUT = r"stalled:|\(stall_minutes\)|slurm: timeout|time limit"
_OUT_OF_MEMORY = "|".join(re.escape(one) for one in OUT_OF_MEMORY if one != "OOM") + r"|out_of_memory|oom.?kill"
_PLACE = "|".join(map(re.escape, NO_SPACE)) + r"|no space left on"
_IN_USE = "another process is running this run"
_CONFIG = r"configerror|unrecognized arguments|invalid choice|exit code 2\b|\d mistakes?:"
_NAN = r"is no number|contains either `inf`, `nan`|loss is nan|nan loss|nan detected|nan or inf"
_BROKEN = (
    r"cuda error|cudnn error|nccl (error|watchdog)|\becc error|fallen off the bus|input/output error|stale file handle"
    r"|read-only file system|node_fail|connection (refused|reset|timed out)|(raylet|owner|worker|node) died"
    r"|(actordied|actorunavailable|rayactor|workercrashed|nodedied|enginedead)error|gcs server"
    r"|connect to gcs|raylet is terminated"
)
_KILLED = r"sigkill|sigbus|signal [79]\b|vanished"


@dataclass(frozen=True)
class Failure:
    """The class, and the reason: one line, then the last lines of the log."""

    kind: Kind
    reason: str


def classify(run: RunDir, exit_note: str = "") -> Failure:
    """What went wrong with a run that has no result, from what it and the place that ran it left behind.

    ``exit_note``: what the place saw of the end, for example "killed by SIGKILL". A damaged status is a failure of its
    own; it never raises.
    """
    try:
        status = run.read_status()
    except ValueError as error:
        return Failure("infrastructure", str(error))
    if status is not None and status.state == "stopped":
        kind: Kind = "preempted" if _has(exit_note, _PREEMPTED) else "interrupted"
        return Failure(kind, _first(status.reason or "stopped", exit_note))
    if status is not None and status.state == "failed":
        reason = status.reason or "no reason given"
        return Failure(_kind([reason, exit_note], _lines(run)), reason if "\n" in reason else _with_tail(reason, run))
    where = f"in state {status.state} at step {status.step}" if status else "before it wrote a status"
    reason = _with_tail(_first(f"its process vanished {where}", exit_note, _disk(run)), run)
    return Failure(_vanished_kind(run, exit_note), reason)


def _vanished_kind(run: RunDir, exit_note: str) -> Kind:
    if _has(exit_note, _PREEMPTED):
        return "preempted"
    log = _lines(run)
    if _has("\n".join(log), _IN_USE):  # refused like bad input, which it is not
        return "infrastructure"
    found = _kind([exit_note], log)
    return found if found in ("config", "out_of_memory", "timeout") else "infrastructure"


def _kind(words: Sequence[str], log: Sequence[str]) -> Kind:
    """The class by the reason first, then by the log: what the reason names is nearer to the cause. That something was
    killed says least."""
    for text in (without_guesses("\n".join(words)), without_guesses("\n".join(log))):
        for kind, signs in _SIGNS:
            if _has(text, signs):
                return kind
    return "infrastructure" if _has("\n".join(words), _KILLED) else "training"


_SIGNS: tuple[tuple[Kind, str], ...] = (
    ("preempted", _PREEMPTED),
    ("timeout", _TIMEOUT),
    ("out_of_memory", _OUT_OF_MEMORY),
    ("infrastructure", _PLACE),
    ("config", _CONFIG),
    ("nan", _NAN),
    ("infrastructure", _BROKEN),
)


def _has(text: str, pattern: str) -> bool:
    return re.search(pattern, text, re.IGNORECASE) is not None


def _first(*parts: str) -> str:
    return "; ".join(part for part in parts if part)


def _lines(run: RunDir) -> list[str]:
    """The ends of the training's log and of its supervisor's output."""
    return [*run.log_tail(200), *run.supervisor_tail(50)]


def _with_tail(reason: str, run: RunDir) -> str:
    for file, tail in ((run.log, run.log_tail(TAIL_LINES)), (run.supervisor, run.supervisor_tail(TAIL_LINES))):
        if tail:
            return "\n".join([f"{reason}; last lines of {file.name}:", *tail])
    return reason


def _disk(run: RunDir) -> str:
    try:
        return NO_SPACE[0] if shutil.disk_usage(run.path).free < FULL_BYTES else ""
    except OSError:
        return "its directory cannot be read"
