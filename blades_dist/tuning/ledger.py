"""What has happened in the search for an encoder: one JSON line an event, appended as it happens. No Ray here.

This is all that a sweep is resumed from. Ray Tune's own state is neither needed nor read: it is a pickle, and it does
not hold what a scheduler has seen.
"""

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

State = Literal["open", "finished", "stopped", "failed"]
DEFAULT = 0  # number of the candidate that is the default configuration


@dataclass(frozen=True)
class Candidate:
    """A configuration: ``values`` by dotted key; ``parent`` is the run whose weights it starts from, "" for none."""

    number: int
    values: dict[str, Any]
    generation: int = 0
    parent: str = ""


@dataclass
class Run:
    """One Train run of a candidate: ``reports`` are (step, coarse AUC) in order, ``terms`` those of the objective."""

    name: str
    candidate: int
    seed: int
    state: State = "open"
    reports: list[tuple[int, float]] = field(default_factory=list)
    terms: dict[str, float] = field(default_factory=dict)
    score: float | None = None
    why: str = ""


class Ledger:
    """Candidates and runs of a sweep, in the order in which they came; every change is on disk when a call returns."""

    def __init__(self, file: Path, repair: bool = True) -> None:
        """``repair`` is for the one process that writes: it removes what a kill has cut off."""
        self.file = file
        self.candidates: dict[int, Candidate] = {}
        self.runs: dict[str, Run] = {}
        for event in read_lines(file, repair):
            self._take(event)

    def add(self, candidate: Candidate) -> None:
        self._append({"event": "candidate", **vars(candidate)})

    def start(self, candidate: int, seed: int) -> Run:
        """A new run of a candidate."""
        name = f"c{candidate:03d}-s{seed}"
        self._append({"event": "run", "name": name, "candidate": candidate, "seed": seed})
        return self.runs[name]

    def report(self, run: str, step: int, value: float) -> bool:
        """Records a validation result; False where a run, resumed from before that step, repeats it."""
        if any(step <= known for known, _ in self.runs[run].reports):
            return False
        self._append({"event": "report", "name": run, "step": step, "value": value})
        return True

    def end(
        self, run: str, state: State, terms: dict[str, float] | None = None, score: float | None = None, why: str = ""
    ) -> None:
        self._append({"event": "end", "name": run, "state": state, "terms": terms or {}, "score": score, "why": why})

    def of(self, candidate: int) -> list[Run]:
        """Runs of a candidate by seed."""
        return sorted((run for run in self.runs.values() if run.candidate == candidate), key=lambda run: run.seed)

    def finished(self, seeds: int) -> list[int]:
        """Candidates of which all seeds have finished."""
        return [number for number in self.candidates if self.state(number, seeds) == "finished"]

    def state(self, candidate: int, seeds: int) -> State:
        """Of a candidate: finished when all its seeds are, stopped or failed when one is."""
        states = [run.state for run in self.of(candidate)]
        for one in ("failed", "stopped"):
            if one in states:
                return one
        return "finished" if states.count("finished") == seeds else "open"

    def score(self, candidate: int) -> float | None:
        """Mean over the seeds that have finished."""
        scores = [run.score for run in self.of(candidate) if run.score is not None]
        return sum(scores) / len(scores) if scores else None

    def _append(self, event: dict[str, Any]) -> None:
        append_line(self.file, event)
        self._take(event)

    def _take(self, event: dict[str, Any]) -> None:
        kind, rest = event["event"], {key: value for key, value in event.items() if key != "event"}
        if kind == "candidate":
            self.candidates[rest["number"]] = Candidate(**rest)
        elif kind == "run":
            self.runs[rest["name"]] = Run(**rest)
        elif kind == "report":
            self.runs[rest["name"]].reports.append((rest["step"], rest["value"]))
        else:
            run = self.runs[rest["name"]]
            run.state, run.terms, run.score, run.why = rest["state"], rest["terms"], rest["score"], rest["why"]


def append_line(file: Path, value: dict[str, Any]) -> None:
    """Adds one JSON line, on disk when this returns."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("a", encoding="utf-8") as out:
        out.write(json.dumps(value) + "\n")
        out.flush()
        os.fsync(out.fileno())


def read_lines(file: Path, repair: bool = True) -> Iterator[dict[str, Any]]:
    """The whole lines of a file; with ``repair`` what a kill has cut off is removed, so that the next begins a line.

    Raises:
        ValueError: a line is not JSON.
    """
    if not file.is_file():
        return
    content = file.read_bytes()
    whole = content.rfind(b"\n") + 1
    if whole < len(content) and repair:
        with file.open("r+b") as torn:
            torn.truncate(whole)
    for number, line in enumerate(content[:whole].splitlines(), 1):
        try:
            yield json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"{file}, line {number}: {error}; remove the line to forget what it said") from None
