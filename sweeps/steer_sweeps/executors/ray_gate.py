"""All or nothing on a Ray cluster. OpenRLHF asks for its GPUs in several placement groups, one after the other: two
trials that each got their first would wait for each other's GPUs for ever.

One trial of the whole cluster places itself at a time, in the order of asking. When it is its turn it waits until one
placement group with everything it needs is ready (which Ray does all or nothing), gives that back, starts, and lets the
next one in when its own groups are there. Small trials wait behind a big one; nobody starves.
"""

import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

NAME, NAMESPACE = "steer-gate", "steer"
SILENT_S = 30.0
"""A trial that has not been heard of for so long is gone."""
BEAT_S = 0.5
READY_S = 2.0


class Queue:
    """Whose turn it is. Kept by a detached actor; a restarted one hears from everybody within :data:`BEAT_S`."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._heard: dict[str, float] = {}
        self._placing: str | None = None

    def ask(self, name: str, placing: bool = False) -> bool:
        """``name`` is there; whether it may (go on to) place itself. ``placing``: it was told so already."""
        now = self._clock()
        self._heard[name] = now
        for one in [one for one, at in self._heard.items() if now - at > SILENT_S]:
            self.leave(one)
        if placing and self._placing is None:
            self._placing = name
        if self._placing is None and next(iter(self._heard)) == name:
            self._placing = name
        return self._placing == name or placing

    def leave(self, name: str) -> None:
        """It is placed, or over."""
        self._heard.pop(name, None)
        if self._placing == name:
            self._placing = None

    def waiting(self) -> list[str]:
        return [name for name in self._heard if name != self._placing]


class Gate:
    """A trial's place in the queue. The cluster must be connected (:func:`connect`)."""

    def __init__(self, name: str, gpus: int, cpus_per_gpu: float) -> None:
        self.name, self.bundles = name, [{"GPU": 1.0, "CPU": cpus_per_gpu} for _ in range(gpus)]
        self._reserved: Any = None
        self._left = False

    def open(self) -> bool:
        """Whether the trial may start now. Ask every :data:`BEAT_S`."""
        from ray.util import placement_group, remove_placement_group

        if not self._ask(placing=self._reserved is not None):
            return False
        if self._reserved is None:
            self._reserved = placement_group(self.bundles, strategy="PACK", name=f"reserve-{self.name}")
        if not self._reserved.wait(timeout_seconds=READY_S):
            return False
        remove_placement_group(self._reserved)
        return True

    def placed(self, pids: set[int]) -> bool:
        """Whether the drivers ``pids`` of this node hold as many GPUs in placement groups as the trial was to get."""
        self._ask(placing=True)
        from ray._private import state
        from ray.util import get_node_ip_address, placement_group_table

        here = get_node_ip_address()
        jobs = {
            job["JobID"] for job in state.jobs() if job["DriverPid"] in pids and job["DriverIPAddress"] == here
        }  # the last four bytes of a placement group's id are its job's
        groups = [group for id_, group in placement_group_table().items() if id_[-8:] in jobs]
        created = [bundle for group in groups if group["state"] == "CREATED" for bundle in group["bundles"].values()]
        return sum(bundle.get("GPU", 0) for bundle in created) >= len(self.bundles)

    def leave(self) -> None:
        """Let the next one in. Harmless when repeated, also without a connection."""
        import ray

        if self._left:
            return
        self._left = True
        with suppress(ray.exceptions.RayActorError):  # a queue that died knows nobody
            ray.get(self._queue().leave.remote(self.name))

    def _ask(self, placing: bool) -> bool:
        """Asked again in a moment when the queue has died."""
        import ray

        try:
            answer: bool = ray.get(self._queue().ask.remote(self.name, placing))
        except ray.exceptions.RayActorError:
            return False
        return answer

    def _queue(self) -> Any:
        """The cluster's queue; a new one when its node died."""
        import ray

        kept = ray.remote(num_cpus=0)(Queue)
        return kept.options(name=NAME, namespace=NAMESPACE, lifetime="detached", get_if_exists=True).remote()


def connect() -> None:
    """To the cluster whose job this process is."""
    import ray

    ray.init(namespace=NAMESPACE, log_to_driver=False, configure_logging=False)


def disconnect() -> None:
    import ray

    ray.shutdown()
