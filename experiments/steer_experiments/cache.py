"""A folder cache keyed by content: built once, under a lock, visible only when it is complete.

Layout: `<root>/<kind>-<key>/`. A build happens in a temporary folder beside it and is renamed at the end, so a builder
that is killed leaves no half folder under the final name. `fcntl.flock` dies with its process: no stale locks.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

CACHE_VARIABLE = "STEER_CACHE"
DEFAULT_ROOT = Path(".cache/steer")
MANIFEST = "manifest.json"
_KEY_LENGTH = 16


def cache_root() -> Path:
    """$STEER_CACHE, or ./.cache/steer; absolute."""
    return Path(os.environ.get(CACHE_VARIABLE) or DEFAULT_ROOT).absolute()


def content_key(content: Any) -> str:
    """16 hex digits of the SHA-256 of `content` as canonical JSON."""
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:_KEY_LENGTH]


def file_digest(path: Path) -> str:
    """SHA-256 of a file's bytes, hex."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def folder_hash(folder: Path) -> str:
    """SHA-256 over the names and bytes of all files below `folder`, the manifest excepted; hex."""
    digest = hashlib.sha256()
    for path in sorted(p for p in folder.rglob("*") if p.is_file() and p.name != MANIFEST):
        digest.update(f"{path.relative_to(folder).as_posix()}\0{file_digest(path)}\n".encode())
    return digest.hexdigest()


def folder_of(root: Path, kind: str, content: Any) -> Path:
    """Where :func:`cached_folder` keeps the folder for `content`, built or not."""
    return root / f"{kind}-{content_key(content)}"


def cached_folder(root: Path, kind: str, content: Any, build: Callable[[Path], None]) -> Path:
    """The folder for `content`, built by `build(empty_folder)` unless an intact one is there.

    A folder whose files no longer match its manifest (edited, truncated) is thrown away and built again.
    Whatever `build` raises goes through, and nothing is left under the final name.
    """
    target = folder_of(root, kind, content)
    root.mkdir(parents=True, exist_ok=True)
    with _locked(root / f".{target.name}.lock"):
        if _intact(target):
            return target
        building = root / f".{target.name}.building"
        for leftover in (target, building):
            shutil.rmtree(leftover, ignore_errors=True)
        building.mkdir()
        try:
            build(building)
            manifest = {"content": content, "sha256": folder_hash(building)}
            (building / MANIFEST).write_text(json.dumps(manifest, indent=1, sort_keys=True) + "\n")
            os.replace(building, target)
        finally:
            shutil.rmtree(building, ignore_errors=True)
    return target


def _intact(folder: Path) -> bool:
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
    except (FileNotFoundError, NotADirectoryError, json.JSONDecodeError):
        return False
    return bool(manifest.get("sha256") == folder_hash(folder))


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("a") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.flock(handle, fcntl.LOCK_UN)
