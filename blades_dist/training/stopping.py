"""How a person's or a scheduler's wish to stop reaches the workers: SIGTERM, Ctrl-C, ``ray job stop``."""

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
class Bell:
    """An actor beside the driver: ``wait`` returns when ``ring`` was called."""

    def __init__(self) -> None:
        self._rung = asyncio.Event()

    async def ring(self) -> None:
        self._rung.set()

    async def wait(self) -> bool:
        await self._rung.wait()
        return True


class Listener:
    """One worker's ear: whether the bell was rung, without waiting. ``bell`` None never rings."""

    def __init__(self, bell: Any) -> None:
        self._call = bell.wait.remote() if bell is not None else None

    @property
    def rung(self) -> bool:
        if self._call is None:
            return False
        ready, _ = ray.wait([self._call], timeout=0)
        return bool(ready)  # also when the bell is gone: then so is the driver, and this group soon


class Stop:
    """The driver's side. ``number`` is the signal that came, None while there was none."""

    def __init__(self) -> None:
        here = ray.get_runtime_context().get_node_id()
        self.bell = Bell.options(label_selector={"ray.io/node-id": here}).remote()  # type: ignore[attr-defined]
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
        before = {number: signal.signal(number, self._came) for number in SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _came(self, number: int, _frame: FrameType | None) -> None:
        if self.number is not None:
            raise KeyboardInterrupt
        self.number = number
        print("stopping: a checkpoint is saved after the present step; a second signal ends at once", flush=True)
        self.bell.ring.remote()


def _into(job: "Future[Result]", work: Callable[[], Result]) -> None:
    try:
        job.set_result(work())
    except BaseException as error:  # for whoever waits
        job.set_exception(error)
