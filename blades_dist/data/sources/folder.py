"""Photographs in a folder tree, each with what lies beside it: faces and metadata as JSON. No Ray here."""

import json
from collections.abc import Iterator
from pathlib import Path
from posixpath import basename, splitext

from blades_dist.data import heif
from blades_dist.data.decode import Rejected
from blades_dist.data.faces import SIDECAR_SUFFIX, parse_sidecar
from blades_dist.data.metadata import MAX_JSON_BYTES, exif_of_json
from blades_dist.data.sources.base import Annotations, Entry, Source, SourceError
from blades_dist.data.sources.storage import Storage, Stored, joined, open_storage

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff")
# Listed so that they end in the quarantine with a reason instead of being passed over; HEIF is read where it can be.
OTHER_SUFFIXES = (".heic", ".heif", ".avif", ".gif", ".bmp", ".jp2", ".jxl")
LISTED_SUFFIXES = IMAGE_SUFFIXES + OTHER_SUFFIXES


class FolderSource(Source):
    """Every image file below a path or URI; its source is the first folder on its path, or the root's own name.

    Beside ``photo.jpg`` are read ``photo.faces.json`` (faces) and the first of ``photo.jpg.json`` and ``photo.json``
    (metadata, see ``blades_dist.data.metadata``). ``note`` names those that were there when the folder was listed.
    """

    def __init__(self, uri: str) -> None:
        self.storage = open_storage(uri)

    def entries(self) -> Iterator[Entry]:
        root, found = self.storage.name, False
        for item in self.storage.walk(LISTED_SUFFIXES):
            found = True
            yield _entry(self.storage, item, root)
        if not found:
            raise SourceError(
                f"source: no image in {self.storage.uri} (looked for {', '.join(IMAGE_SUFFIXES)}, in all subfolders)"
            )

    def data(self, entry: Entry) -> bytes:
        return self.storage.read(entry.path)

    def annotations(self, entry: Entry, data: bytes) -> Annotations:
        beside = json.loads(entry.note) if entry.note else {}
        folder = entry.path.rpartition("/")[0]
        texts = {kind: read_bounded(self.storage, joined(folder, name)) for kind, name in beside.items()}
        return Annotations(
            faces=parse_sidecar(texts["faces"]) if "faces" in texts else None,
            exif=exif_of_json(texts["exif"]) if "exif" in texts else None,
        )


def image_files(folder: Path) -> list[Path]:
    """Every image file of a folder tree, readable or not, by path.

    Raises:
        SourceError: there is no such folder, or no image in it.
    """
    return [folder / entry.path for entry in FolderSource(str(folder)).entries()]


def annotations_beside(file: Path) -> Annotations | None:
    """What lies beside one image file, as ``FolderSource`` reads it; None where its folder does not list it.

    Raises:
        OSError, Rejected: as ``Source.annotations``.
    """
    source = FolderSource(str(file.parent))
    entry = next((entry for entry in source.entries() if entry.path == file.name), None)
    return None if entry is None else source.annotations(entry, b"")


def unsupported(path: str) -> tuple[str, str] | None:
    """The problem of a file whose format is known by its name and not read here; else None."""
    suffix = splitext(path)[1].lower()
    readable = suffix in heif.SUFFIXES and heif.plugin() is not None
    if suffix not in OTHER_SUFFIXES or readable:
        return None
    hint = "; install pillow_heif to read them" if suffix in heif.SUFFIXES else ""
    return "unsupported", f"{suffix} files; supported are JPEG, PNG, WebP and TIFF{hint}"


def read_bounded(storage: Storage, path: str, offset: int = 0, size: int | None = None) -> bytes:
    """A JSON file beside an image, or that part of a larger file.

    Raises:
        OSError: it cannot be read.
        Rejected: ``bad_sidecar``, when it is too long to be one.
    """
    data = storage.read(path, offset, MAX_JSON_BYTES + 1 if size is None else min(size, MAX_JSON_BYTES + 1))
    if len(data) > MAX_JSON_BYTES:
        raise Rejected("bad_sidecar", f"{path}: longer than {MAX_JSON_BYTES} bytes")
    return data


def _entry(storage: Storage, item: Stored, root: str) -> Entry:
    first, slash, rest = item.path.partition("/")
    source = first if slash and rest else root
    if item.problem is not None:
        return Entry(item.path, source, item.size, item.mark, problem=("unreadable", item.problem))
    name = basename(item.path)
    stem = splitext(name)[0]
    beside = {}
    for kind, names in (("faces", [stem + SIDECAR_SUFFIX]), ("exif", [name + ".json", stem + ".json"])):
        present = [name for name in names if name in item.listing.files]
        if present:
            beside[kind] = storage.describe(item.listing, present[0])
    for other in beside.values():
        if other.problem is not None:
            detail = f"{basename(other.path)} beside it: {other.problem}"
            return Entry(item.path, source, item.size, item.mark, problem=("unreadable", detail))
    mark = " ".join([item.mark, *(f"{kind} {other.mark} {other.size}" for kind, other in beside.items())])
    note = json.dumps({kind: basename(other.path) for kind, other in beside.items()}) if beside else ""
    problem = unsupported(item.path) if item.size else None  # "empty" says more of a file without bytes
    return Entry(item.path, source, item.size, mark, note, problem=problem)
