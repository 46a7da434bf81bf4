"""Pictures that a CSV list names, real and fake in one list: a test set as people exchange it. No Ray here."""

import csv
import hashlib
import io
import json
import math
from collections.abc import Iterator
from contextlib import closing
from itertools import groupby
from posixpath import normpath
from posixpath import split as parts
from typing import Any

from blades_dist.data.faces import MAX_FACES, frontal
from blades_dist.data.sources.base import Annotations, Entry, Source, SourceError
from blades_dist.data.sources.disk_map import DiskMap
from blades_dist.data.sources.folder import unsupported
from blades_dist.data.sources.notes import annotations_of, face_note, text_of
from blades_dist.data.sources.storage import Listing, below, open_beside, printable, reason

REAL, FAKE = "real", "fake"
_LABELS = {"photographs": REAL, "generated": FAKE}
_COLUMNS = ("path", "label", "generator")
_BOX = ("x", "y", "w", "h")


class ListSource(Source):
    """Rows of one label, in the list's order. Columns: path (relative to the list's folder, with forward slashes),
    label (real or fake), generator (needed by fakes; the source's name), and x, y, w, h of a face's box in pixels of
    the upright picture, or none of the four.

    A picture with several faces has several rows, one after another. Landmarks of a box are those of a frontal face.
    What is wrong with the list ends the ingest with the line; what is wrong with a picture does not.
    """

    def __init__(self, uri: str, kind: str) -> None:
        """``kind``: "photographs" takes the rows with label real, "generated" those with label fake."""
        self.storage, self.list_name = open_beside(uri)
        self._label = _LABELS[kind]
        self._where = below(self.storage.uri, self.list_name)

    def entries(self) -> Iterator[Entry]:
        listing, found = Listing("\0"), False
        with closing(DiskMap()) as seen:
            for path, group in groupby(self._rows(), key=lambda item: item[1]["path"]):
                rows = list(group)
                line, first = rows[0]
                if not seen.add(path, str(line)):
                    raise self._wrong(line, f"{path} was listed in line {seen.get(path)} before; put its rows together")
                if any((row["label"], row["generator"]) != (first["label"], first["generator"]) for _, row in rows):
                    raise self._wrong(line, f"{path} has rows of several labels or generators")
                if first["label"] != self._label:
                    continue
                found = True
                folder = parts(path)[0]
                if listing.folder != folder:
                    listing = self._listing(folder)
                yield self._entry(listing, path, first["generator"] or REAL, self._note(rows))
        if not found:
            raise SourceError(f"source: {self._where} has no row with label {self._label}")

    def data(self, entry: Entry) -> bytes:
        return self.storage.read(entry.path)

    def annotations(self, entry: Entry, data: bytes) -> Annotations:
        return annotations_of(json.loads(entry.note)) if entry.note else Annotations()

    def _rows(self) -> Iterator[tuple[int, dict[str, str]]]:
        """Line and checked values of every row."""
        try:
            opened = self.storage.open(self.list_name)
        except OSError as error:
            raise SourceError(f"source: cannot read {self._where}: {reason(error)}") from None
        with opened, io.TextIOWrapper(opened, "utf-8-sig", newline="") as text:
            try:
                reader = csv.DictReader(text, restval="")
                missing = [name for name in _COLUMNS if name not in (reader.fieldnames or ())]
                if missing:
                    raise SourceError(
                        f"source: {self._where} has no column {', '.join(missing)}; its first line must name "
                        f"{', '.join(_COLUMNS)} and may name {', '.join(_BOX)}"
                    )
                for row in reader:
                    yield reader.line_num, self._checked(reader.line_num, row)
            except (csv.Error, UnicodeError) as error:
                raise SourceError(f"source: {self._where}, after line {reader.line_num}: {reason(error)}") from None

    def _checked(self, line: int, row: dict[Any, Any]) -> dict[str, str]:
        if None in row:
            raise self._wrong(line, "more values than columns; put a path that holds a comma in quotes")
        values = {name: row.get(name, "").strip() for name in (*_COLUMNS, *_BOX)}
        path = values["path"]
        if not path or path.startswith("/") or "://" in path or ".." in path.split("/") or "\\" in path:
            raise self._wrong(line, f"path {path!r} does not lie below the list's folder; write it relative to that")
        if values["label"] not in (REAL, FAKE):
            raise self._wrong(line, f"label {values['label']!r}; allowed: {REAL}, {FAKE}")
        if values["label"] == FAKE and not values["generator"]:
            raise self._wrong(line, "a fake needs the name of its generator")
        return values | {"path": normpath(path)}

    def _note(self, rows: list[tuple[int, dict[str, str]]]) -> dict[str, Any]:
        boxes = [box for line, row in rows if (box := self._box(line, row)) is not None]
        if len(rows) > 1 and len(boxes) < len(rows):
            raise self._wrong(rows[1][0], f"{rows[0][1]['path']} is listed again; several rows need a box each")
        if len(boxes) > MAX_FACES:
            raise self._wrong(rows[0][0], f"{len(boxes)} faces of one picture; the limit is {MAX_FACES}")
        return {"faces": [face_note(box, frontal(box).landmarks) for box in boxes]} if boxes else {}

    def _box(self, line: int, row: dict[str, str]) -> tuple[float, float, float, float] | None:
        texts = [row[name] for name in _BOX]
        if not any(texts):
            return None
        try:
            x, y, w, h = (float(text) for text in texts)
        except ValueError:
            raise self._wrong(line, f"box {', '.join(texts)} is not four numbers") from None
        if not all(math.isfinite(value) and abs(value) < 1e6 for value in (x, y, w, h)) or w <= 0 or h <= 0:
            raise self._wrong(line, f"box {', '.join(texts)} has no area, or is far too large")
        return x, y, w, h

    def _listing(self, folder: str) -> Listing:
        try:
            return self.storage.listing(folder)
        except OSError:
            return Listing(folder)

    def _entry(self, listing: Listing, path: str, source: str, note: dict[str, Any]) -> Entry:
        name = parts(path)[1]
        if name not in listing.files:
            return Entry(printable(path), source, 0, "", problem=("unreadable", "the list names it; not there"))
        file = self.storage.describe(listing, name)
        if file.problem is not None:
            return Entry(file.path, source, file.size, file.mark, problem=("unreadable", file.problem))
        text = text_of(note)
        mark = f"{file.mark} {hashlib.sha256(text.encode()).hexdigest()[:16]}" if text else file.mark
        return Entry(file.path, source, file.size, mark, text, problem=unsupported(path) if file.size else None)

    def _wrong(self, line: int, what: str) -> SourceError:
        return SourceError(f"source: {self._where}, line {line}: {what}")
