"""Batches that are fetched ahead: the same ones in the same order, errors where they belong, and a clean end."""

import threading
import time
from collections.abc import Iterator

import numpy as np
import pytest
import torch

from blades_dist.data.order import Position
from blades_dist.data.read import FaceBatch, empty_batch
from blades_dist.training.prefetch import Feed, Waits, _Ahead


class Source:
    """Batches whose pixels are their number; knows whether it was closed."""

    def __init__(self, count: int, error: Exception | None = None) -> None:
        self.made, self.closed, self._count, self._error = 0, False, count, error

    def batches(self) -> Iterator[tuple[FaceBatch, Position]]:
        try:
            for number in range(self._count):
                batch = empty_batch(2, 32)
                for name in ("images", "landmarks", "labels"):
                    batch[name][:] = number  # type: ignore[literal-required]
                self.made += 1
                yield batch, Position(0, 2 * (number + 1))
            if self._error is not None:
                raise self._error
        finally:
            self.closed = True


def ahead(source: Source) -> _Ahead:
    return _Ahead(source.batches(), torch.device("cpu"))  # the thread and its queue are those of CUDA


def numbers(batches: object) -> list[int]:
    return [int(faces.images[0, 0, 0, 0]) for faces, _ in batches]  # type: ignore[attr-defined]


@pytest.mark.parametrize("threaded", [False, True])
def test_every_batch_comes_once_in_order_with_its_position(threaded: bool) -> None:
    source = Source(9)
    batches = ahead(source) if threaded else Feed(source.batches(), torch.device("cpu"))
    found = list(batches)
    assert numbers(found) == list(range(9)) and source.closed
    assert [position.rows for _, position in found] == list(range(2, 20, 2))
    with pytest.raises(StopIteration):
        next(batches)


def test_at_most_two_batches_are_fetched_ahead() -> None:
    source = Source(1000)
    batches = ahead(source)
    assert source.made == 0, "nothing is read for whoever asks for nothing"
    next(batches)
    time.sleep(0.3)
    assert source.made <= 3
    batches.close()


@pytest.mark.parametrize("threaded", [False, True])
def test_closing_ends_the_stream_and_the_thread(threaded: bool) -> None:
    source, before = Source(1000), set(threading.enumerate())
    batches = ahead(source) if threaded else Feed(source.batches(), torch.device("cpu"))
    next(batches)
    batches.close()
    assert source.closed and not set(threading.enumerate()) - before
    batches.close()
    with pytest.raises(StopIteration):
        next(batches)


def test_a_feed_that_was_never_asked_closes() -> None:
    batches = ahead(Source(3))
    batches.close()
    with Feed(Source(3).batches(), torch.device("cpu")):
        pass


@pytest.mark.parametrize("threaded", [False, True])
def test_an_error_of_the_stream_comes_after_the_batches_before_it(threaded: bool) -> None:
    source = Source(2, ValueError("the shard is damaged"))
    batches = ahead(source) if threaded else Feed(source.batches(), torch.device("cpu"))
    assert numbers([next(batches), next(batches)]) == [0, 1]
    with pytest.raises(ValueError, match="damaged"):
        next(batches)
    batches.close()
    assert source.closed


def test_the_first_batch_is_counted_apart() -> None:
    waits = Waits()
    for seconds in (3.0, 0.25, 0.5):
        waits.add(seconds)
    assert waits == Waits(3.0, 0.75, 3) and waits + waits == Waits(6.0, 1.5, 6)
    with Feed(Source(3).batches(), torch.device("cpu")) as feed:
        list(feed)
        assert feed.waits.batches == 3 and feed.waits.start > 0 and feed.waits.later > 0


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_batches_on_the_device_are_what_was_read() -> None:
    with Feed(Source(50).batches(), torch.device("cuda")) as feed:
        for number, (faces, _) in enumerate(feed):
            assert faces.images.device.type == "cuda"
            total = faces.images.sum().item() + faces.labels.sum().item()
            assert total == number * (faces.images.numel() + faces.labels.numel())
            assert np.allclose(faces.landmarks.cpu().numpy(), number)
