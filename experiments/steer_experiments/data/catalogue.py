"""Suites by name, the groups of them, and the suites a user writes down in a YAML file.

suites:
  mine:
    file: questions.jsonl          # beside this file; or  hub: {repo: org/name, split: test, revision: <commit id>}
    problem: question              # the columns; default problem and answer. verl's layout is recognised
    gold: answer
    id: uid                        # optional: the item's name, its level
    level: difficulty
    expected_n: 120
    sha256: 3f0c...                # optional: of the content, as `steer data check` prints it
    copies: 32                     # optional: the file may hold every item so many times
    question: boxed                # how it is put: plain, boxed, dapo, dapo_boxed, file, or a text with {problem}
    compared_as_text: {"E_1,E_2": "a pair of symbols"}     # golds math-verify cannot read, with the reason
groups:
  both: [mine, aime24]
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator
from steer_openrlhf.errors import ConfigError, mistakes_of, suggest

from steer_experiments.data.questions import template_text
from steer_experiments.data.rows import Columns
from steer_experiments.data.sources import GROUPS, SUITES, Hub, Source
from steer_experiments.recipes import read_yaml

DATA_VARIABLE = "STEER_DATA"
DEFAULT_DATA = Path("data")
_NAME = r"^[A-Za-z0-9][A-Za-z0-9_-]*$"
_YAML = (".yaml", ".yml")
RESERVED = ("tiny_test", "tiny_validation")


def data_root() -> Path:
    """$STEER_DATA, or ./data: where suites' files and prepared prompt files are."""
    return Path(os.environ.get(DATA_VARIABLE) or DEFAULT_DATA)


class HubEntry(BaseModel):
    """A hub data set of a suites file. Its revision is not optional: what can move is no benchmark."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    repo: str = Field(pattern=r"^[\w.-]+/[\w.-]+$")
    split: str = "test"
    config: str | None = None
    revision: str = Field(pattern=r"^[0-9a-f]{40}$")


class SuiteEntry(BaseModel):
    """One suite of a suites file."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    file: str | None = None
    hub: HubEntry | None = None
    problem: str = "problem"
    gold: str = "answer"
    id: str | None = None
    level: str | None = None
    expected_n: int = Field(ge=1)
    sha256: str | None = Field(default=None, pattern=r"^[0-9a-f]{64}$")
    copies: int = Field(default=1, ge=1)
    question: str = "boxed"
    compared_as_text: dict[str, str] = {}

    @field_validator("question")
    @classmethod
    def _known(cls, value: str) -> str:
        template_text(value)
        return value

    def source(self, name: str) -> Source:
        """This entry as a :class:`Source`."""
        columns = Columns(self.problem, self.gold, self.id, self.level)
        hub = Hub(self.hub.repo, self.hub.split, self.hub.revision, self.hub.config, columns) if self.hub else None
        files = (self.file,) if self.file else ()
        told = f"{self.file or (self.hub and self.hub.repo)} as its suites file says"
        return Source(
            name,
            self.expected_n,
            files,
            hub,
            told,
            self.sha256,
            self.copies,
            columns,
            self.question,
            self.compared_as_text,
        )


class SuitesFile(BaseModel):
    """A user's suites and groups."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    suites: dict[str, SuiteEntry] = Field(min_length=1)
    groups: dict[str, list[str]] = {}


def known_names() -> list[str]:
    """Groups and suites that need no file of one's own to be named."""
    return [*GROUPS, *SUITES]


def expand(name: str, others: Sequence[str] = ()) -> tuple[str, ...]:
    """The suites a name stands for. ``others``: names the caller knows beside these, for the message.

    Raises:
        ConfigError: the name is unknown, or its suites file is wrong.
    """
    path, _, member = _split(name)
    if path is None:
        if name in GROUPS or name in SUITES:
            return GROUPS.get(name, (name,))
        raise ConfigError([_unknown(name, [*known_names(), *others])])
    found = read_suites(path)
    if not member:
        return tuple(f"{path}:{one}" for one in found.suites)
    if member in found.groups:
        return tuple(f"{path}:{one}" if one in found.suites else one for one in found.groups[member])
    if member not in found.suites:
        raise ConfigError([_unknown(member, [*found.groups, *found.suites], f"{path}: ")])
    return (name,)


def open_source(name: str) -> tuple[Source, Path | None]:
    """One suite, and the folder its file is in when that is not the data folder. ``ConfigError`` for a group."""
    names = expand(name)
    if names != (name,):
        raise ConfigError([f"suite {name}: stands for {', '.join(names)}; open them one by one"])
    path, _, member = _split(name)
    if path is None:
        return SUITES[name], None
    return read_suites(path).suites[member].source(member), path.parent


def read_suites(path: Path) -> SuitesFile:
    """A suites file. ``ConfigError`` with every mistake."""
    tree = read_yaml(path)
    try:
        found = SuitesFile.model_validate(tree)
    except ValidationError as error:
        fields = [*SuitesFile.model_fields, *SuiteEntry.model_fields, *HubEntry.model_fields]
        raise ConfigError([f"{path}: {one}" for one in mistakes_of(error, fields=fields)]) from None
    if mistakes := [f"{path}: {one}" for one in _conflicts(found)]:
        raise ConfigError(mistakes)
    return found


def _conflicts(found: SuitesFile) -> Iterable[str]:
    taken = {*SUITES, *GROUPS, *RESERVED}
    for name, entry in found.suites.items():
        if not re.match(_NAME, name):
            yield f"suites.{name}: a name is letters, digits, _ and -"
        if name in taken:
            yield f"suites.{name}: is the name of a suite that exists; choose another"
        if (entry.file is None) == (entry.hub is None):
            yield f"suites.{name}: give exactly one of file, hub"
    for name, members in found.groups.items():
        if name in taken or name in found.suites:
            yield f"groups.{name}: the name is taken; choose another"
        for one in members:
            if one not in found.suites and one not in SUITES:
                yield _unknown(one, [*found.suites, *SUITES], f"groups.{name}: ")


def _split(name: str) -> tuple[Path | None, str, str]:
    """``file.yaml:member`` as (path, ":", member); path None for a plain name."""
    head, mark, member = name.rpartition(":")
    if mark and head.endswith(_YAML):
        return Path(head), mark, member
    return (Path(name), "", "") if name.endswith(_YAML) else (None, "", "")


def _unknown(name: str, known: Sequence[str], where: str = "") -> str:
    hint = suggest(name, known)
    own = "" if where else "; or the path of a suites file"
    return f"{where}suite {name!r} is unknown; known: {', '.join(known)}{own}" + (f"; {hint}" if hint else "")
