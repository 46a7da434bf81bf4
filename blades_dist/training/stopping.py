"""Graceful stop: how SIGTERM, Ctrl-C and ``ray job stop`` reach the workers."""

import asyncio
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from concurrent.futures import TimeoutError as NotYet
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any, TypeVar

import ray

Result = TypeVar("Result")
SIGNALS = (signal.SIGTERM, signal.SIGINT)
_POLL_SECONDS = 0.2


@ray.remote(num_cpus=0)
class StopSignal:
    """An actor beside the driver: ``wait`` returns once ``set`` was called."""

    def __init__(self) -> None:
        self._event = asyncio.Event()

    async def set(self) -> None:
        self._event.set()

    async def wait(self) -> bool:
        await self._event.wait()
        return True


class StopListener:
    """A worker's view of a stop signal, without waiting for it. ``signal`` None is never set."""

    def __init__(self, signal: Any) -> None:
        self._call = signal.wait.remote() if signal is not None else None

    @property
    def requested(self) -> bool:
        if self._call is None:
            return False
        ready, _ = ray.wait([self._call], timeout=0)
        return bool(ready)  # also when the actor has died: then so has the driver, and this group soon


class SignalHandler:
    """The driver's side: sets ``stop_signal`` at SIGTERM or SIGINT, whose ``number`` is None before one came."""

    def __init__(self) -> None:
        here = ray.get_runtime_context().get_node_id()
        # Ray gives every node this label.
        self.stop_signal = StopSignal.options(label_selector={"ray.io/node-id": here}).remote()  # type: ignore[attr-defined]
        self.number: int | None = None

    def run(self, work: Callable[[], Result]) -> Result:
        """``work()`` in a thread, so that signals are handled at once; the second one ends the process."""
        job: Future[Result] = Future()
        with self._signals():
            # A daemon: after a second signal nobody waits for it.
            threading.Thread(target=_into, args=(job, work), name="trainer", daemon=True).start()
            while not job.done():
                with suppress(NotYet):
                    job.exception(timeout=_POLL_SECONDS)
        return job.result()

    @contextmanager
    def _signals(self) -> Iterator[None]:
        if threading.current_thread() is not threading.main_thread():  # signals are the main thread's
            yield
            return
        before = {number: signal.signal(number, self._handle) for number in SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        if self.number is not None:
            raise KeyboardInterrupt
        self.number = number
        print("stopping: a checkpoint is saved after the present step; a second signal ends at once", flush=True)
        self.stop_signal.set.remote()


def _into(job: "Future[Result]", work: Callable[[], Result]) -> None:
    try:
        job.set_result(work())
    except BaseException as error:  # for whoever waits
        job.set_exception(error)
