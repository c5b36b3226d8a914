"""Rows of a pinned revision of a Hugging Face data set, streamed. ``datasets`` is imported here, when called."""

from __future__ import annotations

import re
from collections.abc import Iterator

from steer_openrlhf.errors import ConfigError

from steer_experiments.data.rows import Row
from steer_experiments.data.sources import Hub

COMMIT = re.compile(r"[0-9a-f]{40}")


def pinned(name: str, hub: Hub | None, revision: str | None) -> tuple[Hub, str]:
    """The data set and the commit that will be read.

    Raises:
        ConfigError: there is no data set, no revision is known and none was given, or it is a branch or a tag, which
            can move.
    """
    if hub is None:
        raise ConfigError([f"{name}: comes from local files only; give its file"])
    chosen = revision or hub.revision
    if chosen is None:
        raise ConfigError(
            [
                f"{name}: no file was found, and no revision of {hub.repo} is pinned here: put its file into the data "
                "folder, or give --revision with a full commit id of that data set"
            ]
        )
    if not COMMIT.fullmatch(chosen):
        raise ConfigError(
            [f"--revision {chosen!r}: must be a full commit id (40 hex digits); a branch or tag can move"]
        )
    return hub, chosen


def hub_rows(hub: Hub, revision: str) -> Iterator[tuple[int, Row]]:
    """(row number from 1, row) of a split at a commit. ``ConfigError`` when the hub does not give it."""
    import datasets

    try:
        rows = datasets.load_dataset(hub.repo, hub.config, split=hub.split, revision=revision, streaming=True)
        yield from enumerate(rows, start=1)
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        said = " ".join(str(error).split())[:300]
        wanted = f"{hub.repo}@{revision} ({hub.split})"
        raise ConfigError([f"{wanted}: cannot be read from the hub: {said}; give a local file instead"]) from None
