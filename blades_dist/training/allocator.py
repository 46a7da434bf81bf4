"""How a CPU trainer's process keeps memory."""

import ctypes

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
