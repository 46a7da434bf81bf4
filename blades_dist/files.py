"""Files that appear whole or not at all, whenever the process or the machine stops; folders of one process."""

import fcntl
import os
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

LOCK = ".lock"


def write_atomically(path: Path, content: str | bytes) -> None:
    """Writes ``path`` so that readers see the old or the new file, never half of it; text is UTF-8.

    When this returns the file is on disk under its name. Its folder is made if it is missing.
    """
    data = content.encode() if isinstance(content, str) else content
    write_through(path, lambda file: file.write_bytes(data))
    sync_folder(path.parent)


def write_through(path: Path, write: Callable[[Path], Any]) -> None:
    """Calls ``write`` with a temporary path beside ``path`` and moves what it wrote there into place.

    For files that others write. What they wrote is on disk before it gets its name; nothing is left behind when
    ``write`` raises.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # A name of its own each time: two writers of one file do not meet in the temporary one.
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:12]}.tmp")
    try:
        write(temporary)
        with temporary.open("rb") as written:
            os.fsync(written.fileno())
        os.replace(temporary, path)
    except BaseException:
        with suppress(FileNotFoundError):
            temporary.unlink()
        raise


def sync_folder(folder: Path) -> None:
    """Returns when the names in ``folder`` are on disk."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def alone(folder: Path, refusal: Exception) -> Iterator[None]:
    """Holds ``folder/.lock`` for the enclosed block; the system lets go of it when the process ends, however it does.

    Raises:
        refusal: another process holds it.
    """
    with (folder / LOCK).open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise refusal from None
        yield
