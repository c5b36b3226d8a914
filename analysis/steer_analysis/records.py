"""Per-sample evaluation records on disk: ``<run>/eval/<suite>.jsonl`` beside ``<suite>.meta.json``.

The records grow line by line and are fsynced every two seconds, so a killed evaluation loses what was not finished and
graded by then, and no more. They count as complete only when the meta file says so with the number that was expected.
"""

import fcntl
import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self, get_args

from steer_experiments.run_dir import read_json, write_json, write_text

Verdict = Literal["correct", "wrong", "unparsed", "truncated", "timeout", "error"]
VERDICTS: tuple[Verdict, ...] = get_args(Verdict)
UNSCORED: tuple[Verdict, ...] = ("timeout", "error")
"""The grader failed, not the model: such a sample has no score, and a run that has one is not ranked."""


@dataclass(frozen=True)
class Protocol:
    """Everything two accuracies must share to be compared. ``prompt`` says how the question was put to the model.

    ``revision`` is where the items came from. It does not count: ``content_hash`` is of the items themselves, questions
    as they are put and golds.
    """

    suite: str
    content_hash: str
    n_items: int
    n_samples: int
    temperature: float
    top_p: float
    max_new_tokens: int
    seed: int
    grader: str
    prompt: str
    revision: str = field(default="", compare=False)

    @property
    def hash(self) -> str:
        """Twelve hex digits that stand for the protocol."""
        counted = {key: value for key, value in asdict(self).items() if key != "revision"}
        return hashlib.sha256(json.dumps(counted, sort_keys=True).encode()).hexdigest()[:12]

    @property
    def expected_records(self) -> int:
        return self.n_items * self.n_samples


@dataclass(frozen=True)
class Record:
    """One sampled answer and its verdict. ``tokens``: its length; None in records of older versions."""

    item: str
    level: str
    sample: int
    seed: int
    prompt: str
    output: str
    answer: str | None
    gold: str
    verdict: Verdict
    reason: str | None
    grader: str
    tokens: int | None = None

    @property
    def key(self) -> tuple[str, int]:
        return self.item, self.sample


@dataclass(frozen=True)
class Meta:
    """What ``<suite>.meta.json`` says. ``complete`` is believed only together with the number of records."""

    protocol: Protocol
    checkpoint: str
    checkpoint_sha256: str
    complete: bool
    context: dict[str, Any]
    """Versions, device, commit and times: shown, not part of what makes two evaluations comparable."""

    def write(self, path: Path) -> None:
        own = {"protocol_hash": self.protocol.hash, "expected_records": self.protocol.expected_records}
        write_json(path, own | asdict(self))


def read_meta(path: Path) -> Meta | None:
    """The meta file, or None when there is none. ``ValueError`` names a damaged one."""
    found = read_json(path)
    if found is None:
        return None
    try:
        protocol = Protocol(**found["protocol"])
        return Meta(protocol, *(found[field.name] for field in fields(Meta)[1:]))
    except (KeyError, TypeError) as error:
        raise ValueError(f"{path}: is not an evaluation's meta file ({error}); run steer eval --redo") from None


def read_records(path: Path) -> tuple[list[Record], int]:
    """The records of a file and the bytes they take. A last line without its newline is torn and left out.

    Raises:
        ValueError: a whole line is not a record, or an item and sample occur twice; names file and line.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return [], 0
    whole = data[: data.rfind(b"\n") + 1]
    records: dict[tuple[str, int], Record] = {}
    for number, line in enumerate(whole.split(b"\n")[:-1], start=1):
        record = _record(line)
        if record is None:
            raise ValueError(f"{path}:{number}: damaged record {line[:60]!r}; run steer eval --redo")
        if record.key in records:
            raise ValueError(f"{path}:{number}: item {record.item!r} sample {record.sample} is there twice; use --redo")
        records[record.key] = record
    return list(records.values()), len(whole)


def _record(line: bytes) -> Record | None:
    try:
        record = Record(**json.loads(line))
    except (ValueError, TypeError):
        return None
    return record if record.verdict in VERDICTS else None


def _lines(records: Iterable[Record]) -> bytes:
    return "".join(json.dumps(asdict(record)) + "\n" for record in records).encode()


class RecordFile:
    """The one writer of a records file: waits for its turn, drops a torn last line (or everything, with ``discard``),
    appends durably."""

    def __init__(self, path: Path, discard: bool = False) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        self._file = path.open("ab")
        try:
            self._lock()
            self.records, size = ([], 0) if discard else read_records(path)
        except BaseException:
            self._file.close()
            raise
        self._file.truncate(size)

    def _lock(self) -> None:
        while True:
            try:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # dies with its process: never stale
            except BlockingIOError:
                print(f"{self.path}: another evaluation is writing it; waiting for that one", flush=True)
                fcntl.flock(self._file, fcntl.LOCK_EX)
            if self.path.exists() and os.path.samestat(os.fstat(self._file.fileno()), self.path.stat()):
                return
            self._file.close()  # it was replaced while we waited
            self._file = self.path.open("ab")

    def append(self, records: Iterable[Record]) -> None:
        """Write records and wait until they are on disk."""
        added = list(records)
        self._file.write(_lines(added))
        self._file.flush()
        os.fsync(self._file.fileno())
        self.records += added

    def replace(self, records: Sequence[Record]) -> None:
        """Put others in the place of all records: whole or not at all. Nothing can be appended afterwards."""
        write_text(self.path, _lines(records).decode())
        self.records = list(records)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()


@dataclass(frozen=True)
class Evaluation:
    """A complete evaluation: exactly the expected records."""

    meta: Meta
    records: Sequence[Record]


def load_evaluation(folder: Path, suite: str) -> Evaluation:
    """The complete evaluation of a suite in ``<run>/eval``.

    Raises:
        ValueError: there is none, or it is not complete; says what to do.
    """
    meta = read_meta(folder / f"{suite}.meta.json")
    records, _ = read_records(folder / f"{suite}.jsonl")
    if meta is None:
        raise ValueError(f"not evaluated on {suite}: run steer eval")
    if not meta.complete or len(records) != meta.protocol.expected_records:
        raise ValueError(
            f"evaluation on {suite} is not complete ({len(records)} of {meta.protocol.expected_records} samples): "
            "run steer eval again, it continues"
        )
    require_one_grader(folder / f"{suite}.jsonl", records, meta.protocol)
    return Evaluation(meta, records)


def require_one_grader(path: Path, records: Iterable[Record], protocol: Protocol) -> None:
    """``ValueError`` when a record was graded by another grader than the protocol's: a regrading was interrupted
    between its two files."""
    if other := next((record.grader for record in records if record.grader != protocol.grader), None):
        raise ValueError(f"{path}: graded by {other}, the meta file says {protocol.grader}: run steer regrade again")
