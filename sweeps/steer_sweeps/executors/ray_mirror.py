"""A run's small files through a job's log: for a cluster without a file system shared with the controller.

The log also has what anybody else printed, in between and on the same line, and its last line may be torn. So every
message stands on a line of its own with its length and checksum, and says where it belongs: file, version, place.
"""

import json
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from steer_experiments.run_dir import RunDir, write_text

GROWING = "metrics.jsonl"
WHOLE = ("status.json", "host_args.json", "env.json", "prepared.json", "grader_failure.json")
TAILS = ("log.txt", "supervisor.txt")
"""Files of which only the end is sent, when the run is over."""
NAMES = frozenset({GROWING, *WHOLE, *TAILS})
PIECE = 16 * 1024
TAIL_BYTES = 16 * 1024
_LINE = re.compile(r"@steer (\d+) ([0-9a-f]{8}) (.*)$", re.MULTILINE)


def encode(name: str, version: int, size: int, at: int, piece: bytes) -> str:
    """One message, with the newline before it that ends whatever somebody else was printing."""
    text = json.dumps([name, version, size, at, piece.decode("latin-1")])
    return f"\n@steer {len(text)} {zlib.crc32(text.encode()):08x} {text}\n"


def decode(log: str) -> Iterator[tuple[str, int, int, int, bytes]]:
    """The undamaged messages of a log, in order."""
    for found in _LINE.finditer(log):
        text = found[3][: int(found[1])]
        if len(text) == int(found[1]) and f"{zlib.crc32(text.encode()):08x}" == found[2]:
            name, version, size, at, piece = json.loads(text)
            yield name, version, size, at, piece.encode("latin-1")


def messages(name: str, version: int, content: bytes, start: int = 0) -> Iterator[str]:
    """A file's content from ``start`` on, in pieces."""
    for at in range(start, max(len(content), start + 1), PIECE):
        yield encode(name, version, len(content), at, content[at : at + PIECE])


@dataclass
class Sender:
    """What of a run directory has been sent."""

    run: RunDir
    sent: dict[str, tuple[int, bytes]] = field(default_factory=dict)
    """File -> version and content."""

    def news(self) -> list[str]:
        """Messages for what changed. Metrics grow (or start anew, as a new version); other files are sent whole."""
        found: list[str] = []
        for name in (*WHOLE, GROWING):  # the status may name a step that the metrics do not have yet; never after it
            content = _content(self.run.path / name)
            version, old = self.sent.get(name, (0, None))
            if content is None or content == old:
                continue
            grown = name == GROWING and old is not None and content.startswith(old)
            version += 0 if grown or old is None else 1
            found += messages(name, version, content, len(old) if grown and old is not None else 0)
            self.sent[name] = version, content
        return found

    def everything(self) -> list[str]:
        """All again, for what was damaged on the way, and the ends of the logs."""
        found = self.news()
        for name, (version, content) in self.sent.items():
            found += messages(name, version, content)
        for name in TAILS:
            if (tail := _content(self.run.path / name)) is not None:
                found += messages(name, 0, tail[-TAIL_BYTES:])
        return found


def _content(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None


def assemble(log: str) -> dict[str, bytes]:
    """The files a log holds. A whole file needs all its pieces; of one that grows, what has no gap before it counts."""
    pieces: dict[str, dict[int, list[tuple[int, int, bytes]]]] = {}
    for name, version, size, at, piece in decode(log):
        if name in NAMES:
            pieces.setdefault(name, {}).setdefault(version, []).append((at, size, piece))
    found: dict[str, bytes] = {}
    for name, versions in pieces.items():
        for version in sorted(versions):
            content = _joined(versions[version])
            size = max(size for _, size, _ in versions[version])
            if name == GROWING or len(content) == size:
                found[name] = content
    return found


def _joined(pieces: list[tuple[int, int, bytes]]) -> bytes:
    content = b""
    for at, _, piece in sorted(pieces):
        if at > len(content):
            break
        content += piece[len(content) - at :]
    return content


def write_files(run: RunDir, files: dict[str, bytes]) -> None:
    """Into the run directory, where they differ; the status last, so that an end state means that all is there."""
    for name in sorted(files, key=lambda one: one == "status.json"):
        path = run.path / name
        if _content(path) != files[name]:
            write_text(path, files[name].decode(errors="replace"))
