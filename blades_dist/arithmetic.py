"""In which arithmetic a GPU computes: the one place that sets torch's switches for TF32 and for cuDNN's algorithms.

TF32 keeps 10 of fp32's 23 bits of the numbers that convolutions and matrix products multiply. torch takes it by default
for convolutions alone, so "fp32" is a mixture unless somebody says otherwise. Only torch's older switches
(``allow_tf32``) are used: it refuses a mixture of those with ``fp32_precision``, and its own code still reads them.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor

from blades_dist.config import Precision

_Switches = tuple[bool, bool, bool, bool]


def set_precision(precision: Precision) -> None:
    """Makes products of fp32 numbers what ``train.precision`` says, for the rest of this process.

    ``tf32``: convolutions and matrix products in TF32. ``fp32``, and ``bf16`` for what autocast leaves in fp32: both in
    IEEE fp32.
    """
    torch.backends.cudnn.allow_tf32 = precision == "tf32"
    torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"


@contextmanager
def ieee_fp32() -> Iterator[None]:
    """Inside, products of fp32 numbers are IEEE fp32, by algorithms that give the same bits each time; also a
    decorator.

    For what has to agree between devices, runs and processes: features, positions of pixels, differences of losses.
    The switches are the process's, so threads may be inside together: the first sets them, the last puts them back.
    """
    _strict.enter()
    try:
        yield
    finally:
        _strict.leave()


class _Strict:
    """How many are inside, and what the switches were before the first came."""

    def __init__(self) -> None:
        self._lock, self._inside, self._before = threading.Lock(), 0, _switches()

    def enter(self) -> None:
        with self._lock:
            if not self._inside:
                self._before = _switches()
                _switch((False, False, True, False))
            self._inside += 1

    def leave(self) -> None:
        with self._lock:
            self._inside -= 1
            if not self._inside:
                _switch(self._before)


def _switches() -> _Switches:
    cudnn = torch.backends.cudnn
    return cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32, cudnn.deterministic, cudnn.benchmark


def _switch(to: _Switches) -> None:
    cudnn = torch.backends.cudnn
    cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32, cudnn.deterministic, cudnn.benchmark = to


_strict = _Strict()


def in_blocks(compute: Callable[[Tensor], Tensor], rows: Tensor, block: int) -> Tensor:
    """``compute`` of (n, ...) ``rows``, always called on exactly ``block`` of them, the last ones filled up with zeros.

    Libraries choose an algorithm, and with it the order of sums, by the batch's size. At one size a row's result does
    not depend on how many others came with it, as long as ``compute`` treats rows alone.
    """
    if not len(rows):
        return compute(rows)
    found = [compute(_filled(part, block))[: len(part)] for part in rows.split(block)]
    return found[0] if len(found) == 1 else torch.cat(found)


def _filled(rows: Tensor, count: int) -> Tensor:
    missing = count - len(rows)
    return F.pad(rows, (0, 0) * (rows.ndim - 1) + (0, missing)) if missing else rows


def cuda() -> torch.device:
    """The GPU that this process was given.

    Raises:
        RuntimeError: torch sees none; says what to look at.
    """
    if not torch.cuda.is_available():
        build = "a build for CPUs" if torch.version.cuda is None else f"built for CUDA {torch.version.cuda}"
        raise RuntimeError(
            f"this process was to use a GPU and torch {torch.__version__} ({build}) sees none: look at the driver "
            "(nvidia-smi; CUDA 13 needs 580 or newer), at CUDA_VISIBLE_DEVICES, and at which torch is installed"
        )
    return torch.device("cuda")
