"""Prompt files for OpenRLHF: ``train.jsonl`` (input, label, datasource, id, level) and a manifest beside it.

The same source and settings give the same bytes: no time, no path of this machine, the order of the source. The folder
appears whole or not at all.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from steer_openrlhf.errors import ConfigError

from steer_experiments.cache import file_digest
from steer_experiments.data import golds
from steer_experiments.data.catalogue import data_root, expand, open_source
from steer_experiments.data.contamination import Hit, Index, N, report
from steer_experiments.data.load import Collected, collect, find_file, load_suite_source, open_rows, raise_some
from steer_experiments.data.questions import Problem, content_sha256, put, same_key, template_text
from steer_experiments.data.rows import SUFFIXES
from steer_experiments.data.sources import GROUPS, SUITES, TRAINING, Source

VERSION = 1  # raise it when the same source and settings would give other bytes
PROMPTS, MANIFEST = "train.jsonl", "manifest.json"
_EVERY = 200_000  # rows between two lines of progress
Say = Callable[[str], None]


@dataclass(frozen=True)
class Wanted:
    """What to prepare. ``against``: the suites it is compared with, None for all whose files are found."""

    name: str
    file: Path | None = None
    revision: str | None = None
    question: str | None = None
    most: int | None = None
    against: tuple[str, ...] | None = None
    drop_contaminated: bool = False
    drop_duplicates: bool = False
    unchecked: bool = False
    data_dir: Path | None = None


def training_source(name: str) -> tuple[Source, Path | None]:
    """A training set, or a suite as one; and the folder of a user's suite. ``ConfigError`` for an unknown name."""
    if name in TRAINING:
        return TRAINING[name], None
    if name in GROUPS:
        raise ConfigError([f"{name}: is a group; prepare {', '.join(GROUPS[name])} one by one"])
    expand(name, [*TRAINING])
    return open_source(name)


def prepare(wanted: Wanted, output: Path, say: Say = print) -> dict[str, Any]:
    """Write the prompt file and its manifest into the folder ``output``, replacing an earlier one; the manifest.

    Raises:
        ConfigError: the source is not there or not whole, a gold cannot be read, there is no suite to compare with, or
            ``output`` is something else than a prepared folder.
    """
    _refuse(output)
    source, folder = training_source(wanted.name)
    template = wanted.question or source.template
    template_text(template)
    path = _path(wanted, source, folder)
    suites: dict[str, Sequence[Problem]] = {}
    missing: dict[str, str] = {}
    if not wanted.unchecked:
        suites, missing = _suites(wanted, path)
    where, rows, told = open_rows(source, path, wanted.revision)
    found = collect(source.read_from(path), rows, where, _progress(say))
    _check(source, found, where)
    chosen, account = _choose(found.problems, suites, wanted)
    manifest = _manifest(source, found, chosen, account, wanted, template, told)
    manifest["contamination"]["not_checked"] = missing
    _write(output, chosen, template, manifest)
    return manifest


def _path(wanted: Wanted, source: Source, folder: Path | None) -> Path | None:
    """The file that is read; None for the hub."""
    if wanted.file and (wanted.file.suffix in SUFFIXES or wanted.file.is_file()):
        return wanted.file
    if wanted.revision and not wanted.file:
        return None
    path = find_file(source, wanted.file or folder or wanted.data_dir or data_root())
    if wanted.file and path is None:
        raise ConfigError([f"--from {wanted.file}: holds none of {', '.join(source.files)}"])
    return path


def _suites(wanted: Wanted, path: Path | None) -> tuple[dict[str, Sequence[Problem]], dict[str, str]]:
    """The evaluation items to compare with, and the suites that are not here with the reason."""
    names = wanted.against if wanted.against is not None else tuple(SUITES)
    folders = [one for one in (wanted.data_dir, path.parent if path else None, data_root()) if one]
    found: dict[str, Sequence[Problem]] = {}
    missing: dict[str, str] = {}
    for name in [one for given in names for one in expand(given)]:
        source, own = open_source(name)
        file = next((at for folder in ([own] if own else folders) if (at := find_file(source, folder))), None)
        if source.name == wanted.name and wanted.name not in TRAINING:
            continue
        if file is not None or wanted.against is not None:
            found[source.name] = load_suite_source(source, file, check_golds=False).problems
        else:
            missing[source.name] = f"no {' or '.join(source.files)} in the data folder"
    if not found:
        remedy = "give --data-dir with their files, or --unchecked to go without"
        raise ConfigError([f"{wanted.name}: there is no evaluation suite to compare with; {remedy}"])
    return found, missing


def _check(source: Source, found: Collected, where: str) -> None:
    """The expected number, the pinned content and golds the grader can read."""
    n, sha256 = len(found.problems), content_sha256(found.problems)
    if source.expected_n not in (None, n):
        raise ConfigError([f"{where}: holds {n} different items, expected {source.expected_n}"])
    if sha256 != source.sha256:
        exceptions = {**golds.known_exceptions(source.name), **source.compared_as_text}
        raise_some(golds.sentences(golds.unreadable(found.problems, exceptions), where), where)


def _choose(
    problems: Sequence[Problem], suites: Mapping[str, Sequence[Problem]], wanted: Wanted
) -> tuple[list[Problem], dict[str, Any]]:
    """The problems that are written, and the account of those that are not."""
    index = Index(suites)
    hits = [hit for one in problems for hit in index.hits(one)]
    groups: dict[str, list[Problem]] = {}
    for one in problems:
        groups.setdefault(same_key(one.problem), []).append(one)
    repeated = {one.id for group in groups.values() for one in group[1:] if len(_golds(group)) == 1}
    contradicting = {one.id for group in groups.values() if len(_golds(group)) > 1 for one in group}
    dropped = (repeated | contradicting) if wanted.drop_duplicates else set()
    dropped |= {hit.training for hit in hits} if wanted.drop_contaminated else set()
    kept = [one for one in problems if one.id not in dropped][: wanted.most]
    account = {
        "duplicates": {
            "same_question_and_gold": len(repeated),
            "same_question_other_gold": sorted(contradicting),
            "dropped": wanted.drop_duplicates,
        },
        "contamination": _contamination(hits, suites, wanted),
    }
    return kept, account


def _golds(group: Iterable[Problem]) -> set[str]:
    return {one.gold for one in group}


def _contamination(hits: Sequence[Hit], suites: Mapping[str, Sequence[Problem]], wanted: Wanted) -> dict[str, Any]:
    questions = len({hit.training for hit in hits})
    told = {"n": N, "checked": not wanted.unchecked, "training_questions": questions}
    return told | {"dropped": wanted.drop_contaminated, "suites": report(hits, suites)}


def _manifest(
    source: Source,
    found: Collected,
    chosen: Sequence[Problem],
    account: Mapping[str, Any],
    wanted: Wanted,
    template: str,
    told: str,
) -> dict[str, Any]:
    sha256 = content_sha256(found.problems)
    copies = Counter(found.counts)
    asked = Counter(one.template for one in found.problems)
    return {
        "version": VERSION,
        "name": source.name,
        "source": source.released if sha256 == source.sha256 and source.released else told,
        "read_from": told,
        "rows": found.rows,
        "different": len(found.problems),
        "copies": {str(count): items for count, items in sorted(copies.items())},
        "source_sha256": sha256,
        "question": template,
        "recognised_templates": dict(sorted(asked.items())),
        "n": len(chosen),
        "max": wanted.most,
        "sha256": content_sha256(chosen),
        **account,
    }


def prompt_rows(problems: Iterable[Problem], template: str, datasource: str) -> Iterable[dict[str, str]]:
    """Rows as OpenRLHF reads them; ``datasource`` is what its evaluation calls them."""
    for one in problems:
        row = {"input": put(one, template), "label": one.gold, "datasource": datasource}
        yield row | {"id": one.id, "level": one.level}


def _write(output: Path, problems: Sequence[Problem], template: str, manifest: dict[str, Any]) -> None:
    output.parent.mkdir(parents=True, exist_ok=True)
    building = Path(tempfile.mkdtemp(prefix=f".{output.name}.", dir=output.parent))
    try:
        building.chmod(0o755)
        with (building / PROMPTS).open("w", encoding="utf-8", newline="\n") as file:
            for row in prompt_rows(problems, template, manifest["name"]):
                file.write(json.dumps(row) + "\n")
        manifest["file_sha256"] = file_digest(building / PROMPTS)
        (building / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
        old = building.with_name(building.name + ".old")
        if output.exists():
            os.replace(output, old)
        os.replace(building, output)
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(building, ignore_errors=True)


def _refuse(output: Path) -> None:
    """A folder that holds something else is not replaced."""
    if output.is_dir() and any(output.iterdir()) and not (output / MANIFEST).is_file():
        raise ConfigError([f"--output {output}: is not empty and was not prepared before; give another folder"])
    if output.exists() and not output.is_dir():
        raise ConfigError([f"--output {output}: is a file; give a folder"])


def _progress(say: Say) -> Callable[[int], None]:
    def tell(row: int) -> None:
        if row % _EVERY == 0:
            say(f"{row:,} rows read")

    return tell
