"""``steer data``: prepare prompt files, list what is known, check files. Light: the work is imported when it runs."""

import argparse
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def register(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Mount ``data``."""
    parser = subparsers.add_parser("data", help="prompt files and evaluation suites", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="prepare|list|check")
    _register_prepare(commands)
    _register_list(commands)
    _register_check(commands)


def _register_prepare(commands: Any) -> None:
    text = "Write OpenRLHF prompt files (input, label, datasource), compared with the evaluation suites."
    parser = commands.add_parser("prepare", help="write prompt files", description=text)
    parser.add_argument("name", help="dapo-math-17k, gsm8k (its training split), or a suite")
    parser.add_argument("--from", dest="source", type=Path, metavar="FILE|DIR", help="local file, or a folder with it")
    parser.add_argument("--output", type=Path, metavar="DIR", help="default: $STEER_DATA or data, and the name")
    parser.add_argument("--max", type=int, metavar="N", help="the first N questions only")
    parser.add_argument("--question", metavar="NAME", help="how it is put: plain, boxed, dapo, dapo_boxed, file")
    parser.add_argument("--revision", metavar="COMMIT", help="of the hub's data set, in place of the pinned one")
    parser.add_argument("--against", action="append", metavar="SUITE", help="compare with it; default: all found")
    parser.add_argument("--data-dir", type=Path, metavar="DIR", help="where the suites' files are")
    parser.add_argument("--drop-contaminated", action="store_true", help="leave out questions found in a suite")
    parser.add_argument("--drop-duplicates", action="store_true", help="leave out repeated and contradicting questions")
    parser.add_argument("--unchecked", action="store_true", help="compare with no suite")
    parser.set_defaults(func=_prepare)


def _prepare(args: argparse.Namespace) -> int:
    from steer_openrlhf.errors import ConfigError

    from .catalogue import data_root
    from .prepare import Wanted, prepare, training_source

    if args.max is not None and args.max < 1:
        raise ConfigError([f"--max {args.max}: must be at least 1"])
    against = tuple(args.against) if args.against else None
    wanted = Wanted(
        args.name,
        args.source,
        args.revision,
        args.question,
        args.max,
        against,
        args.drop_contaminated,
        args.drop_duplicates,
        args.unchecked,
        args.data_dir,
    )
    output = args.output or data_root() / training_source(args.name)[0].name
    manifest = prepare(wanted, output)
    for line in describe(manifest):
        print(line)
    print(f"wrote {output}{os.sep}train.jsonl and manifest.json")
    return 0


def describe(manifest: Mapping[str, Any]) -> list[str]:
    """A manifest for a person."""
    copies = ", ".join(f"{items:,} stood there {count} times" for count, items in manifest["copies"].items())
    doubles, found = manifest["duplicates"], manifest["contamination"]
    lines = [
        f"{manifest['name']}: {manifest['n']:,} questions of {manifest['different']:,} different ones in "
        f"{manifest['rows']:,} rows ({copies})",
        f"source: {manifest['source']}; question template: {manifest['question']}; sha256 {manifest['sha256'][:16]}",
        f"same question and gold in other spacing: {doubles['same_question_and_gold']}; with another gold: "
        f"{len(doubles['same_question_other_gold'])}" + (", all dropped" if doubles["dropped"] else ", kept"),
    ]
    if not found["checked"]:
        return [*lines, "compared with no evaluation suite (--unchecked)"]
    done = "dropped" if found["dropped"] else "kept (--drop-contaminated leaves them out)"
    lines.append(f"questions found in an evaluation suite: {found['training_questions']}, {done}")
    for name, one in found["suites"].items():
        lines.append(
            f"  {name}: {one['exact']} of {one['items']} items exactly, {one['overlap']} by most of their words"
        )
    return lines + [f"  {name}: not compared: {why}" for name, why in found["not_checked"].items()]


def _register_list(commands: Any) -> None:
    parser = commands.add_parser("list", help="suites and training sets that are known", description=_list.__doc__)
    parser.add_argument("--data-dir", type=Path, metavar="DIR", help="where files are looked for")
    parser.set_defaults(func=_list)


def _list(args: argparse.Namespace) -> int:
    """Every suite and training set: items, where it comes from, and the file that would be read."""
    from .catalogue import data_root
    from .load import find_file
    from .sources import GROUPS, SUITES, TRAINING

    folder = args.data_dir or data_root()
    for title, sources in (("evaluation suites", SUITES), ("training sets", TRAINING)):
        print(f"{title}:")
        for name, one in sources.items():
            pin = one.hub.revision[:12] if one.hub and one.hub.revision else "(no revision pinned)"
            hub = f"{one.hub.repo}@{pin}" if one.hub else "none"
            path = find_file(one, folder)
            print(f"  {name:14} {one.expected_n or '?':>6} items  {path or f'no file in {folder}'}  hub: {hub}")
    for name, members in GROUPS.items():
        print(f"group {name}: {', '.join(members)}")
    return 0


def _register_check(commands: Any) -> None:
    text = "Read suites whole, every gold answer through the grader, and print their content hashes."
    parser = commands.add_parser("check", help="read suites and their golds", description=text)
    parser.add_argument("names", nargs="*", metavar="SUITE", help="suite, group, or suites file; default: math6")
    parser.add_argument("--data-dir", type=Path, metavar="DIR", help="where their files are")
    parser.add_argument("--revision", metavar="COMMIT", help="of the hub's data set, in place of the pinned one")
    parser.set_defaults(func=_check)


def _check(args: argparse.Namespace) -> int:
    from steer_openrlhf.errors import ConfigError

    from .catalogue import data_root, expand, open_source
    from .load import find_file, load_suite_source

    mistakes: list[str] = []
    for name in [one for given in args.names or ["math6"] for one in expand(given)]:
        try:
            source, own = open_source(name)
            path = find_file(source, own or args.data_dir or data_root()) if args.revision is None else None
            found = load_suite_source(source, path, args.revision, check_golds=True)
        except ConfigError as error:
            mistakes += error.mistakes
            continue
        copies = f", each {found.copies} times" if found.copies > 1 else ""
        print(f"{source.name}: {len(found.problems)} items{copies}; {found.revision}; sha256 {found.sha256}")
    if mistakes:
        raise ConfigError(mistakes)
    return 0
