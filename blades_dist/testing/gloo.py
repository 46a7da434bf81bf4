"""Worker processes joined by gloo, for tests of what several ranks compute together."""

import os
import queue
import tempfile
import traceback
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp


class GlooPool:
    """``size`` processes that stay up between tests: importing torch costs more than most tests."""

    def __init__(self, size: int) -> None:
        # They meet at a file: a port that is free now may be taken when it is needed.
        self._folder = tempfile.TemporaryDirectory()
        meeting = f"file://{self._folder.name}/meeting"
        context = mp.get_context("spawn")
        self._tasks = [context.SimpleQueue() for _ in range(size)]
        self._answers = context.Queue()
        self._processes = [
            context.Process(target=_serve, args=(rank, size, meeting, self._tasks[rank], self._answers), daemon=True)
            for rank in range(size)
        ]
        for process in self._processes:
            process.start()

    def run(self, function: Callable[..., Any], *args: Any) -> list[Any]:
        """``function(*args)`` on every rank; what they return, in rank order. It must be importable."""
        for tasks in self._tasks:
            tasks.put((function, args))
        answers = dict(self._answer() for _ in self._processes)
        errors = [answer for ok, answer in answers.values() if not ok]
        if errors:
            raise AssertionError("a rank failed:\n" + "\n".join(errors))
        return [answers[rank][1] for rank in range(len(self._processes))]

    def _answer(self) -> Any:
        while True:
            try:
                return self._answers.get(timeout=1)
            except queue.Empty:
                ended = {rank: process.exitcode for rank, process in enumerate(self._processes) if process.exitcode}
                assert not ended, f"ranks that ended, and their exit codes: {ended}"

    def close(self) -> None:
        for tasks in self._tasks:
            tasks.put(None)
        for process in self._processes:
            process.join(20)
            process.kill()
        self._folder.cleanup()


def _serve(rank: int, size: int, meeting: str, tasks: Any, answers: Any) -> None:
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(size), LOCAL_RANK=str(rank), DS_ACCELERATOR="cpu")
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=size)
    while (task := tasks.get()) is not None:
        function, args = task
        try:
            answers.put((rank, (True, function(*args))))
        except Exception:
            answers.put((rank, (False, traceback.format_exc())))
    dist.destroy_process_group()
