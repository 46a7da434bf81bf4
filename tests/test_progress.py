"""The lines that tell how far a stage is."""

from pytest import MonkeyPatch

from blades_dist import progress
from blades_dist.progress import ProgressLine


def test_a_line_every_few_seconds_and_at_the_end(monkeypatch: MonkeyPatch) -> None:
    clock = iter([0.0, 1.0, 2.0, 6.0, 7.0, 11.0])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    said: list[str] = []
    line = ProgressLine("hashed", "files", said.append)
    for done in (10, 20, 60, 70, 100):
        line(done, 100)
    assert said == ["hashed 60/100 files, 10 a second, 4 s left", "hashed 100/100 files, 9 a second"]


def test_what_was_done_before_is_no_part_of_the_rate(monkeypatch: MonkeyPatch) -> None:
    clock = iter([0.0, 5.0, 10.0])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    said: list[str] = []
    line = ProgressLine("simulated", "photographs", said.append)
    line(900, 1000)
    line(950, 1000)
    assert said == ["simulated 900/1000 photographs", "simulated 950/1000 photographs, 10 a second, 5 s left"]
