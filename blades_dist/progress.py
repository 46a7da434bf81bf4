"""Lines that tell a person how far a long stage is; whole lines, so that they read well in a job's log."""

import time
from collections.abc import Callable
from functools import partial

Say = Callable[[str], None]
"""Takes one line for people: ``print``, say."""

OnProgress = Callable[[int, int], None]
"""Is told how many are done, of how many."""

say_now: Say = partial(print, flush=True)
SECONDS = 5.0  # between two lines of one stage


class ProgressLine:
    """An ``OnProgress`` that says so every few seconds and at the end: "hashed 120/800 files, 40 a second, 17 s left".

    The rate is that since the first call, so that what an earlier run had done is no part of it.
    """

    def __init__(self, verb: str, unit: str, say: Say = say_now) -> None:
        self._verb, self._unit, self._say = verb, unit, say
        self._told = time.monotonic()
        self._first: tuple[int, float] | None = None

    def __call__(self, done: int, total: int) -> None:
        now = time.monotonic()
        first, begun = self._first = self._first or (done, now)
        if now - self._told < SECONDS and done < total:
            return
        self._told = now
        rate = (done - first) / (now - begun) if now > begun else 0.0
        pace = f", {rate:.3g} a second" if rate else ""
        left = f", {(total - done) / rate:.0f} s left" if rate and done < total else ""
        self._say(f"{self._verb} {done}/{total} {self._unit}{pace}{left}")
