"""How an optimizer step is cut does not matter: micro-batches, order, padding, ranks. Real gradients of a real policy.

Everything runs through OpenRLHF's own trainer and ``ppo_train`` on DeepSpeed engines, on one gloo rank and on two.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from real_trainer import Case, Layout, Recorded, free_port, rank_main, run_all
from steer_openrlhf.band import observe
from steer_openrlhf.config import SteerConfig
from steer_openrlhf.registry import INTERVENTIONS
from steer_openrlhf.tokens import RolloutChange
from torch import Tensor
from torch.multiprocessing import spawn

ONE: dict[str, Layout] = {
    "whole": Layout(),
    "two": Layout(micro=4, order=(3, 7, 0, 5, 1, 6, 2, 4), left=3, stage=1),
    "four": Layout(micro=2, left=1),
    "dynamic": Layout(max_tokens=24, stage=0),
}
TWO: dict[str, Layout] = {
    "ranks, one": Layout(ranks=2, micro=4),
    "ranks, four": Layout(ranks=2, micro=1, order=(6, 3, 2, 7, 1, 0, 5, 4), left=2, stage=1),
    "ranks, dynamic": Layout(ranks=2, max_tokens=20, stage=0),
}
"""Dynamic batching at ZeRO stage 0: at 1 and 2 DeepSpeed 0.19.6 keeps only the last micro-batch's gradient, OpenRLHF's
own losses included."""


def calibrated() -> dict[str, float]:
    """A band's state after four rollouts: one unit step changes the entropy by about half a nat."""
    config = SteerConfig(estimator="influence", band=(-1e-3, 1e-3))
    state = {"updates": 1.0, "update": 0.0, "momentum": 0.9}
    for predicted, measured in ((1.0, 0.52), (0.5, 0.24), (-1.0, -0.49), (0.2, 0.11)):
        change = RolloutChange(1.0, 1.0 + measured, updates=1)
        state, _ = observe(state | {"band_sum": predicted}, change, config)
    return state


CALIBRATED = calibrated()
SPECIAL: dict[str, Case] = {
    "ppo": Case("ppo"),  # first: then Adam has moments, and the influence a preconditioner
    "steer influence": Case("steer", {"steer.estimator": "influence"}),
    "steer influence_head": Case("steer", {"steer.estimator": "influence_head"}),
    "steer band": Case("steer", {"steer.estimator": "influence", "steer.band": [-1e-3, 1e-3]}, CALIBRATED),
    "uniform ceiling": Case("uniform", {"steer.estimator": "influence_head", "steer.entropy_ceiling": 0.5}, CALIBRATED),
    "steer reference": Case("steer", {"steer.estimator": "reference"}),
    "steer gspo": Case("steer", {"steer.base_loss": "gspo"}),
    "steer sequence mean": Case("steer", {"actor.loss_agg_mode": "seq-mean-token-mean", "actor.dual_clip": 1.5}),
    "steer microbatch": Case("steer", {"steer.scope": "microbatch"}),
    "stare acting": Case("stare", {"stare.target_entropy": 2.0, "stare.share": 0.3, "stare.weight_negative": 0.9}),
    "clip_cov acting": Case("clip_cov", {"clip_cov.ratio": 0.2, "clip_cov.lb": 0.1}),
    "clip_b acting": Case("clip_b", {"clip_b.mu": 0.5}),
    "clip_v acting": Case("clip_v", {"clip_v.mu": 0.3, "clip_v.max_share": 0.1}),
    "entropic later": Case("entropic", {"entropic.high_prob": 0.4}, {"integral": -2.0}),
}
CASES = SPECIAL | {name: Case(name) for name in INTERVENTIONS}
INVARIANT = [name for name in CASES if name != "steer microbatch"]
QUIET = ("ppo", "stare", "clip_cov", "clip_b", "clip_v")  # by default nothing in 35 tokens crosses their thresholds
Runs = dict[tuple[str, str], Recorded]


@pytest.fixture(scope="module")
def both_ranks(make_worker: Any, extensions: dict[str, str], tmp_path_factory: Any) -> tuple[Runs, Runs]:
    """Of each of two ranks; one rank's layouts are run here meanwhile, and belong to the first."""
    folder: Path = tmp_path_factory.mktemp("ranks")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (extensions | {"OMP_NUM_THREADS": "1"}).items():
            patch.setenv(name, value)
        ranks = spawn(rank_main, ((2, free_port(), str(folder)), TWO, CASES), nprocs=2, join=False)
    try:
        alone = run_all(ONE, CASES, make_worker)
        while not ranks.join():  # ranks that wait for each other end by the timeout of their collectives
            pass
    finally:
        for process in ranks.processes:
            process.kill()
    first, second = (torch.load(folder / f"rank{rank}.pt", weights_only=False) for rank in range(2))
    return alone | first, second


@pytest.fixture(scope="module")
def runs(both_ranks: tuple[Runs, Runs]) -> Runs:
    return both_ranks[0]


def gradient(run: Recorded) -> Tensor:
    """Of the one optimizer step, all weights in a row."""
    (only,) = run.gradients
    return torch.cat([part.flatten() for part in only.values()])


def tolerance(name: str) -> float:
    """Relative to the largest entry. Adam's preconditioner has the rounding of small gradients in it."""
    summable = "influence" in name or "band" in name or "ceiling" in name
    return 2e-3 if summable else 1e-5


def distance(found: Tensor, expected: Tensor) -> float:
    return ((found - expected).abs().max() / expected.abs().max()).item()


@pytest.mark.parametrize("name", INVARIANT)
@pytest.mark.parametrize("layout", [*ONE, *TWO][1:])
def test_gradients_do_not_depend_on_how_the_step_is_cut(layout: str, name: str, runs: Runs) -> None:
    assert distance(gradient(runs[layout, name]), gradient(runs["whole", name])) < tolerance(name)


@pytest.mark.parametrize("name", [name for name in CASES if name not in QUIET])
def test_every_case_changes_the_gradient(name: str, runs: Runs) -> None:
    """Else the test above would say nothing about it."""
    assert distance(gradient(runs["whole", name]), gradient(runs["whole", "ppo"])) > 5 * tolerance(name)


@pytest.mark.parametrize("layout", [*ONE, *TWO][1:])
def test_the_micro_batch_scope_does_depend_on_it(layout: str, runs: Runs) -> None:
    found, whole = (gradient(runs[one, "steer microbatch"]) for one in (layout, "whole"))
    assert distance(found, whole) > 1e-2


@pytest.mark.parametrize("name", INVARIANT)
def test_a_controllers_state_does_not_depend_on_it(name: str, runs: Runs) -> None:
    expected = runs["whole", name].state["loss"]
    for layout in [*ONE, *TWO]:
        found = runs[layout, name].state["loss"]
        assert found == pytest.approx(expected, rel=3 * tolerance(name), abs=1e-5), layout


def test_ranks_agree_to_the_last_bit(both_ranks: tuple[Runs, Runs]) -> None:
    first, second = both_ranks
    for key, run in second.items():
        assert torch.equal(gradient(run), gradient(first[key])), key
        assert run.state == first[key].state, key


@pytest.mark.parametrize("metric", ["steer/entropy", "steer/weight_mean", "steer/omega_mean", "steer/active"])
def test_logged_means_are_over_all_tokens_of_all_ranks(metric: str, runs: Runs) -> None:
    expected = runs["whole", "steer"].status[metric]
    for layout in [*ONE, *TWO]:
        assert runs[layout, "steer"].status[metric] == pytest.approx(expected, rel=1e-5), layout
    means: Callable[[str], float] = lambda name: runs["whole", name].status["steer/entropy"]  # noqa: E731
    assert means("steer") == pytest.approx(means("ppo"))
