"""One engine of a fleet, on the device its environment shows: work in, answers out, as JSON lines.

In: {"checkpoint", "requests"}. Out: {"device"}, then {"place", "answer"} for each request, then {"done"}; or {"error"}.
It ends with its input, and with its parent.
"""

import json
import os
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

from steer_experiments.processes import die_with_parent

from .generate import Engine, Request, Sampling


def main() -> None:
    """Serve one checkpoint after the other until the input ends."""
    replies = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # vLLM and its libraries print to stdout
    die_with_parent()
    for line in sys.stdin:
        for event in serve(json.loads(line)):
            replies.write(json.dumps(event) + "\n")


def serve(work: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The events that answer one piece of work."""
    requests = [Request(**(one | {"sampling": Sampling(**one["sampling"])})) for one in work["requests"]]
    try:
        with closing(Engine(Path(work["checkpoint"]), requests)) as engine:
            yield {"device": engine.device}
            for answers in engine.answers():
                for place, answer in answers:
                    yield {"place": place, "answer": vars(answer)}
    except Exception as error:  # noqa: BLE001  (whatever it is, the parent must hear of it)
        yield {"error": str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"}
        return
    yield {"done": True}


if __name__ == "__main__":
    main()
