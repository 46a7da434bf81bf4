"""Which files of a folder are offered for ingest, and where each comes from. No Ray here."""

import os
import stat
from dataclasses import dataclass
from pathlib import Path

from blades_dist.data.faces import SIDECAR_SUFFIX

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff")
# Listed so that they end in the quarantine with a reason instead of being passed over.
OTHER_SUFFIXES = (".heic", ".heif", ".avif", ".gif", ".bmp", ".jp2", ".jxl")


class SourceError(ValueError):
    """A source folder that cannot be ingested; the message is for the user."""


@dataclass(frozen=True)
class SourceFile:
    """A file of the collection: ``path`` relative to its folder, with forward slashes, ``size`` in bytes.

    ``problem`` says why it is not worth opening; None for a regular file.
    """

    path: str
    source: str
    size: int
    modified_ns: int
    sidecar: tuple[int, int] | None = None  # size and modification time, so that a changed sidecar is noticed
    problem: str | None = None


def list_images(folder: Path) -> list[SourceFile]:
    """Image files below a folder, sorted by path; links to folders are not followed.

    A file's source is the first folder below ``folder`` on its path, or ``folder``'s own name.

    Raises:
        SourceError: no such folder, or no image file in it.
    """
    check_folder(folder)
    found = []
    for parent, _, names in os.walk(folder):
        present = set(names)
        for name in names:
            if Path(name).suffix.lower() in IMAGE_SUFFIXES + OTHER_SUFFIXES:
                found.append(_describe(folder, Path(parent), name, present))
    if not found:
        raise SourceError(f"source: no image in {folder} (looked for {', '.join(IMAGE_SUFFIXES)}, in all subfolders)")
    return sorted(found, key=lambda file: file.path)


def check_folder(folder: Path) -> None:
    """Raises SourceError when there is no such folder."""
    if not folder.is_dir():
        raise SourceError(f"source: {folder} is not a folder")


def _describe(folder: Path, parent: Path, name: str, present: set[str]) -> SourceFile:
    relative = (parent / name).relative_to(folder)
    source = relative.parts[0] if len(relative.parts) > 1 else folder.resolve().name
    path, problem = relative.as_posix(), None
    if _printable(path) != path:
        path, source, problem = _printable(path), _printable(source), "the file's name is not valid UTF-8"
    sidecar = Path(name).stem + SIDECAR_SUFFIX
    try:
        status = (parent / name).stat()
        beside = (parent / sidecar).stat() if sidecar in present else None
    except OSError as error:
        return SourceFile(path, source, 0, 0, None, f"cannot be examined: {error.strerror}")
    if not stat.S_ISREG(status.st_mode):
        problem = "not a regular file"
    marks = (beside.st_size, beside.st_mtime_ns) if beside else None
    return SourceFile(path, source, status.st_size, status.st_mtime_ns, marks, problem)


def _printable(text: str) -> str:
    return os.fsencode(text).decode("utf-8", "backslashreplace")
