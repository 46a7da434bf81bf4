"""How far a stream decodes ahead, and in which order, with tasks that end when the test says so: no cluster needed."""

from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from blades_dist.config import StreamConfig
from blades_dist.data import stream
from blades_dist.data.order import Chunk, Position
from blades_dist.data.stream import Load, _Ahead

ROWS = 64


class Tasks:
    """What the stream uses of Ray: a task runs until it is asked for, or ``end`` is called."""

    def __init__(self) -> None:
        self.started: list[int] = []
        self.ended: set[int] = set()
        self.cancelled: list[int] = []
        self.cpus: list[float] = []
        self.most = 0

    put = staticmethod(lambda value: value)
    is_initialized = staticmethod(lambda: True)

    def options(self, num_cpus: float, scheduling_strategy: str) -> Any:
        assert scheduling_strategy == "DEFAULT"
        self.cpus.append(num_cpus)
        return SimpleNamespace(remote=self._start)

    def _start(self, chunk: Chunk, load: Load) -> int:
        self.started.append(int(chunk.row[0]))
        self.most = max(self.most, len(set(self.started) - self.ended))
        return self.started[-1]

    def wait(self, references: list[int], num_returns: int, timeout: float, fetch_local: bool) -> Any:
        assert timeout == 0 and not fetch_local and num_returns == len(references)
        return [r for r in references if r in self.ended], [r for r in references if r not in self.ended]

    def get(self, reference: int) -> str:
        self.ended.add(reference)
        return f"table {reference}"

    def cancel(self, reference: int) -> None:
        self.cancelled.append(reference)


def plan() -> Iterator[Chunk]:
    for number in range(10_000):
        rows = np.full(ROWS, number)
        yield Chunk(Position(0, number * ROWS), 1, rows, rows, rows)


@pytest.fixture
def tasks(monkeypatch: pytest.MonkeyPatch) -> Tasks:
    found = Tasks()
    monkeypatch.setattr(stream, "ray", found)
    monkeypatch.setattr(stream, "_load_chunk", found)
    return found


def ahead_of(monkeypatch: pytest.MonkeyPatch, at_once: int, chunks_in_buffer: int) -> _Ahead:
    monkeypatch.setattr(stream, "_task_pool", lambda *_: (at_once, 0.5))
    mebibytes = -(-chunks_in_buffer * ROWS * 3 * 32**2 // 2**20)
    config = StreamConfig(shards=Path("s"), image_size=32, buffer_mebibytes=mebibytes)
    return _Ahead(plan(), Load([], 32, stream.Jitter()), config, 1)


@pytest.mark.parametrize("at_once", [1, 2, 5])
def test_chunks_come_in_order_and_no_more_tasks_run_than_may(
    tasks: Tasks, monkeypatch: pytest.MonkeyPatch, at_once: int
) -> None:
    ahead = ahead_of(monkeypatch, at_once, 16)
    for number, (chunk, table) in enumerate(islice(ahead, 40)):
        assert (int(chunk.row[0]), table) == (number, f"table {number}")
    assert tasks.started == sorted(tasks.started) and tasks.most <= at_once and set(tasks.cpus) == {0.5}


def test_it_decodes_few_at_first_and_no_more_than_two_buffers_when_its_reader_stops(
    tasks: Tasks, monkeypatch: pytest.MonkeyPatch
) -> None:
    ahead = ahead_of(monkeypatch, 1000, 16)
    room = 2 * (stream._buffer_rows(ahead._config) // ROWS)
    next(ahead)
    assert len(tasks.started) <= 2, "whoever stops early has decoded little in vain"
    for _ in range(10):
        next(ahead)
        tasks.ended |= set(tasks.started)
        for _ in range(50):
            ahead.top_up()
    assert len(tasks.started) == 11 + room
    ahead.close()
    assert len(tasks.cancelled) == room and not set(tasks.cancelled) & set(range(11))


def test_tasks_are_started_between_batches_as_others_end(tasks: Tasks, monkeypatch: pytest.MonkeyPatch) -> None:
    ahead = ahead_of(monkeypatch, 2, 16)
    for _ in range(4):
        next(ahead)
    begun = len(tasks.started)
    ahead.top_up()
    assert len(tasks.started) == begun + 1, "the one that was waited for has made room"
    tasks.ended |= set(tasks.started)
    ahead.top_up()
    assert len(tasks.started) == begun + 3
