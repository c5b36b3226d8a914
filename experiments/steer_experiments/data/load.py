"""A suite's items: the whole of it, every item once, or an error that names the item."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from steer_openrlhf.errors import ConfigError

from steer_experiments.cache import file_digest
from steer_experiments.data import golds
from steer_experiments.data.hub import hub_rows, pinned
from steer_experiments.data.questions import Problem, content_sha256, item_id, same_key
from steer_experiments.data.rows import Row, asked, read_rows
from steer_experiments.data.sources import Source

SHOWN = 8  # mistakes named one by one before the rest is only counted
_TOO_MANY = 1000  # mistakes after which reading on tells nothing new
Numbered = Iterable[tuple[int, Row]]


@dataclass(frozen=True)
class Collected:
    """Different (prompt, gold) pairs in the order of their first row, and how many rows each has."""

    problems: tuple[Problem, ...]
    counts: tuple[int, ...]

    @property
    def rows(self) -> int:
        return sum(self.counts)


@dataclass(frozen=True)
class Loaded:
    """A suite. ``revision`` says which file or commit it is of; ``copies`` how often the source had every item."""

    source: Source
    problems: tuple[Problem, ...]
    sha256: str
    revision: str
    copies: int
    path: Path | None = None


def find_file(source: Source, folder: Path | None) -> Path | None:
    """The file of a source in a folder, or None."""
    found = (folder / name for name in source.files) if folder else ()
    return next((path for path in found if path.is_file()), None)


def load_suite_source(
    source: Source, path: Path | None = None, revision: str | None = None, check_golds: bool | None = None
) -> Loaded:
    """Every item once, from the file ``path`` (None: from the hub at its pinned ``revision``).

    Golds are read by the grader unless the content is the pinned one, whose golds have been (``check_golds`` True:
    always, False: never).

    Raises:
        ConfigError: every mistake at once, with the row and item: damaged rows, empty or unreadable golds, an item
            twice, a wrong number of items or copies, or content that is not the pinned one.
    """
    where, rows, revision_text = open_rows(source, path, revision)
    found = collect(source.read_from(path), rows, where)
    mistakes = _same_item_twice(found.problems, where) + _uneven_copies(source, found, where)
    if not mistakes and source.expected_n not in (None, len(found.problems)):
        mistakes.append(f"{where}: holds {len(found.problems)} items, expected {source.expected_n}")
    if mistakes:
        raise_some(mistakes, where)
    sha256 = content_sha256(found.problems)
    is_pinned = sha256 == source.sha256
    if path is not None and source.sha256 and not is_pinned:
        raise ConfigError([_changed(source, where, sha256)])
    if check_golds or (check_golds is None and not is_pinned):
        exceptions = {**golds.known_exceptions(source.name), **source.compared_as_text}
        raise_some(golds.sentences(golds.unreadable(found.problems, exceptions), where), where)
    told = source.released if is_pinned and path is not None and source.released else revision_text
    return Loaded(source, found.problems, sha256, told, max(found.counts, default=1), path)


def open_rows(source: Source, path: Path | None, revision: str | None) -> tuple[str, Numbered, str]:
    """What mistakes are told of, the rows, and the revision in words."""
    if path is not None:
        digest = file_digest(path)[:12] if path.is_file() else ""
        return str(path), read_rows(path), f"file {path.name} sha256 {digest}"
    hub, commit = pinned(source.name, source.hub, revision)
    split = "/".join(part for part in (hub.config, hub.split) if part)
    told = f"huggingface.co/datasets/{hub.repo}@{commit}:{split}"
    return told, hub_rows(hub, commit), told


def collect(source: Source, rows: Numbered, where: str, say: Callable[[int], None] | None = None) -> Collected:
    """The different items of the rows. Only these are kept, so a file that repeats 17,000 items a hundred times is
    read in the memory of 17,000. ``say(row)`` is called at every row.

    Raises:
        ConfigError: rows that ask nothing, have no answer, or give one id to two items.
    """
    kept: dict[tuple[str, str], Problem] = {}
    counts: Counter[tuple[str, str]] = Counter()
    taken: Counter[str] = Counter()
    mistakes: list[str] = []
    for number, row in rows:
        one, wrong = asked(row, source.columns)
        mistakes += [f"{where}:{number}: {sentence}" for sentence in wrong]
        if len(mistakes) > _TOO_MANY:
            break
        if one is not None:
            key = (one.prompt, one.gold)
            counts[key] += 1
            if key not in kept:
                name = f"{source.name}/{one.id}" if one.id else item_id(source.name, one.problem)
                taken[name] += 1
                name += f"-{taken[name]}" if taken[name] > 1 else ""
                level = one.level or source.name
                kept[key] = Problem(name, one.problem, one.gold, level, one.prompt, one.template, number)
        if say:
            say(number)
    raise_some(mistakes, where)
    return Collected(tuple(kept.values()), tuple(counts[key] for key in kept))


def _same_item_twice(problems: Sequence[Problem], where: str) -> list[str]:
    """Two rows that ask the same with other spacing, or with another gold."""
    first: dict[str, Problem] = {}
    mistakes = []
    for one in problems:
        other = first.setdefault(same_key(one.problem), one)
        if other is not one:
            golds_ = "" if other.gold == one.gold else f", with the golds {other.gold[:40]!r} and {one.gold[:40]!r}"
            mistakes.append(f"{where}:{one.row}: item {other.id} was already in row {other.row}{golds_}")
    return mistakes


def _uneven_copies(source: Source, found: Collected, where: str) -> list[str]:
    """A whole file may hold every item ``source.copies`` times; anything else is an item that is there twice."""
    if not found.counts or set(found.counts) in ({1}, {source.copies}):
        return []
    usual = max((1, source.copies), key=found.counts.count)
    return [
        f"{where}:{one.row}: item {one.id} stands there {count} times; expected {usual}"
        for one, count in zip(found.problems, found.counts, strict=True)
        if count != usual
    ]


def _changed(source: Source, where: str, sha256: str) -> str:
    return (
        f"{where}: its content is not that of {source.name} as released ({source.released}): sha256 {sha256[:16]}..., "
        f"pinned {str(source.sha256)[:16]}...; for a variant of your own write a suites file (experiments/DATA.md)"
    )


def raise_some(mistakes: Sequence[str], where: str) -> None:
    """:class:`ConfigError` with the first mistakes and the number of the rest; nothing when there are none."""
    if mistakes:
        rest = len(mistakes) - SHOWN
        raise ConfigError([*mistakes[:SHOWN], *([f"and {rest} more in {where}"] if rest > 0 else [])])
