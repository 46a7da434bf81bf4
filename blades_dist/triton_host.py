"""Whether Triton's kernels run on this host. Triton compiles their launcher there, so it needs more than itself."""

import logging
from collections.abc import Callable

_log = logging.getLogger(__name__)

ADVICE = "Triton needs a C compiler and Python's headers (python3-dev)"


def kernel_failure(kernel: str, run: Callable[[], object], instead: str) -> str | None:
    """Why a kernel cannot run, or None: found out by running it once, so keep the answer. A failure is logged, with
    ``instead``, what becomes of it."""
    try:
        run()
    except Exception as error:  # of a compiler, a linker, a driver: each has its own
        lines = [line for line in str(error).splitlines() if line.strip()]
        why = f"{type(error).__name__}: {lines[-1] if lines else 'no reason given'}"
        _log.warning("the %s kernel does not run, so %s: %s; %s", kernel, instead, why, ADVICE)
        return f"{why}; {ADVICE}"
    return None
