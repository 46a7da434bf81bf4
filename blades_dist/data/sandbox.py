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
from typing import IO, Any, Literal, Self

from blades_dist.config import IngestConfig
from blades_dist.data import wire
from blades_dist.data.crops import Outcome, Photo
from blades_dist.data.sources.base import Annotations

START_SECONDS = 120.0  # a cold file system may be slow to give the libraries
_PIPE_BYTES = 2**20
_ONE_THREAD = {name: "1" for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")}


class SandboxError(RuntimeError):
    """The child process cannot be started or does not keep to the protocol: no photo's fault."""


class Failed(Exception):
    """The child did not answer: it was too ``late``, or it was ``killed`` or ``crashed``; the text says which."""

    def __init__(self, kind: Literal["late", "killed", "crashed"], detail: str) -> None:
        super().__init__(detail)
        self.kind: Literal["late", "killed", "crashed"] = kind


class BoundedProcess:
    """A child process ``python -m MODULE PARENT_PID`` that answers messages; a context manager.

    ``hello`` is the header it gets first, its bounds in it; it answers that with ``{"error": ""}``, or with what keeps
    it from working. Threads may share one; they then wait for each other.
    """

    def __init__(self, module: str, hello: dict[str, Any], seconds: float, memory_mebibytes: int) -> None:
        self._module, self._hello, self._seconds, self._bound = module, hello, seconds, memory_mebibytes
        self._child: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()

    @property
    def pid(self) -> int | None:
        """Of the child that runs now; None when none does."""
        return None if self._child is None else self._child.pid

    def __enter__(self) -> Self:
        with self._lock:
            self._alive()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Ends the child; the next message would start another."""
        with self._lock:
            self._end()

    def ask(self, header: dict[str, Any], payload: bytes) -> wire.Message:
        """The child's answer; a child that fails at it is replaced.

        Raises:
            Failed: there is none.
            SandboxError: the child cannot be started; the message says why (a locator's model file, say).
        """
        with self._lock:
            child = self._alive()
            try:
                return wire.exchange(*_streams(child), header, payload, self._seconds)
            except wire.Late:
                self._end()
                raise Failed("late", f"the decoder took longer than {self._seconds:g} s") from None
            except wire.Gone:
                raise self._end() from None
            except BaseException:  # interrupted within a message: what is left of it must not meet the next one
                self._end()
                raise

    def _alive(self) -> subprocess.Popen[bytes]:
        if self._child is not None and self._child.poll() is not None:
            self._end()  # it died between messages
        if self._child is None:
            self._child = self._start()
        return self._child

    def _start(self) -> subprocess.Popen[bytes]:
        root = str(Path(__file__).parents[2])
        path = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
        # The allocator of the system obeys the memory bound exactly; Arrow's own ones reserve more than they use.
        environment = {"PYTHONPATH": path, "ARROW_DEFAULT_MEMORY_POOL": "system", **_ONE_THREAD}
        command = [sys.executable, "-P", "-m", self._module, str(os.getpid())]
        with tempfile.TemporaryFile() as errors:
            child = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, env=os.environ | environment
            )
            _prepare(child)
            try:
                header, _ = wire.exchange(*_streams(child), self._hello, b"", START_SECONDS)
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

    def _end(self) -> Failed:
        """Ends the child, if there is one; returns what became of it, for the message it was working on."""
        child, self._child = self._child, None
        code = 0 if child is None else _kill(child)
        if code == -signal.SIGKILL:
            return Failed("killed", f"the decoder was killed, perhaps for memory; its bound is {self._bound} MiB")
        name = signal.Signals(-code).name if -code in set(signal.Signals) else f"status {code}"
        return Failed("crashed", f"the decoder crashed ({name})")


class PhotoProcess(BoundedProcess):
    """``process_photo`` in a child process of its own; a context manager.

    Start one a worker process: a child costs about 100 MiB and half a second, a photo about a millisecond more than in
    the own process.
    """

    def __init__(self, config: IngestConfig):
        hello = {"config": config.model_dump(mode="json")}
        super().__init__("blades_dist.data.sandbox_child", hello, config.seconds_per_photo, config.memory_mebibytes)

    def process(self, photo: Photo, data: bytes, annotations: Annotations) -> Outcome:
        """What ``crops.process_photo`` makes of a photo; ``unreadable`` where it took the child down or too long.

        Raises:
            SandboxError: as ``ask``.
        """
        try:
            return wire.read_answer(*self.ask(wire.request_header(photo, annotations), data))
        except Failed as failure:
            return Outcome(photo.path, rejected=[(None, "unreadable", str(failure))])


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
