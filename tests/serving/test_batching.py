"""Batches that form while the device is busy."""

import asyncio
import threading

import pytest

from blades_dist.serving.batching import DynamicBatcher


class Device:
    """Doubles numbers when it is let go; keeps what it was given at once."""

    def __init__(self):
        self.given, self.go, self.lock, self.now, self.most = [], threading.Event(), threading.Lock(), 0, 0

    def work(self, items):
        with self.lock:
            self.given.append(list(items))
            self.now += 1
            self.most = max(self.most, self.now)
        assert self.go.wait(60)
        with self.lock:
            self.now -= 1
        if 13 in items:
            raise ValueError("13")
        return [2 * item for item in items]


def run(work):
    return asyncio.run(asyncio.wait_for(work, 60))


async def started(device, count):
    while len(device.given) < count:
        await asyncio.sleep(0.005)


def test_what_comes_while_it_is_busy_goes_together():
    device = Device()

    async def work():
        batcher = DynamicBatcher(device.work, size=4, at_once=1)
        first = asyncio.create_task(batcher.add([1]))
        await started(device, 1)
        others = [asyncio.create_task(batcher.add([i, i + 1])) for i in (2, 4, 6)]
        await asyncio.sleep(0.05)
        device.go.set()
        return [await task for task in (first, *others)]

    assert run(work()) == [[2], [4, 6], [8, 10], [12, 14]]
    assert device.given == [[1], [2, 3, 4, 5], [6, 7]] and device.most == 1


def test_as_many_at_once_as_allowed():
    device = Device()

    async def work():
        batcher = DynamicBatcher(device.work, size=1, at_once=2)
        every = asyncio.create_task(batcher.add(range(5)))
        await started(device, 2)
        await asyncio.sleep(0.05)
        assert len(device.given) == 2
        device.go.set()
        return await every

    assert run(work()) == [0, 2, 4, 6, 8] and device.most == 2


def test_what_nobody_waits_for_is_left_out_and_a_failure_stays_its_batch_s_own():
    device, gone = Device(), {3}

    async def work():
        batcher = DynamicBatcher(device.work, 2, 1, lambda item: item not in gone)
        first, bad = asyncio.create_task(batcher.add([1])), asyncio.create_task(batcher.add([3, 13, 13]))
        await started(device, 1)
        dropped, later = asyncio.create_task(batcher.add([5])), asyncio.create_task(batcher.add([6, 7, 8]))
        await asyncio.sleep(0.05)
        dropped.cancel()
        await asyncio.sleep(0)
        device.go.set()
        assert await first == [2] and await later == [12, 14, 16]
        with pytest.raises(ValueError, match="13"):
            await bad

    run(work())
    assert device.given == [[1], [13, 13], [6, 7], [8]]
