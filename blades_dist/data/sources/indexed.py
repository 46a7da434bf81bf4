"""A folder of images and one large JSON file that says what is on each: what FDF and FFHQ share. No Ray here."""

import hashlib
import json
from abc import abstractmethod
from collections.abc import Iterator
from contextlib import closing
from posixpath import basename, splitext
from typing import Any

from blades_dist.data.sources.base import Annotations, Entry, Source, SourceError
from blades_dist.data.sources.disk_map import DiskMap
from blades_dist.data.sources.folder import LISTED_SUFFIXES, unsupported
from blades_dist.data.sources.json_items import json_items
from blades_dist.data.sources.notes import annotations_of, text_of
from blades_dist.data.sources.storage import below, open_beside, open_storage, printable


class IndexedSource(Source):
    """Images below ``self.folder()``, joined by the stem of their names with the items of a JSON file.

    The join is on disk: memory is one folder's listing and one item. Entries come in the order of the JSON file, then
    images that it does not name (nothing is said of them). An item without image, a second item for the same image
    and an item that is malformed are entries with a problem.
    """

    def __init__(self, uri: str, metadata: str) -> None:
        """``metadata`` is the path or URI of the JSON file."""
        self.storage = open_storage(uri)
        self.metadata, self.metadata_name = open_beside(metadata)

    @abstractmethod
    def folder(self) -> str:
        """Where the images lie, relative to the storage's root.

        Raises:
            SourceError: nowhere.
        """

    @abstractmethod
    def stem_of(self, key: str, item: Any) -> str:
        """Name, without folder and suffix, of an item's image.

        Raises:
            ValueError: the item is malformed, with what is wrong.
        """

    @abstractmethod
    def note_of(self, key: str, item: Any) -> dict[str, Any]:
        """What an item says, for ``notes.annotations_of``.

        Raises:
            ValueError: the item is malformed, with what is wrong.
        """

    def entries(self) -> Iterator[Entry]:
        folder = self.folder()
        with closing(DiskMap()) as images:
            found = False
            for item in self.storage.walk(LISTED_SUFFIXES, folder):
                found = True
                record = json.dumps([item.path, item.size, item.mark, item.problem])
                stem = splitext(basename(item.path))[0]
                if not images.add(stem, record):
                    images.add(f"{stem}/{item.path}", record)  # no item can name it; it comes at the end
            if not found:
                raise SourceError(f"source: no image in {below(self.storage.uri, folder)}")
            for count, (key, value) in enumerate(json_items(self.metadata, self.metadata_name)):
                yield self._entry(images, folder, count, printable(key), value)
            for key, record in images.left():
                yield self._unnamed(key.partition("/")[0], record)

    def note_without(self, stem: str) -> dict[str, Any]:
        """What is known of an image that the JSON file does not name.

        Raises:
            ValueError: that is malformed, with what is wrong.
        """
        return {}

    def data(self, entry: Entry) -> bytes:
        return self.storage.read(entry.path)

    def annotations(self, entry: Entry, data: bytes) -> Annotations:
        return annotations_of(json.loads(entry.note)) if entry.note else Annotations()

    def _entry(self, images: DiskMap, folder: str, count: int, key: str, value: Any) -> Entry:
        name = f"{self.metadata_name}#{key}"
        numbered = f"{name} (item {count})"  # the key may come twice
        try:
            stem = printable(self.stem_of(key, value))
        except ValueError as error:
            return self._problem(numbered, "bad_sidecar", f"{name}: {error}")
        record, first = images.take(stem)
        if not first:
            return self._problem(numbered, "bad_sidecar", f"item {count} names image {stem}, as one before it does")
        if record is None:
            return self._problem(
                numbered, "unreadable", f"{name}: there is no image {stem} below {folder or 'the folder'}"
            )
        try:
            return self._image(record, self.note_of(key, value))
        except ValueError as error:
            return self._image(record, {}, ("bad_sidecar", f"{name}: {error}"))

    def _unnamed(self, stem: str, record: str) -> Entry:
        try:
            return self._image(record, self.note_without(stem))
        except ValueError as error:
            return self._image(record, {}, ("bad_sidecar", str(error)))

    def _image(self, record: str, note: dict[str, Any], problem: tuple[str, str] | None = None) -> Entry:
        path, size, mark, wrong = json.loads(record)
        text = text_of(note)
        mark = f"{mark} {hashlib.sha256(text.encode()).hexdigest()[:16]}"
        if wrong is not None:
            problem = "unreadable", wrong
        problem = problem or (unsupported(path) if size else None)
        return Entry(path, self.storage.name, size, mark, text, problem=problem)

    def _problem(self, path: str, reason: str, detail: str) -> Entry:
        return Entry(path, self.storage.name, 0, "", problem=(reason, detail[:300]))
