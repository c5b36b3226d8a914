"""The fused kernel against float64 and against the torch path, in Triton's interpreter: a process of its own runs it,
because Triton decides at its first import whether it interprets. That it compiles is checked for GPUs that are not
here; what a GPU does with it is seen where there is one (the last test, and `benchmarks/gpu_cost.py`)."""

import json
import math
import multiprocessing
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from steer_openrlhf import tokens
from steer_openrlhf.registry import INTERVENTIONS
from steer_openrlhf.tokens import RowStatistics, masked_rows, row_statistics
from torch import Tensor

kernels = pytest.importorskip("steer_openrlhf.kernels", reason="Triton is not installed")
Fused = Callable[..., RowStatistics]
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def fused() -> Iterator[Fused]:
    """:func:`steer_openrlhf.kernels.fused_rows`, interpreted."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_INTERPRET", "1")
        patch.setenv("PYTHONWARNINGS", "ignore")
        pool = ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn"))
        first = pool.submit(kernels.fused_rows, torch.zeros(1, 2), (torch.tensor([0]),), torch.tensor([0]))
        assert first.result()[1].tolist() == pytest.approx([math.log(2)])

    def call(logits: Tensor, at: Sequence[Tensor], labels: Tensor, *args: object) -> RowStatistics:
        return RowStatistics(*pool.submit(kernels.fused_rows, logits, tuple(at), labels, *args).result())

    with pool:
        yield call


def rows_of(count: int) -> tuple[Tensor]:
    return (torch.arange(count),)


def sample(rows: int, vocabulary: int, spread: float = 4.0, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(rows, vocabulary, generator=generator) * spread
    return logits, torch.randint(0, vocabulary, (rows,), generator=generator)


def same(found: RowStatistics, expected: RowStatistics, scale: float = 1.0) -> None:
    """To float32 rounding; log-prob and log_total have that of the logits, whose magnitude is ``scale``."""
    rounding = 4e-7 * scale + 2e-6
    for name, tolerance in zip(RowStatistics._fields, (rounding, 4e-6, 2e-6, rounding), strict=True):
        one, other = getattr(found, name).double(), getattr(expected, name).double()
        torch.testing.assert_close(one, other, rtol=2e-6, atol=tolerance, equal_nan=True, msg=lambda m, n=name: n + m)


@pytest.mark.parametrize("dtype", kernels.DTYPES)
@pytest.mark.parametrize(("vocabulary", "temperature"), [(1, 1.0), (2, 0.7), (1000, 1.0), (2048, 1.3), (4099, 0.6)])
def test_float64_says_the_same(fused: Fused, vocabulary: int, temperature: float, dtype: torch.dtype) -> None:
    logits, labels = sample(3, vocabulary)
    logits = logits.to(dtype)
    expected = row_statistics(logits.double(), labels, temperature)
    same(fused(logits, rows_of(3), labels, temperature), expected, float(logits.abs().max()) / temperature)


def test_a_vocabulary_of_152064(fused: Fused) -> None:
    logits, labels = sample(2, 152_064)
    same(fused(logits, rows_of(2), labels), row_statistics(logits.double(), labels), 20.0)


@pytest.mark.parametrize("spread", [0.0, 1e-3, 1e2, 1e4])
def test_flat_and_extreme_rows(fused: Fused, spread: float) -> None:
    logits, labels = sample(3, 777, spread)
    same(fused(logits, rows_of(3), labels, 1.0, 64), row_statistics(logits.double(), labels), 4 * spread)


@pytest.mark.parametrize("block", [1, 2, 16])
def test_what_is_not_finite_is_as_in_torch(fused: Fused, block: int) -> None:
    inf, nan = math.inf, math.nan
    rows = [[0, 0, -inf], [-inf, -inf, 1], [0, nan, 0], [nan, 0, 0], [0, inf, 0], [inf, 0, 0], [-inf] * 3]
    logits = torch.tensor([*rows, [3e38, -3e38, 0], [-3e38, 3e38, -inf], [0, 0, -inf]], dtype=torch.float32)
    labels = torch.tensor([0, 2, 0, 1, 0, 1, 2, 0, 1, 2])
    expected = row_statistics(logits, labels)
    found = fused(logits, rows_of(len(rows) + 3), labels, 1.0, block)
    for one, other in zip(found[:3], expected[:3], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-6, equal_nan=True)
    assert found.log_prob[-1].item() == -inf
    assert torch.equal(found.log_total.isfinite(), expected.log_total.isfinite())


def test_a_label_outside_the_vocabulary_is_not_read(fused: Fused) -> None:
    logits, _ = sample(3, 10)
    found, inside = (fused(logits, rows_of(3), torch.tensor(labels)) for labels in ([-1, 10, 2**40], [0, 0, 0]))
    assert found.log_prob.isnan().all()
    assert all(torch.equal(one, other) for one, other in zip(found[1:], inside[1:], strict=True))


@settings(max_examples=25)
@given(
    shift=st.floats(-1e3, 1e3),
    block=st.sampled_from([1, 4, 32, 128]),
    vocabulary=st.integers(1, 200),
    spread=st.sampled_from([0.1, 3.0, 50.0]),
)
def test_neither_a_constant_nor_the_block_matters(
    fused: Fused, shift: float, block: int, vocabulary: int, spread: float
) -> None:
    logits, labels = sample(2, vocabulary, spread)
    shifted = logits + shift  # in float32: what the addition rounds off is not the kernel's
    plain = (shifted.double() - shift).float()
    expected = fused(plain, rows_of(2), labels, 1.0, 2048)
    found = fused(shifted, rows_of(2), labels, 1.0, block)
    same(found._replace(log_total=found.log_total - shift), expected, 4 * spread + abs(shift))


@pytest.mark.parametrize("window", [(0, 5), (1, 4)])
@pytest.mark.parametrize("vocabulary", [16, 33])  # rows that start at a multiple of 16 bytes, and others
def test_rows_are_read_where_they_lie(fused: Fused, window: tuple[int, int], vocabulary: int) -> None:
    logits = sample(10, vocabulary)[0].reshape(2, 5, vocabulary)[:, slice(*window)]
    mask = torch.rand(logits.shape[:2], generator=torch.Generator().manual_seed(3)) < 0.6
    labels = torch.arange(mask.numel()).reshape(mask.shape) % vocabulary
    at = mask.nonzero(as_tuple=True)
    found, expected = fused(logits, at, labels[at]), masked_rows(logits, labels, mask, 2)
    same(found, RowStatistics(*(part[at] for part in expected)), 20.0)


def test_alignment_is_never_claimed_where_it_is_not() -> None:
    """16 bytes are 4 float32 or 8 bf16."""
    even, odd = torch.zeros(2, 5, 16), torch.zeros(2, 5, 33)
    assert [kernels.alignment(one) for one in (even, even[:, 1:], even.bfloat16())] == [4, 4, 8]
    assert [kernels.alignment(one) for one in (odd, even.flatten()[1:-15].reshape(9, 16), even[..., 1:])] == [1, 1, 1]
    assert kernels.alignment(torch.zeros(2, 5, 36, dtype=torch.bfloat16)) == 1  # rows of 72 bytes


def test_no_rows(fused: Fused) -> None:
    none = torch.zeros(0, dtype=torch.long)
    assert all(part.shape == (0,) for part in fused(torch.zeros(0, 3, 7), (none, none), none))


@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize(("dtype", "element"), [("fp32", 4), ("bf16", 2), ("fp16", 2)])
def test_it_compiles_for_a_gpu_and_reads_16_bytes_at_once(
    capability: int, dtype: str, element: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """NVIDIA A100 and H100, by Triton's own compiler and ptxas, down to machine code."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    types = [f"*{dtype}", "*i64", "*i64", "*fp32", "i32", "i32", "fp32", "constexpr", "constexpr"]
    signature = dict(zip(kernels._row_kernel.arg_names, types, strict=True))
    known = {"ALIGNED": kernels.VECTOR_BYTES // element, "BLOCK": kernels.BLOCK}
    by_sixteen = {(place,): [["tt.divisibility", 16]] for place in (0, 1, 2, 3, 5)}
    source = ASTSource(kernels._row_kernel, signature=signature, constexprs=known, attrs=by_sixteen)
    options = {"num_warps": kernels.WARPS}
    compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    assert compiled.asm["cubin"]
    assert "v4.b32" in compiled.asm["ptx"]


def test_traffic_by_hand() -> None:
    """2 rows of 3 bf16 logits: 12 bytes, 2 x (8 of offset, 8 of label, 2 of its logit), 2 x 16 written."""
    assert kernels.traffic_bytes(2, 3, 2) == 12 + 36 + 32


def test_when_it_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    def logits(**changed: object) -> SimpleNamespace:
        """What the decision looks at."""
        return SimpleNamespace(**{"is_cuda": True, "dtype": torch.bfloat16, "stride": lambda _: 1} | changed)

    assert tokens._kernels(logits()) is kernels
    refused = ({"is_cuda": False}, {"dtype": torch.float64}, {"stride": lambda _: 2})
    assert not any(tokens._kernels(logits(**changed)) for changed in refused)
    monkeypatch.setenv(tokens.SWITCH, "0")
    assert tokens._kernels(logits()) is None


def gpu_cost(*words: str) -> subprocess.CompletedProcess[str]:
    """`benchmarks/gpu_cost.py`, as where no GPU is seen."""
    command = [sys.executable, "-W", "ignore", str(ROOT / "benchmarks" / "gpu_cost.py"), *words]
    return subprocess.run(command, capture_output=True, text=True, env=os.environ | {"CUDA_VISIBLE_DEVICES": ""})


def test_the_gpu_benchmark_measures_nothing_without_a_gpu() -> None:
    found = gpu_cost()
    assert (found.returncode, found.stdout) == (2, "")
    assert "no CUDA device" in found.stderr


def test_the_gpu_benchmark_checks_itself_without_a_gpu(tmp_path: Path) -> None:
    found = gpu_cost("--check", "--json", str(tmp_path / "result.json"))
    assert found.returncode == 0, found.stderr
    result = json.loads((tmp_path / "result.json").read_text())
    kernel = [row for row in result["kernel"] if row["what"].startswith("fused kernel")]
    assert len(kernel) == 4
    assert all(0 < row["off_by"] < 2e-5 for row in kernel)
    assert {"stock PPO", "steer influence_head", *INTERVENTIONS} - {"steer"} <= {row["what"] for row in result["steps"]}
    assert result["aims"] is None  # nothing was measured on a GPU


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
@pytest.mark.parametrize("dtype", kernels.DTYPES)
def test_a_gpu_says_what_the_cpu_says(dtype: torch.dtype) -> None:
    logits, labels = sample(12, 5003)
    logits, labels, mask = logits.to(dtype).reshape(3, 4, 5003), labels.reshape(3, 4), torch.ones(3, 4)
    mask[1, 2:] = 0
    expected = masked_rows(logits.double(), labels, mask, 2)
    found = masked_rows(*(part.cuda() for part in (logits, labels, mask)), 2)
    same(RowStatistics(*(part.cpu() for part in found)), expected, 20.0)
