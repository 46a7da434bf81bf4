"""The EXIF labels that BLADES' authors released for FDF: levels and classes instead of values. No Ray here.

``{id: {"path": ".../128/0.png", "EXIF_ordinal": {"ISO": level, ...}, "EXIF_categorical": {"Make": {"cls_label": n},
...}}}``. Class numbers count through the classes of ``tags.EXIF_TAGS``, which follow the released code.
"""

import json
from pathlib import PurePosixPath
from typing import Any

from blades_dist.data.sources.base import SourceError
from blades_dist.data.sources.disk_map import DiskMap
from blades_dist.data.sources.json_items import json_items
from blades_dist.data.sources.storage import open_beside, printable
from blades_dist.tags import EXIF_TAGS, LEVELS
from blades_dist.tasks import vocabulary

_ORDINAL = {name: tag.name for tag in EXIF_TAGS if tag.kind == "ordinal" for name in tag.released_as}
_CATEGORICAL = {name: tag.name for tag in EXIF_TAGS if tag.kind == "categorical" for name in tag.released_as}


class FdfLabels:
    """A label file, read once into a temporary file on disk; labels by the stem of the image's name.

    Levels may count from 0 or from 1: a 0 anywhere in the file says which. Negative and missing labels are absent.
    """

    def __init__(self, uri: str) -> None:
        """
        Raises:
            SourceError: the file is missing or damaged, or has more than three levels.
        """
        self.uri = uri
        self._items = DiskMap()
        storage, name = open_beside(uri)
        lowest, highest = 1, 0
        try:
            for key, item in json_items(storage, name):
                note = _note(key, item)
                for level in note.get("levels", {}).values():
                    lowest, highest = min(lowest, level), max(highest, level)
                self._items.add(printable(_stem(key, item)), json.dumps(note))
        except BaseException:
            self.close()
            raise
        self._base = lowest
        if highest - lowest >= len(LEVELS):
            self.close()
            raise SourceError(f"labels: {uri} has levels {lowest} to {highest}; this system ranks {len(LEVELS)}")

    def of(self, stem: str) -> dict[str, Any]:
        """``levels`` and ``exif`` for ``notes.annotations_of``; empty for an image that the file does not name.

        Raises:
            ValueError: the image's item is malformed.
        """
        text = self._items.get(stem)
        note: dict[str, Any] = {} if text is None else json.loads(text)
        if "wrong" in note:
            raise ValueError(f"label file {PurePosixPath(self.uri).name}: {note['wrong']}")
        if "levels" in note:
            note["levels"] = {tag: level - self._base for tag, level in note["levels"].items()}
        return note

    def close(self) -> None:
        self._items.close()


def _stem(key: str, item: Any) -> str:
    path = item.get("path") if isinstance(item, dict) else None
    return PurePosixPath(path.replace("\\", "/")).stem if isinstance(path, str) and path else key


def _note(key: str, item: Any) -> dict[str, Any]:
    """Levels as they stand in the file, and words; or what is wrong."""
    try:
        if not isinstance(item, dict):
            raise ValueError("not an object")
        levels = {tag: _whole(value, name) for name, tag, value in _pairs(item, "EXIF_ordinal", _ORDINAL)}
        words = {}
        for name, tag, value in _pairs(item, "EXIF_categorical", _CATEGORICAL):
            number = _whole(value.get("cls_label") if isinstance(value, dict) else value, name)
            if number >= len(vocabulary(tag)):
                raise ValueError(f"{name} has class {number}, of {len(vocabulary(tag))}")
            if number >= 0:
                words[tag] = vocabulary(tag)[number]
    except ValueError as error:
        return {"wrong": f"item {printable(key)}: {error}"[:200]}
    levels = {tag: level for tag, level in levels.items() if level >= 0}
    return ({"levels": levels} if levels else {}) | ({"exif": words} if words else {})


def _pairs(item: dict[str, Any], member: str, names: dict[str, str]) -> list[tuple[str, str, Any]]:
    """(name, our tag, value) of the tags of a member that are known here."""
    content = item.get(member) or {}
    if not isinstance(content, dict):
        raise ValueError(f"{member} is not an object")
    return [(name, tag, content[name]) for name, tag in names.items() if name in content]


def _whole(value: Any, name: str) -> int:
    """A label as a whole number, -1 for none."""
    if value is None:
        return -1
    if isinstance(value, bool) or not isinstance(value, (int, float)) or value != int(value):
        raise ValueError(f"{name} is {str(value)[:20]!r}, not a whole number")
    return int(value)
