"""Flickr Diverse Faces, with its metadata and, if wished, the released EXIF labels of BLADES. No Ray here.

The layout is that of https://github.com/hukkelas/FDF: ``images/128/0.png`` (and smaller sizes), ``fdf_metainfo.json``
with, per image, ``bounding_box`` [left, top, right, bottom] and ``landmark`` (7, 2): nose, right eye, left eye, right
ear, left ear, right shoulder, left shoulder. Coordinates are shares of the image's side, 0 to 1.
"""

from collections.abc import Iterator
from contextlib import closing
from typing import Any

from blades_dist.data.sources.base import Entry, SourceError
from blades_dist.data.sources.fdf_labels import FdfLabels
from blades_dist.data.sources.indexed import IndexedSource
from blades_dist.data.sources.landmarks import box_of_corners, five_of_coco, numbers
from blades_dist.data.sources.notes import face_note
from blades_dist.data.sources.storage import below, joined, reason

METADATA = "fdf_metainfo.json"
_IMAGES = "images"
_POINTS = 7
_LARGEST_SHARE = 2.0  # landmarks may lie a little outside the image; in pixels no face is this small


class FdfSource(IndexedSource):
    """Images of the largest size there is, faces of ``fdf_metainfo.json``, tags of the label file."""

    def __init__(self, uri: str, metadata: str | None = None, labels: str | None = None) -> None:
        super().__init__(uri, metadata or below(uri, METADATA))
        self._labels_uri = labels
        self._labels: FdfLabels | None = None

    def entries(self) -> Iterator[Entry]:
        if self._labels_uri is None:
            yield from super().entries()
            return
        with closing(FdfLabels(self._labels_uri)) as labels:
            self._labels = labels
            try:
                yield from super().entries()
            finally:
                self._labels = None

    def folder(self) -> str:
        top = self.storage.top()
        if _IMAGES not in top.folders:
            return ""
        try:
            folders = self.storage.listing(_IMAGES).folders
        except OSError as error:
            raise SourceError(f"source: cannot list {below(self.storage.uri, _IMAGES)}: {reason(error)}") from None
        sizes = [name for name in folders if name.isascii() and name.isdecimal()]
        return joined(_IMAGES, max(sizes, key=int)) if sizes else _IMAGES

    def stem_of(self, key: str, item: Any) -> str:
        return key

    def note_of(self, key: str, item: Any) -> dict[str, Any]:
        if not isinstance(item, dict):
            raise ValueError("not an object")
        corners = item.get("bounding_box")
        points = numbers(item.get("landmark"), (_POINTS, 2), "landmark")
        face = face_note(box_of_corners(corners, "bounding_box"), five_of_coco(points))
        note: dict[str, Any] = {"faces": [face]}
        if numbers(corners, (4,), "bounding_box").max() <= _LARGEST_SHARE:
            note["frame"] = [1, 1]
        return note | self.note_without(key)

    def note_without(self, stem: str) -> dict[str, Any]:
        return {} if self._labels is None else self._labels.of(stem)
