"""Flickr-Faces-HQ by its JSON file. No Ray here.

The layout is that of https://github.com/NVlabs/ffhq-dataset: ``ffhq-dataset-v2.json`` with, per image, ``image`` (the
aligned picture; ``file_path``, ``pixel_size`` [width, height], 68 ``face_landmarks``), ``thumbnail`` and
``in_the_wild`` (as published; ``face_rect`` [left, top, right, bottom] besides).
"""

import re
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from blades_dist.data.sources.base import SourceError
from blades_dist.data.sources.indexed import IndexedSource
from blades_dist.data.sources.landmarks import box_around, box_of_corners, five_of_68, numbers
from blades_dist.data.sources.notes import face_note
from blades_dist.data.sources.storage import below, open_storage

METADATA = re.compile(r"ffhq-dataset-v\d+\.json")


@dataclass(frozen=True)
class _Variant:
    """A folder of the data set, the JSON member that names its files, and the one whose coordinates fit them."""

    folder: str
    files: str
    points: str


# The published photographs first: only they are as a camera made them, and only they can carry EXIF.
_VARIANTS = (
    _Variant("in-the-wild-images", "in_the_wild", "in_the_wild"),
    _Variant("images1024x1024", "image", "image"),
    _Variant("thumbnails128x128", "thumbnail", "image"),
)


class FfhqSource(IndexedSource):
    """Images of the first variant that is there, one face each; ``Annotations.frame`` scales points to the file."""

    def __init__(self, uri: str, metadata: str | None = None) -> None:
        super().__init__(uri, metadata or _find_metadata(uri))
        self._variant = _VARIANTS[0]

    def folder(self) -> str:
        present = self.storage.top().folders
        for variant in _VARIANTS:
            if variant.folder in present or variant.folder == self.storage.name:
                self._variant = variant
                return variant.folder if variant.folder in present else ""
        names = ", ".join(variant.folder for variant in _VARIANTS)
        raise SourceError(f"source: {self.storage.uri} holds none of {names}; put images there, as FFHQ has them")

    def stem_of(self, key: str, item: Any) -> str:
        path = _member(item, self._variant.files).get("file_path")
        if not isinstance(path, str) or not path:
            raise ValueError(f"{self._variant.files}.file_path is missing")
        return PurePosixPath(path).stem

    def note_of(self, key: str, item: Any) -> dict[str, Any]:
        name = self._variant.points
        about = _member(item, name)
        points = numbers(about.get("face_landmarks"), (68, 2), f"{name}.face_landmarks")
        size = numbers(about.get("pixel_size"), (2,), f"{name}.pixel_size").tolist()
        if min(size) <= 0:
            raise ValueError(f"{name}.pixel_size is not positive")
        rectangle = about.get("face_rect")
        box = box_around(points) if rectangle is None else box_of_corners(rectangle, f"{name}.face_rect")
        return {"faces": [face_note(box, five_of_68(points))], "frame": size}


def _member(item: Any, name: str) -> dict[str, Any]:
    found = item.get(name) if isinstance(item, dict) else None
    if not isinstance(found, dict):
        raise ValueError(f"no object {name}")
    return found


def _find_metadata(uri: str) -> str:
    found = sorted(name for name in open_storage(uri).top().files if METADATA.fullmatch(name))
    if not found:
        raise SourceError(f"source: no ffhq-dataset-v*.json in {uri}; put it there or name it with metadata=...")
    return below(uri, found[-1])
