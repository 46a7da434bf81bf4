"""Lines that tell how far an ingest is; whole lines, so that they read well in a job's log. No Ray here."""

import time

PROGRESS_SECONDS = 5.0


class Progress:
    """Prints how far a stage is, every few seconds and at its end."""

    def __init__(self, verb: str, total: int, unit: str):
        self._verb, self._total, self._unit = verb, total, unit
        self._done, self._begun = 0, time.monotonic()
        self._told = self._begun

    def add(self, count: int) -> None:
        self._done += count
        now = time.monotonic()
        if now - self._told < PROGRESS_SECONDS and self._done < self._total:
            return
        self._told = now
        rate = self._done / max(now - self._begun, 1e-9)
        left = f", {(self._total - self._done) / rate:.0f} s left" if self._done < self._total else ""
        say(f"{self._verb} {self._done}/{self._total} {self._unit}, {rate:.0f} a second{left}")


def say(text: str) -> None:
    """Prints one line of an ingest."""
    print(f"ingest: {text}", flush=True)
