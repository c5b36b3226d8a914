"""The statistics of :mod:`.tokens` in one pass over the logits, as a Triton kernel; float32 whatever the logits are.

One program reads one row of logits once, a block of the vocabulary at a time, and keeps sums relative to the running
maximum m (online softmax): with t = z - m, Z = sum e^t, E = sum t e^t, P = sum e^2t, Q = sum t e^2t. Then

    log_total = m + log Z,  H = log Z - E/Z,  S = sum pi^2 (log pi + H) = (Q - P E/Z) / Z^2.

When a block raises m by d, e^t shrinks by f = e^-d and t by d: E <- f (E - d Z), Q <- f^2 (Q - d P), Z <- f Z and
P <- f^2 P.

Memory traffic is exact (:func:`traffic_bytes`): N V w bytes of logits of w bytes each, 20 N of offsets, labels and the
labels' logits, 16 N written; nothing of the vocabulary's size is made. A copy of the same logits reads and writes them,
2 N V w. So a kernel at 80 % of the copy's bandwidth C takes N V w / (0.8 C), 0.625 of the copy's time: for 32,768
tokens of 152,064 float32 logits at C = 3 TB/s, 8.3 ms.
"""

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK, WARPS = 2048, 8
"""Vocabulary entries a program holds at once, and the warps that share them. A thread then has 8 entries and their sums
in 60 to 64 registers (compiled for sm_80 and sm_90: no spills, loads of 16 bytes), so four programs share an SM."""
VECTOR_BYTES = 16
"""What a thread reads at once where every row starts at a multiple of it."""
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
_NEVER = tl.constexpr(-1e30)
"""Stands for t = -inf: 0 times it is 0."""


@triton.jit
def _row_kernel(  # type: ignore[no-untyped-def]  # triton gives its arguments their types
    logits, offsets, labels, out, rows, vocabulary, scale, ALIGNED: tl.constexpr, BLOCK: tl.constexpr
):
    """Row ``program_id`` of ``rows``: logits from element ``offsets[row]`` on, a multiple of ``ALIGNED``, times
    ``scale``; ``out`` is [4, rows]."""
    row = tl.program_id(0)
    start = logits + tl.multiple_of(tl.load(offsets + row), ALIGNED)
    lanes = tl.arange(0, BLOCK)
    top = tl.full([], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK], tl.float32)
    first = tl.zeros([BLOCK], tl.float32)
    square = tl.zeros([BLOCK], tl.float32)
    second = tl.zeros([BLOCK], tl.float32)
    for at in range(0, vocabulary, BLOCK):
        inside = at + lanes < vocabulary
        logit = tl.load(start + at + lanes, mask=inside, other=float("-inf")).to(tl.float32) * scale
        block_top = tl.max(logit, 0)
        if block_top > top:
            rise = tl.where(top == float("-inf"), 0.0, tl.minimum(block_top - top, 1e4))  # e^-1e4 is 0, and no inf * 0
            shrink = tl.exp(-rise)
            first = shrink * (first - rise * total)
            second = shrink * shrink * (second - rise * square)
            total *= shrink
            square *= shrink * shrink
            top = block_top
        t = logit - tl.where(top == float("-inf"), 0.0, top)
        weight = tl.exp(t)
        moment = weight * tl.maximum(t, _NEVER)
        total += weight
        first += moment
        square += weight * weight
        second += weight * moment
    z = tl.sum(total, 0)
    log_z = tl.log(z)
    mean = tl.sum(first, 0) / z
    label = tl.load(labels + row)
    known = (label >= 0) & (label < vocabulary)
    chosen = tl.load(start + label, mask=known, other=float("nan")).to(tl.float32) * scale
    tl.store(out + row, chosen - top - log_z)
    tl.store(out + rows + row, log_z - mean)
    tl.store(out + 2 * rows + row, (tl.sum(second, 0) - tl.sum(square, 0) * mean) / (z * z))
    tl.store(out + 3 * rows + row, top + log_z)


@torch.no_grad()
def fused_rows(
    logits: Tensor, at: Sequence[Tensor], labels_N: Tensor, temperature: float = 1.0, block: int = BLOCK
) -> Tensor:
    """Of N rows of logits: log-prob of the label, entropy, collision, log of the softmax's denominator; ``[4, N]``.

    Args:
        logits: ``[..., V]``, contiguous in the last dimension; one of :data:`DTYPES`.
        at: which rows, an index ``[N]`` for each dimension but the last; they are read where they lie.
        labels_N: int64; one outside the vocabulary has NaN for its log-prob, and nothing is read for it.
        temperature: the logits are divided by it first.
        block: power of two; changes the rounding and nothing else.

    A logit of -inf is a token of probability 0; a row with NaN, +inf or only -inf gives NaN, which callers count.
    """
    assert logits.stride(-1) == 1, "the vocabulary is not contiguous"
    rows, strides = labels_N.numel(), logits.stride()[:-1]
    out = torch.empty((4, rows), dtype=torch.float32, device=logits.device)
    if not rows:
        return out
    offsets_N = sum(
        (index.long() * stride for index, stride in zip(at, strides, strict=True)), torch.zeros_like(labels_N)
    )
    with torch.cuda.device_of(logits):  # Triton launches on the current device; nothing without one
        _row_kernel[(rows,)](
            logits, offsets_N, labels_N, out, rows, logits.shape[-1], 1.0 / temperature,
            ALIGNED=alignment(logits), BLOCK=block, num_warps=WARPS,
        )  # fmt: skip
    return out


def alignment(logits: Tensor) -> int:
    """Of how many elements the start of every row is a multiple: of as many as a thread reads at once, or of 1."""
    element = logits.element_size()
    places = (logits.data_ptr(), *(stride * element for stride in logits.stride()[:-1]))
    return VECTOR_BYTES // element if all(place % VECTOR_BYTES == 0 for place in places) else 1


def traffic_bytes(rows: int, vocabulary: int, element: int) -> int:
    """Bytes the kernel reads and writes for rows of logits of ``element`` bytes each."""
    return rows * (vocabulary * element + 8 + 8 + element + 4 * 4)
