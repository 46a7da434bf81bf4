"""A run's checkpoints on disk: written beside the training, there whole or not at all, verified before they are read.

``checkpoints/step-00000050/`` holds one ``.safetensors`` a worker and ``checkpoint.json``, which lists them with their
SHA-256 and is itself sealed by one. Everything is written into a hidden folder first and renamed when the last byte is
on disk. The folder must be one that all workers see and that can rename.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from blades_dist.distributed import World
from blades_dist.files import sync_folder

FOLDER = "checkpoints"  # in a run folder
INDEX = "checkpoint.json"
SCHEMA = 2
DAMAGED = "damaged-"


class DamagedError(ValueError):
    """A checkpoint is not what was written; says which file and how it can be told."""


@dataclass(frozen=True)
class Snapshot:
    """One worker's share of the tensors, copied to the CPU, and the state that all have in common (JSON values)."""

    step: int
    tensors: dict[str, Tensor]
    state: dict[str, Any]


@dataclass(frozen=True)
class Part:
    """One file of a checkpoint; ``bytes`` is its size."""

    file: str
    sha256: str
    bytes: int


def saved(folder: Path) -> list[Path]:
    """The checkpoints in ``folder``, the newest first, not verified."""
    return sorted((path for path in folder.glob("step-*") if path.is_dir()), reverse=True)


def path_of(folder: Path, step: int) -> Path:
    """Where the checkpoint after ``step`` steps lies."""
    return folder / f"step-{step:08d}"


def step_of(path: Path) -> int:
    """The steps that were done when a checkpoint was taken."""
    return int(path.name.rpartition("-")[2])


def verify(path: Path) -> dict[str, Any]:
    """The index of an intact checkpoint.

    Raises:
        DamagedError: a file is missing, shorter or longer than it was, or has another digest.
    """
    try:
        sealed = json.loads((path / INDEX).read_bytes())
        content, digest = sealed["content"], sealed["sha256"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DamagedError(f"{path / INDEX}: {error}") from None
    if _digest(content) != digest:
        raise DamagedError(f"{path / INDEX}: its content does not have the digest it was written with")
    if content["schema_version"] != SCHEMA:
        raise DamagedError(f"{path}: schema version {content['schema_version']}, this version reads {SCHEMA}")
    for part in (Part(**entry) for entry in content["parts"]):
        _verify_part(path / part.file, part)
    return content


def newest(folder: Path, say: Callable[[str], None]) -> Path | None:
    """The newest intact checkpoint of a run's ``folder``; None when the run never finished writing one.

    Damaged ones are renamed to ``damaged-step-*``, out of the way, and ``say`` is told.

    Raises:
        DamagedError: there are checkpoints, and none is intact.
    """
    lost = []
    for path in saved(folder):
        try:
            verify(path)
        except DamagedError as error:
            lost.append(str(error))
            aside = folder / f"{DAMAGED}{path.name}"
            shutil.rmtree(aside, ignore_errors=True)
            path.rename(aside)
            say(f"checkpoint of step {step_of(path)} is damaged and not used ({error}); it is now {aside.name}")
        else:
            return path
    if lost:
        raise DamagedError(
            f"no checkpoint in {folder} is intact: {'; '.join(lost)}. Restore one from a copy, or delete the run's "
            "folder to start anew"
        )
    return None


def locate(start: Path) -> Path:
    """The checkpoint that ``start`` names: itself, or the newest intact one of a run folder; changes nothing.

    Raises:
        FileNotFoundError: neither a checkpoint nor a run folder with one.
        DamagedError: it is not intact, or none of the run's is.
    """
    if (start / INDEX).is_file():
        verify(start)
        return start
    candidates, lost = saved(start / FOLDER), []
    for path in candidates:
        try:
            verify(path)
            return path
        except DamagedError as error:
            lost.append(str(error))
    if lost:
        raise DamagedError(f"no checkpoint in {start / FOLDER} is intact: {'; '.join(lost)}")
    raise FileNotFoundError(f"{start} is neither a checkpoint nor the folder of a run that has one")


def read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and state of a verified checkpoint.

    Raises:
        FileNotFoundError: the folder is not there: workers on other hosts do not see the same storage.
        DamagedError: a file cannot be read.
    """
    if not (path / INDEX).is_file():
        raise FileNotFoundError(f"{path} is missing on this host: all workers need the same storage at the same path")
    content = json.loads((path / INDEX).read_bytes())["content"]
    tensors: dict[str, Tensor] = {}
    for part in content["parts"]:
        try:
            tensors |= load_file(path / part["file"])
        except (OSError, SafetensorError) as error:
            raise DamagedError(f"{path / part['file']}: {error}") from None
    return tensors, content["state"]


class Writer:
    """Writes this worker's part of each checkpoint in a thread, and on rank 0 completes it when all parts are there.

    Workers agree through ``outlook``, which goes into the collective that every step has anyway; nobody waits for a
    disk unless a checkpoint is due before the last one is complete.
    """

    def __init__(self, folder: Path, world: World, device: torch.device, keep: int) -> None:
        self.folder, self.world, self.device, self.keep = folder, world, device, keep
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._part: Future[None] | None = None
        self._whole: Future[None] | None = None
        self._snapshot: Snapshot | None = None
        if world.rank == 0:
            folder.mkdir(parents=True, exist_ok=True)
            for path in folder.glob(".writing-*"):  # of starts that were cut off
                shutil.rmtree(path, ignore_errors=True)
        # A group that was given up may still be writing: its unfinished folders have another name.
        number = int.from_bytes(os.urandom(6), "big") if world.rank == 0 else 0
        self._attempt = int(world.sum(torch.tensor([number], device=device)))

    def begin(self, snapshot: Snapshot) -> None:
        """Starts to write; first completes the checkpoint before. Every rank calls."""
        self.flush()
        self._snapshot = snapshot
        self._part = self._pool.submit(self._write_part, snapshot)

    @property
    def outlook(self) -> tuple[int, int]:
        """(1 if this rank's part is written, 1 if it or the whole has failed); sums over ranks go to ``agreed``."""
        part, whole = self._part, self._whole
        failed = any(job and job.done() and job.exception() for job in (part, whole))
        return int(part is not None and part.done()), int(failed)

    def agreed(self, written: int, failed: int) -> None:
        """Takes the sums of all ranks' ``outlook``.

        Raises:
            OSError, RuntimeError: a part could not be written, here or on another rank.
        """
        if failed:
            for job in (self._part, self._whole):
                if job and job.done():
                    job.result()
            raise RuntimeError("another worker could not write its part of a checkpoint; its log has the reason")
        if self._part is not None and written == self.world.size:
            self._part = None
            if self.world.rank == 0:
                assert self._snapshot is not None
                self._whole = self._pool.submit(self._complete, self._snapshot)
            self._snapshot = None

    def flush(self) -> None:
        """Returns when the checkpoint that was begun is complete. Every rank calls.

        Raises:
            OSError, RuntimeError: it cannot be.
        """
        if self._part is not None:
            wait([self._part])
            self.agreed(*self._everyones())
        if self._whole is not None:
            wait([self._whole])
        self.agreed(*self._everyones())  # nobody goes on before the rename
        self._whole = None

    def close(self) -> None:
        """Ends the thread; what it is writing is finished."""
        self._pool.shutdown()

    def _everyones(self) -> tuple[int, int]:
        written, failed = self.world.sum(torch.tensor(self.outlook, device=self.device)).tolist()
        return written, failed

    def _place(self, step: int) -> Path:
        return self.folder / f".writing-{step:08d}-{self._attempt:012x}"

    def _write_part(self, snapshot: Snapshot) -> None:
        place, name = self._place(snapshot.step), _part_name(self.world.rank, self.world.size)
        place.mkdir(exist_ok=True)
        save_file(snapshot.tensors, place / name)
        part = _seal(place / name)
        # Small, and read by rank 0 only after this rank has said that it is written.
        _write(place / f"{name}.json", json.dumps(part.__dict__).encode())

    def _complete(self, snapshot: Snapshot) -> None:
        place, target = self._place(snapshot.step), path_of(self.folder, snapshot.step)
        parts = []
        for rank in range(self.world.size):
            note = place / f"{_part_name(rank, self.world.size)}.json"
            parts.append(json.loads(note.read_bytes()))
            note.unlink()
        content = {"schema_version": SCHEMA, "parts": parts, "state": snapshot.state}
        _write(place / INDEX, json.dumps({"sha256": _digest(content), "content": content}).encode())
        sync_folder(place)
        if target.exists():  # of a start that was cut off after the rename and resumed from an older one
            shutil.rmtree(target)
        place.rename(target)
        sync_folder(self.folder)
        for old in saved(self.folder)[self.keep :]:
            shutil.rmtree(old, ignore_errors=True)


def _part_name(rank: int, ranks: int) -> str:
    return f"part-{rank:05d}-of-{ranks:05d}.safetensors"


def _verify_part(file: Path, part: Part) -> None:
    try:
        size = file.stat().st_size
        if size != part.bytes:
            raise DamagedError(f"{file}: {size} bytes, {part.bytes} were written")
        with file.open("rb") as opened:
            if hashlib.file_digest(opened, "sha256").hexdigest() != part.sha256:
                raise DamagedError(f"{file}: its bytes do not have the digest they were written with")
    except OSError as error:
        raise DamagedError(f"{file}: {error.strerror}") from None


def _seal(file: Path) -> Part:
    """The file's digest, once it is on disk."""
    with file.open("rb") as opened:
        digest = hashlib.file_digest(opened, "sha256").hexdigest()
        os.fsync(opened.fileno())
    return Part(file.name, digest, file.stat().st_size)


def _write(file: Path, data: bytes) -> None:
    with file.open("wb") as opened:
        opened.write(data)
        opened.flush()
        os.fsync(opened.fileno())


def _digest(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
