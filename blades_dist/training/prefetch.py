"""Batches on the model's device before they are asked for, and how long was waited for them yet. No Ray here."""

import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from queue import Empty, Full, Queue
from types import TracebackType

import torch
from torch import Tensor

from blades_dist.data.order import Position
from blades_dist.data.read import FaceBatch

_POLL_SECONDS = 0.1  # how often a full queue looks whether its consumer has gone


@dataclass(frozen=True)
class Faces:
    """A batch on the device: ``images`` (B, 3, S, S) uint8, ``landmarks`` (B, 5, 2), ``labels`` (B, tags), its rows'
    ids; as ``data.read.FaceBatch``."""

    images: Tensor
    landmarks: Tensor
    labels: Tensor
    ids: list[str]


@dataclass
class Waits:
    """Seconds that were spent blocked on a stream: for its first batch, and for all the others."""

    start: float = 0.0
    later: float = 0.0
    batches: int = field(default=0, repr=False)

    def add(self, seconds: float) -> None:
        """Counts one more batch."""
        if self.batches:
            self.later += seconds
        else:
            self.start += seconds
        self.batches += 1

    def __add__(self, other: "Waits") -> "Waits":
        return Waits(self.start + other.start, self.later + other.later, self.batches + other.batches)


class Feed:
    """An iterator over batches on ``device``, each with the position after it; a context manager that ends the stream.

    On CUDA a thread pins the next batch and copies it on a stream of its own while the one before is used. On a CPU
    there is no copy to hide, and the stream decodes ahead by itself: a thread would only take time from the training.
    """

    def __init__(self, batches: Iterator[tuple[FaceBatch, Position]], device: torch.device) -> None:
        self.waits = Waits()
        self._batches: Iterator[tuple[Faces, Position]] = (
            _Ahead(batches, device) if device.type == "cuda" else _plain(batches)
        )

    def __iter__(self) -> Iterator[tuple[Faces, Position]]:
        return self

    def __next__(self) -> tuple[Faces, Position]:
        begin = time.monotonic()
        item = next(self._batches)
        self.waits.add(time.monotonic() - begin)
        return item

    def __enter__(self) -> "Feed":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Ends the stream, and the thread if there is one."""
        self._batches.close()  # type: ignore[attr-defined]  # both kinds have it


def _plain(batches: Iterator[tuple[FaceBatch, Position]]) -> Iterator[tuple[Faces, Position]]:
    try:
        for batch, position in batches:
            yield Faces(*_tensors(batch), batch["ids"]), position
    finally:
        _close(batches)


class _Ahead(Iterator[tuple[Faces, Position]]):
    """Keeps one batch ready on the device, and one under way, from when the first is asked for."""

    def __init__(self, batches: Iterator[tuple[FaceBatch, Position]], device: torch.device) -> None:
        self._device = device
        self._ready: Queue[tuple[Faces, Position, torch.cuda.Event | None] | BaseException] = Queue(maxsize=1)
        self._closing = threading.Event()
        self._ended: BaseException | None = None
        self._thread = threading.Thread(target=self._fill, args=(batches,), name="feed", daemon=True)

    def __next__(self) -> tuple[Faces, Position]:
        if self._ended is not None:
            raise self._ended
        if self._thread.ident is None:
            self._thread.start()
        item = self._ready.get()
        if isinstance(item, BaseException):
            self._ended = item
            raise item
        faces, position, copied = item
        if copied is not None:
            current = torch.cuda.current_stream(self._device)
            current.wait_event(copied)
            for tensor in (faces.images, faces.landmarks, faces.labels):
                tensor.record_stream(current)  # its memory is the other stream's: not to be given away under us
        return faces, position

    def close(self) -> None:
        self._closing.set()
        with suppress(Empty):
            self._ready.get_nowait()
        if self._thread.ident is not None:
            self._thread.join()
        self._ended = self._ended or StopIteration()

    def _fill(self, batches: Iterator[tuple[FaceBatch, Position]]) -> None:
        try:
            side = torch.cuda.Stream(self._device) if self._device.type == "cuda" else None
            for batch, position in batches:
                self._put(self._copied(batch, side, position))
                if self._closing.is_set():
                    break
            else:
                self._put(StopIteration())
        except BaseException as error:  # for whoever asks for the next batch
            self._put(error)
        finally:
            _close(batches)

    def _copied(
        self, batch: FaceBatch, side: torch.cuda.Stream | None, position: Position
    ) -> tuple[Faces, Position, torch.cuda.Event | None]:
        tensors = _tensors(batch)
        if side is None:
            return Faces(*tensors, batch["ids"]), position, None
        with torch.cuda.stream(side):
            images, landmarks, labels = (t.pin_memory().to(self._device, non_blocking=True) for t in tensors)
            copied = torch.cuda.Event()
            copied.record(side)
        return Faces(images, landmarks, labels, batch["ids"]), position, copied

    def _put(self, item: tuple[Faces, Position, torch.cuda.Event | None] | BaseException) -> None:
        while not self._closing.is_set():
            with suppress(Full):
                self._ready.put(item, timeout=_POLL_SECONDS)
                return


def _tensors(batch: FaceBatch) -> tuple[Tensor, Tensor, Tensor]:
    images, landmarks, labels = (torch.from_numpy(batch[key]) for key in ("images", "landmarks", "labels"))
    return images, landmarks, labels


def _close(batches: Iterator[tuple[FaceBatch, Position]]) -> None:
    close = getattr(batches, "close", None)
    if close is not None:
        close()
