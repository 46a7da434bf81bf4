"""Training that gives the same bits every time: ``train.deterministic``; what a trainer sets of its own process."""

import ctypes
import os

import torch

from blades_dist.config import TrainConfig

# What cuBLAS needs to always take the same way; it is read once, when a process first multiplies matrices on a GPU.
CUBLAS = "CUBLAS_WORKSPACE_CONFIG"
WORKSPACES = (":4096:8", ":16:8")


# Without it memory of one size that is free cannot serve another: routes differ in what they hold from step to step.
ALLOCATOR, SEGMENTS = "PYTORCH_ALLOC_CONF", "expandable_segments:True"


def prepare_environment(deterministic: bool = True) -> None:
    """Sets what must stand in the environment before CUDA starts, where nobody has. Call first thing in a process that
    trains."""
    os.environ.setdefault(ALLOCATOR, SEGMENTS)
    if deterministic:
        os.environ.setdefault(CUBLAS, WORKSPACES[0])


def make_deterministic(device: torch.device) -> None:
    """Has torch take only operations that give the same bits each time, for the rest of this process.

    Deterministic algorithms only (an operation that has none raises, by name), no search for the fastest convolution.
    Then two runs are bitwise equal if they have equal: code, versions of torch and its libraries, device
    type, number of workers, and on a CPU number of torch threads, since a sum's order depends on how it is shared out;
    ``threads`` therefore pins those. Other processors may still round otherwise: their libraries choose other kernels.

    Raises:
        RuntimeError: on a GPU, when ``CUBLAS_WORKSPACE_CONFIG`` is not set to what cuBLAS needs for it.
    """
    if device.type == "cuda" and os.environ.get(CUBLAS) not in WORKSPACES:
        raise RuntimeError(
            f"deterministic training on a GPU needs {CUBLAS}={WORKSPACES[0]} in the environment before CUDA starts; "
            f"it is {os.environ.get(CUBLAS)!r}. prepare_environment() sets it where nobody has"
        )
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = True


def threads(train: TrainConfig, cores: int, workers_here: int) -> int:
    """Torch threads of a worker, of ``workers_here`` on a host with ``cores``.

    What is configured; else an equal share of the cores, or one where the bits must not depend on the host.
    """
    if train.threads_per_worker is not None:
        return train.threads_per_worker
    return 1 if train.deterministic else max(1, cores // workers_here)


_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # glibc's M_TRIM_THRESHOLD and M_MMAP_THRESHOLD


def keep_freed_memory() -> bool:
    """Tells glibc to keep what is freed for the next allocation; False where the C library is another one.

    By default every activation is mapped anew from the kernel and given back, page by page, in every layer of every
    step. The process then stays at its peak, which a training step comes back to anyway.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):
        return False
    mallopt.argtypes, mallopt.restype = [ctypes.c_int, ctypes.c_int], ctypes.c_int
    # 32 MiB is the largest threshold that glibc takes.
    return bool(mallopt(_MMAP_THRESHOLD, 32 * 2**20) and mallopt(_TRIM_THRESHOLD, 2**31 - 1))
