"""What ``steer diagnose`` reads and computes, on synthetic probe files whose truth is known."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from steer_analysis.diagnose import diagnose
from steer_analysis.diagnose_run import diagnose_runs
from steer_analysis.estimators import ALL, NEITHER, pool, sample
from steer_analysis.probes import load_probes
from steer_openrlhf.errors import ConfigError

Maker = Callable[..., Path]


# --- reading ---------------------------------------------------------------------------------------------------------


def test_ranks_are_joined_without_padding(probe: Any, probed: Path) -> None:
    probes = load_probes(probed)
    assert [step.step for step in probes.steps] == [2, 4, 6, 8, 10, 12]
    assert probes.problems == []
    assert probes.estimators == ["exact", "paper", "reference", "influence_head", "influence"]
    first, (one, other) = probes.steps[0], (probe.arrays(2, rank, probe.longest + rank) for rank in (0, 1))
    assert first.sequence.size == one["mask"].sum() + other["mask"].sum()
    assert np.unique(first.sequence).tolist() == list(range(2 * probe.sequences))
    parts = [part["entropy_after"][part["mask"] == 1] for part in (one, other)]
    assert first.columns["entropy_after"].tolist() == np.concatenate(parts).tolist()
    assert np.isfinite(first.change).all()


@pytest.mark.parametrize("folder", [True, False])
def test_no_probe_says_how_to_get_one(bare: Path, folder: bool) -> None:
    if folder:
        (bare / "probe").mkdir()
        (bare / "probe" / ".step000001.rank0.npz.tmp").touch()
    with pytest.raises(ConfigError, match=r"probe: (has no|does not exist).*train with --steer\.probe\.every N"):
        diagnose_runs([bare])


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("truncated", "cannot be read|zip"),
        ("text", "pickle|cannot be read"),
        ("key", "has no entropy_after"),
        ("shape", r"omega_paper has shape \(12, 8\)"),
        ("mask", "values other than 0 and 1"),
        ("pickle", "allow_pickle"),
        ("step", "holds step 99"),
    ],
)
def test_a_damaged_file_is_named_and_the_others_go_on(probe: Any, probed: Path, how: str, said: str) -> None:
    probe.damage(probed / "probe" / "step000004.rank0.npz", how)
    probes = load_probes(probed)
    assert len(probes.steps) == 6
    damaged, uneven = probes.problems
    assert re.match(rf"probe/step000004\.rank0\.npz: .*({said})", damaged)
    assert uneven == "step 4: no file of rank 0"
    assert probes.steps[1].sequence.size == probe.arrays(4, 1, probe.longest + 1)["mask"].sum()


def test_no_readable_file_is_a_mistake_with_every_reason(probe: Any, probed: Path) -> None:
    for path in (probed / "probe").glob("*.npz"):
        probe.damage(path, "key")
    with pytest.raises(ConfigError) as error:
        diagnose_runs([probed])
    assert len(error.value.mistakes) == 13
    assert not (probed / "diagnose.json").exists()


def test_an_estimator_that_one_rank_lacks_is_left_out_and_counted(probe: Any, bare: Path) -> None:
    probe.write(bare, 1, 0)
    probe.write(bare, 1, 1, omega_paper=None)
    probe.write(bare, 2, 0)
    found = diagnose(bare)
    absent = int(probe.arrays(1, 1, probe.longest + 1)["mask"].sum())
    assert found.target["paper"].pooled.left_out == absent
    assert "step 1, rank 1: has no paper, other ranks have" in found.problems
    assert any(problem.startswith(f"paper: {absent} tokens left out") for problem in found.problems)


def test_steps_that_differ_are_said_to(probe: Any, bare: Path) -> None:
    probe.write(bare, 1)
    probe.write(bare, 2, learning_rate=np.array(5e-5), updates=np.array(2))
    text = "\n".join(diagnose(bare).problems)
    assert "the learning rate was not the same in all steps (5e-05 to 0.0001)" in text
    assert "the number of updates was not the same in all steps (2 to 4)" in text


# --- what is computed ------------------------------------------------------------------------------------------------


def test_known_truth_is_found(probed: Path) -> None:
    found = diagnose(probed)
    exact, paper, reference = (found.target[name].pooled for name in ("exact", "paper", "reference"))
    assert (exact.pcc.value, exact.srcc.value, exact.sign.value) == pytest.approx((1, 1, 1), abs=1e-4)
    assert (exact.scale.value, exact.scale.low, exact.scale.high) == pytest.approx((0.05,) * 3, rel=1e-4)
    assert (reference.pcc.value, reference.sign.value, reference.scale.value) == pytest.approx((-1, 0, -1), abs=1e-4)
    assert reference.srcc_magnitude.value == pytest.approx(1, abs=1e-4)
    assert paper.pcc.value is not None
    assert paper.pcc.low is not None
    assert paper.pcc.high is not None
    assert paper.pcc.low < paper.pcc.value < paper.pcc.high < 0.95
    assert exact.pcc.n == found.pooled.step.size
    assert exact.clusters == 6
    assert set(found.target["exact"].steps) == {2, 4, 6, 8, 10, 12}


def test_sums_find_the_estimator_that_is_right_only_on_average(probed: Path) -> None:
    found = diagnose(probed)
    assert abs(found.target["influence"].pooled.pcc.value or 0) < 0.6
    summed = found.sums["influence"].over_steps
    assert summed.pcc.value == pytest.approx(1, abs=0.1)
    assert summed.scale.value == pytest.approx(0.5, rel=0.2)
    assert (summed.pcc.n, summed.clusters) == (6, 6)
    step = found.sums["exact"].steps[2]
    assert step.predicted.value == pytest.approx(20 * (step.measured.value or 0), rel=1e-3)


def test_source_wise_is_against_influence(probed: Path) -> None:
    found = diagnose(probed)
    assert set(found.source) == {"exact", "paper", "reference", "influence_head"}
    expected = np.corrcoef(found.pooled.omega("paper"), found.pooled.omega("influence"))[0, 1]
    assert found.source["paper"].pooled.pcc.value == pytest.approx(expected, abs=1e-6)


def test_without_influence_there_is_no_source_table(probe: Any, bare: Path) -> None:
    probe.write(bare, 1, omega_influence=None)
    assert diagnose(bare).source == {}


def test_one_step_is_clustered_by_sequence_and_several_by_step(probe: Any, bare: Path) -> None:
    probe.write(bare, 1)
    one = diagnose(bare)
    assert (one.pooled.clustered_by, one.target["paper"].pooled.clusters) == ("sequence", probe.sequences)
    probe.write(bare, 2)
    both = diagnose(bare)
    assert (both.pooled.clustered_by, both.target["paper"].pooled.clusters) == ("step", 2)


def by_hand(probe: Any, run: Path) -> Path:
    """Five tokens with pi = exp(-H) at log pi = -1: one in each quadrant, and one with A = 0."""
    rows: dict[str, list[float]] = {
        "advantages": [2, 1, -1, -3, 0],
        "log_prob_before": [-0.5, -2, -2, -0.5, -0.5],
        "change": [-0.1, 0.2, -0.3, 0.4, 0.0],
        "omega_exact": [-4, 1, -2, 3, 0],
    }
    column = {key: np.array([[*values, 7.0]], dtype=np.float32) for key, values in rows.items()}
    mask, ones = np.array([[1.0] * 5 + [0]], dtype=np.float32), np.ones((1, 6), dtype=np.float32)
    arrays = probe.arrays(1, 0) | {"mask": mask, "entropy_before": ones, "entropy_after": ones + column.pop("change")}
    arrays |= column | {"log_prob_after": column["log_prob_before"], "old_log_probs": column["log_prob_before"]}
    arrays["collision_before"] = np.zeros((1, 6), dtype=np.float32)
    kept = {key: value for key, value in arrays.items() if not key.startswith("omega_") or key in column}
    probe.write(run, 1, arrays=kept)
    return run


def test_quadrants_by_hand(probe: Any, bare: Path) -> None:
    rows = {row.name: row for row in diagnose(by_hand(probe, bare)).quadrants}
    assert {name: row.tokens for name, row in rows.items()} == {"I": 1, "II": 1, "III": 1, "IV": 1, NEITHER: 1, ALL: 5}
    assert [rows[name].share.value for name in ("I", "II", "III", "IV", NEITHER)] == pytest.approx([0.2] * 5)
    changes = [rows[name].change.value for name in ("I", "II", "III", "IV", ALL)]
    assert changes == pytest.approx([-0.1, 0.2, -0.3, 0.4, 0.04], abs=1e-6)
    assert [rows[name].omega["exact"].value for name in ("I", "II", "III", "IV", ALL)] == [-4, 1, -2, 3, -0.4]


def test_weight_mass_by_hand(probe: Any, bare: Path) -> None:
    """exact = -A pi (log pi + 1) for S = 0, so of |Omega| the largest is IV's: 3 pi/2 with pi = exp(-.5)."""
    rows = {row.name: row for row in diagnose(by_hand(probe, bare)).quadrants}
    label = "steer (estimator exact, lambda_min 0.7)"
    high, low = 0.5 * np.exp(-0.5), np.exp(-2.0)
    sizes = {"I": 2 * high, "II": low, "III": low, "IV": 3 * high}
    weights = {name: 0.7 ** (size / (3 * high)) for name, size in sizes.items()}
    for name, weight in weights.items():
        assert rows[name].mass[label].value == pytest.approx(weight, rel=1e-5)
    total = (2 * weights["I"] + weights["II"] + weights["III"] + 3 * weights["IV"]) / 7
    assert rows[ALL].mass[label].value == pytest.approx(total, rel=1e-5)
    assert rows[NEITHER].mass[label].value is None  # every A is 0 there: no mass, and not a mass of 0
    uniform = [rows[name].mass["uniform (estimator exact, lambda_min 0.7)"].value for name in ("I", "II", "III", "IV")]
    assert uniform == pytest.approx([(sum(weights.values()) + 1) / 5] * 4, rel=1e-5)  # the fifth token's weight is 1


def test_masses_show_the_runs_own_flags(probed: Path) -> None:
    masses = diagnose(probed).quadrants[0].mass
    assert next(iter(masses)) == "this run: steer (lambda_min 0.8)"
    assert len(masses) == 3
    assert all(value.value is not None and value.value <= 1 for value in masses.values())


def test_influence_weights_are_those_of_the_stored_influence(probe: Any, tmp_path: Path, run_maker: Maker) -> None:
    """lambda_min 0.5 by hand from the stored Omega, whose score the intervention multiplies by r and A again."""
    flags = {"estimator": "influence_head", "lambda_min": 0.5}
    run = run_maker(tmp_path / "network", evaluated=False, steer=flags)
    probe.write(run, 1)
    found = diagnose(run)
    omega = np.abs(found.pooled.omega("influence_head"))
    size = np.abs(found.pooled.column("advantages"))
    expected = (size * 0.5 ** (omega / omega.max())).sum() / size.sum()
    mass = found.quadrants[-1].mass["this run: steer (estimator influence_head, lambda_min 0.5)"]
    assert mass.value == pytest.approx(expected, rel=1e-4)
    probe.write(run, 2, omega_influence_head=None)
    assert "step 2 has no influence_head" in " ".join(diagnose(run).problems)


def test_a_controlled_strength_is_not_guessed(probe: Any, tmp_path: Path, run_maker: Maker) -> None:
    band = {"estimator": "influence", "band": [-0.01, 0.01]}
    run = run_maker(tmp_path / "band", evaluated=False, steer=band)
    probe.write(run, 1)
    found = diagnose(run)
    assert "its strength is controlled during the training" in " ".join(found.problems)
    assert len(found.quadrants[0].mass) == 2


def test_a_method_that_is_not_installed_is_named(probe: Any, tmp_path: Path, run_maker: Maker) -> None:
    run = run_maker(tmp_path / "other", method="somebody_elses", evaluated=False)
    probe.write(run, 1)
    assert "weight mass of this run's somebody_elses is not shown: no such intervention" in " ".join(
        diagnose(run).problems
    )


def test_an_entropy_that_is_not_finite_is_in_no_quadrant(probe: Any, bare: Path) -> None:
    arrays = probe.arrays(1, 0)
    arrays["entropy_before"][0, :2] = np.nan
    probe.write(bare, 1, arrays=arrays)
    found = diagnose(bare)
    rows = {row.name: row.tokens for row in found.quadrants}
    assert rows[ALL] == found.pooled.step.size - 2
    assert sum(rows[name] for name in ("I", "II", "III", "IV", NEITHER)) == rows[ALL]
    assert found.target["exact"].pooled.left_out == 2


def test_a_sample_is_drawn_from_its_seed() -> None:
    assert sample(5, 600, 0).tolist() == [0, 1, 2, 3, 4]
    drawn = sample(10_000, 600, 0)
    assert len(set(drawn.tolist())) == 600
    assert drawn.tolist() == sample(10_000, 600, 0).tolist()
    assert drawn.tolist() != sample(10_000, 600, 1).tolist()


def test_pooled_columns_lie_end_to_end(probed: Path) -> None:
    pooled = pool(load_probes(probed).steps)
    assert pooled.step.size == pooled.change.size == pooled.omega("unknown").size
    assert np.isnan(pooled.omega("unknown")).all()
