"""For all tests: the slow ones, which start real trainings, run last; no property is judged by the clock."""

import os
import time
from collections.abc import Callable

import pytest
from hypothesis import HealthCheck, settings

os.environ.setdefault("OMP_NUM_THREADS", "1")  # read when torch loads: tensors here are tiny, and threads only wait

settings.register_profile("no-clock", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("no-clock")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: item.get_closest_marker("e2e") is not None)  # stable: the order is kept otherwise


@pytest.fixture
def wait_for() -> Callable[[Callable[[], object]], None]:
    """Waits until a condition holds; fails when it does not within a minute."""

    def wait(condition: Callable[[], object]) -> None:
        end = time.monotonic() + 60.0
        while not condition():
            assert time.monotonic() < end, "waited in vain"
            time.sleep(0.02)

    return wait
