"""Photos to rows in a child process with a deadline and a memory bound, so that no file can end or exhaust an ingest.

One child serves one ``PhotoProcess`` for as long as it lives; a child that crashes, hangs or is killed is replaced, and
the photo it worked on is quarantined. No Ray here.
"""

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from types import TracebackType
from typing import IO

from blades_dist.config import IngestConfig
from blades_dist.data import wire
from blades_dist.data.crops import Outcome, Photo
from blades_dist.data.sources.base import Given

START_SECONDS = 120.0  # a cold file system may be slow to give the libraries
_PIPE_BYTES = 2**20
_ONE_THREAD = {name: "1" for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")}


class SandboxError(RuntimeError):
    """The child process cannot be started or does not keep to the protocol: no photo's fault."""


class PhotoProcess:
    """``process_photo`` in a child process of its own; a context manager.

    Threads may share one; they then wait for each other. Start one a worker process: a child costs about 100 MiB and
    half a second, a photo about a millisecond more than in the own process.
    """

    def __init__(self, config: IngestConfig):
        self._config = config
        self._child: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()

    @property
    def pid(self) -> int | None:
        """Of the child that runs now; None when none does."""
        return None if self._child is None else self._child.pid

    def __enter__(self) -> "PhotoProcess":
        with self._lock:
            self._alive()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Ends the child; the next photo would start another."""
        with self._lock:
            self._end()

    def process(self, photo: Photo, data: bytes, given: Given) -> Outcome:
        """What ``crops.process_photo`` makes of a photo; ``unreadable`` where it took the child down or too long.

        Raises:
            SandboxError: the child cannot be started; the message says why (a locator's model file, say).
        """
        with self._lock:
            child = self._alive()
            seconds = self._config.seconds_per_photo
            try:
                header, payload = wire.exchange(*_streams(child), wire.request_header(photo, given), data, seconds)
                return wire.read_answer(header, payload)
            except wire.Late:
                self._end()
                detail = f"the decoder took longer than {seconds:g} s"
            except wire.Gone:
                detail = self._end()
            except BaseException:  # interrupted within a message: what is left of it must not meet the next photo
                self._end()
                raise
        return Outcome(photo.path, rejected=[(None, "unreadable", detail)])

    def _alive(self) -> subprocess.Popen[bytes]:
        if self._child is not None and self._child.poll() is not None:
            self._end()  # it died between photos
        if self._child is None:
            self._child = self._start()
        return self._child

    def _start(self) -> subprocess.Popen[bytes]:
        root = str(Path(__file__).parents[2])
        path = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
        # The allocator of the system obeys the memory bound exactly; Arrow's own ones reserve more than they use.
        environment = {"PYTHONPATH": path, "ARROW_DEFAULT_MEMORY_POOL": "system", **_ONE_THREAD}
        command = [sys.executable, "-P", "-m", "blades_dist.data.sandbox_child", str(os.getpid())]
        with tempfile.TemporaryFile() as errors:
            child = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, env=os.environ | environment
            )
            _prepare(child)
            try:
                header, _ = wire.exchange(
                    *_streams(child), {"config": self._config.model_dump(mode="json")}, b"", START_SECONDS
                )
                error = header["error"]
            except (wire.Gone, wire.Late) as problem:
                errors.seek(0)
                told = errors.read().decode(errors="replace").strip().splitlines()[-3:]
                error = (
                    f"{'it ended' if isinstance(problem, wire.Gone) else 'it hangs'} at its start: {' / '.join(told)}"
                )
        if error:
            _kill(child)
            raise SandboxError(f"the process that decodes photos cannot work: {error}")
        return child

    def _end(self) -> str:
        """Ends the child, if there is one; returns what became of it, for the photo it was working on."""
        child, self._child = self._child, None
        if child is None:
            return ""
        code = _kill(child)
        if code == -signal.SIGKILL:
            bound = self._config.memory_mebibytes
            return f"the decoder was killed, perhaps for memory; its bound is {bound} MiB"
        name = signal.Signals(-code).name if -code in set(signal.Signals) else f"status {code}"
        return f"the decoder crashed ({name})"


def _prepare(child: subprocess.Popen[bytes]) -> None:
    for stream in _streams(child):
        os.set_blocking(stream.fileno(), False)
        if sys.platform == "linux":
            import fcntl

            with contextlib.suppress(OSError):  # the user's pipes may be limited; smaller ones only take more turns
                fcntl.fcntl(stream.fileno(), fcntl.F_SETPIPE_SZ, _PIPE_BYTES)


def _kill(child: subprocess.Popen[bytes]) -> int:
    """Ends a child for good and returns its status; a child that had ended by itself keeps its own."""
    with contextlib.suppress(subprocess.TimeoutExpired):
        child.wait(0.05)
    child.kill()
    for stream in _streams(child):
        with contextlib.suppress(OSError):
            stream.close()
    return child.wait()


def _streams(child: subprocess.Popen[bytes]) -> tuple[IO[bytes], IO[bytes]]:
    assert child.stdin is not None and child.stdout is not None
    return child.stdin, child.stdout
