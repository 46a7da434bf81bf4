"""Dynamic batching: items that arrive while the device is busy wait, and form the next batch. No Ray here.

Ray Serve's ``@serve.batch`` closes a batch after a fixed time whether the device is free or not, so that under load
many small batches queue for it. It stays in front of this one for its time window (``model.Model._batch``).
"""

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


class DynamicBatcher(Generic[Item, Result]):
    """Calls ``work`` (items to as many results) in threads: at most ``at_once`` calls, at most ``size`` items a call.

    ``wanted`` says just before a batch is formed whether the item's caller still waits for it.
    """

    def __init__(
        self,
        work: Callable[[list[Item]], Sequence[Result]],
        size: int,
        at_once: int,
        wanted: Callable[[Item], bool] = lambda _: True,
    ) -> None:
        self._work, self._size, self._free, self._wanted = work, size, at_once, wanted
        self._waiting: deque[tuple[Item, asyncio.Future[Result | None]]] = deque()
        self._tasks: set[asyncio.Task[None]] = set()

    async def add(self, items: Sequence[Item]) -> list[Result | None]:
        """Their results, in order; None for an item whose caller has gone. Raises what ``work`` raised."""
        loop = asyncio.get_running_loop()
        own = [(item, loop.create_future()) for item in items]
        self._waiting.extend(own)
        self._start()
        return list(await asyncio.gather(*(future for _, future in own)))

    def _start(self) -> None:
        while self._free and (batch := self._next()):
            self._free -= 1
            task = asyncio.get_running_loop().create_task(self._run(batch))
            self._tasks.add(task)  # the loop itself holds tasks weakly
            task.add_done_callback(self._tasks.discard)

    def _next(self) -> list[tuple[Item, "asyncio.Future[Result | None]"]]:
        batch: list[tuple[Item, asyncio.Future[Result | None]]] = []
        while self._waiting and len(batch) < self._size:
            item, future = self._waiting.popleft()
            if future.done():
                continue
            if self._wanted(item):
                batch.append((item, future))
            else:
                future.set_result(None)
        return batch

    async def _run(self, batch: list[tuple[Item, "asyncio.Future[Result | None]"]]) -> None:
        try:
            results = await asyncio.to_thread(self._work, [item for item, _ in batch])
            for (_, future), result in zip(batch, results, strict=True):
                if not future.done():
                    future.set_result(result)
        except Exception as error:
            for _, future in batch:
                if not future.done():
                    future.set_exception(error)
        finally:
            self._free += 1
            self._start()
