"""The places trials run in: one fixture, ``place``, for the tests that all of them pass."""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from steer_sweeps.executors.config import ExecutorConfig, LocalConfig, RayConfig, SlurmConfig

sys.path.insert(0, str(Path(__file__).parent))
from executor_places import Place
from executor_ray import Cluster, cluster
from executor_slurm import Slurm, slurm, why_not

MakePlace = Callable[[ExecutorConfig], Place]


def _ray(request: pytest.FixtureRequest, shared: bool) -> RayConfig:
    found: Cluster = request.getfixturevalue("ray_cluster")
    scratch = str(request.getfixturevalue("tmp_path") / "scratch")
    return RayConfig(slots=2, address=found.address, shared_files=shared, scratch=scratch, stop_s=5)


PLACES: dict[str, Callable[[pytest.FixtureRequest], ExecutorConfig]] = {
    "local": lambda request: LocalConfig(slots=2),
    "ray": lambda request: _ray(request, shared=True),
    "slurm": lambda request: request.getfixturevalue("slurm_cluster") and SlurmConfig(slots=2),
    "ray without shared files": lambda request: _ray(request, shared=False),
}


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[Cluster]:
    with cluster() as found:
        yield found


@pytest.fixture(scope="session")
def slurm_cluster() -> Iterator[Slurm]:
    if reason := why_not():
        pytest.skip(f"no Slurm here: {reason}")
    with pytest.MonkeyPatch.context() as patch, slurm() as found:
        for name, value in found.variables.items():
            patch.setenv(name, value)
        yield found


@pytest.fixture(autouse=True)
def _own_slots(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test waits for the devices of a study that runs on this machine."""
    monkeypatch.setenv("STEER_SLOTS_DIR", str(tmp_path / "host-slots"))


@pytest.fixture
def at(tmp_path: Path) -> Iterator[MakePlace]:
    """Makes a place from a config; kills what its jobs left when the test is over."""
    made: list[Place] = []

    def make(config: ExecutorConfig) -> Place:
        made.append(Place(config, tmp_path))
        return made[-1]

    yield make
    for place in made:
        place.end_all()


@pytest.fixture(params=PLACES)
def place(request: pytest.FixtureRequest, at: MakePlace) -> Any:
    """Two slots in every place there is."""
    return at(PLACES[request.param](request))
