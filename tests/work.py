"""How much work a call does, counted: a clock would measure the machine's other work too."""

import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import blades_dist

_OURS = str(Path(blades_dist.__file__).parent)


def lines_run(call: Callable[[], object], limit: int) -> int:
    """Lines of ``blades_dist`` that run in ``call``: the same number on any machine, however busy it is.

    Raises:
        AssertionError: it is more than ``limit``; ``call`` ends there, so that one without end fails too.
    """
    count, before = 0, sys.gettrace()

    def of_lines(frame: FrameType, event: str, _: Any) -> Any:
        nonlocal count
        count += event == "line"
        assert count <= limit, f"more than {limit} lines run, at {frame.f_code.co_qualname}, line {frame.f_lineno}"
        return of_lines

    def of_calls(frame: FrameType, event: str, _: Any) -> Any:
        return of_lines if frame.f_code.co_filename.startswith(_OURS) else None

    sys.settrace(of_calls)
    try:
        call()
    finally:
        sys.settrace(before)
    assert count <= limit
    return count
