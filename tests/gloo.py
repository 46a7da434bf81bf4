"""Worker processes joined by gloo, for tests of what several ranks compute together."""

import os
import socket
import traceback
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp


class GlooPool:
    """``size`` processes that stay up between tests: importing torch costs more than most tests."""

    def __init__(self, size: int) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        context = mp.get_context("spawn")
        self._tasks = [context.SimpleQueue() for _ in range(size)]
        self._answers = context.SimpleQueue()
        self._processes = [
            context.Process(target=_serve, args=(rank, size, port, self._tasks[rank], self._answers), daemon=True)
            for rank in range(size)
        ]
        for process in self._processes:
            process.start()

    def run(self, function: Callable[..., Any], *args: Any) -> list[Any]:
        """``function(*args)`` on every rank; what they return, in rank order. It must be importable."""
        for queue in self._tasks:
            queue.put((function, args))
        answers = dict(self._answers.get() for _ in self._processes)
        errors = [answer for ok, answer in answers.values() if not ok]
        if errors:
            raise AssertionError("a rank failed:\n" + "\n".join(errors))
        return [answers[rank][1] for rank in range(len(self._processes))]

    def close(self) -> None:
        for queue in self._tasks:
            queue.put(None)
        for process in self._processes:
            process.join(20)
            process.kill()


def _serve(rank: int, size: int, port: int, tasks: Any, answers: Any) -> None:
    os.environ.update(
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
        RANK=str(rank),
        WORLD_SIZE=str(size),
        LOCAL_RANK=str(rank),
        DS_ACCELERATOR="cpu",
    )
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=size)
    while (task := tasks.get()) is not None:
        function, args = task
        try:
            answers.put((rank, (True, function(*args))))
        except Exception:
            answers.put((rank, (False, traceback.format_exc())))
    dist.destroy_process_group()
