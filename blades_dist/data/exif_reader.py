"""EXIF fields of an image file, as they are stored: a bounded reader that never raises.

It walks only what it needs (two directories, a fixed set of fields, the first value of each) and checks every offset
against the data it has, so a hostile file costs no more than an honest one: loops, huge counts and offsets beyond the
end are read as "absent". General EXIF libraries allocate what a count field claims.
"""

import math
import struct
from collections.abc import Mapping

from blades_dist.data import heif
from blades_dist.tags import EXIF_TAGS, Names

Fields = Mapping[int, float | str]

ORIENTATION, EXIF_DIRECTORY, FOCAL_LENGTH_35MM = 0x0112, 0x8769, 0xA405
_NAMES = [(tag.fields[0], tag.values.qualifier) for tag in EXIF_TAGS if isinstance(tag.values, Names)]
TEXT_FIELDS = frozenset(field.number for pair in _NAMES for field in pair)
# Names as the EXIF standard has them, of every field that is read, and of no other one.
FIELD_NAMES = {field.number: field.name for tag in EXIF_TAGS for field in tag.fields}
FIELD_NAMES |= {qualifier.number: qualifier.name for _, qualifier in _NAMES}
FIELD_NAMES |= {ORIENTATION: "Orientation", EXIF_DIRECTORY: "ExifIFD", FOCAL_LENGTH_35MM: "FocalLengthIn35mmFilm"}

_MAX_SEGMENTS = 100_000  # of a container, before its EXIF block
_MAX_ENTRIES = 255  # of a directory; real ones have a few dozen
_MAX_TEXT = 128  # bytes of a string value
_TEXT_TYPES = (2, 129)  # ASCII, and UTF-8 since EXIF 3
_BYTE_TYPES = (1, 6, 7)
_UNIT_BYTES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 129: 1}
_UNIT_FORMAT = {1: "B", 3: "H", 4: "L", 6: "b", 7: "B", 8: "h", 9: "l", 11: "f", 12: "d", 13: "L"}
_OTHER_ORDER = {"<": ">", ">": "<"}


def read_fields(data: bytes) -> dict[int, float | str]:
    """The fields of ``FIELD_NAMES`` in a JPEG, PNG, WebP, TIFF or (with pillow_heif) HEIF file.

    Numbers are finite floats, text is stripped and at most 128 bytes long. Empty when there is no EXIF.
    """
    try:
        block = _exif_block(data)
        order = None if block is None else _byte_order(bytes(block[:4]))
        if block is None or order is None:
            return {}
        main = _directory(block, struct.unpack_from(order + "L", block, 4)[0], order)
        pointer = main.pop(EXIF_DIRECTORY, None)
        # Some writers put the camera's fields into the main directory; the EXIF directory wins.
        return main | (_directory(block, int(pointer), order) if isinstance(pointer, float) else {})
    except (struct.error, ValueError, OverflowError):
        return {}


def _byte_order(header: bytes) -> str | None:
    """``<`` or ``>``; where the two letters and the magic number disagree, the number was written in the true order."""
    if header[:2] not in (b"II", b"MM"):
        return None
    return {b"*\0": "<", b"\0*": ">"}.get(header[2:])


def _exif_block(data: bytes) -> memoryview | None:
    """The TIFF-structured block that holds the EXIF of an image file."""
    view = memoryview(data)
    if data[:2] == b"\xff\xd8":
        return _jpeg_block(view)
    if data[:8] == b"\x89PNG\r\n\x1a\n":
        return _chunk(view, 8, ">", b"eXIf", png=True)
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return _chunk(view, 12, "<", b"EXIF", png=False)
    if heif.is_heif(data):
        found = heif.exif_of(data)
        return None if found is None else _without_prefix(memoryview(found))
    return view if _byte_order(data[:4]) is not None else None


def _jpeg_block(view: memoryview) -> memoryview | None:
    position = 2
    for _ in range(_MAX_SEGMENTS):
        if position + 4 > len(view) or view[position] != 0xFF:
            return None
        marker = view[position + 1]
        if marker == 0xFF:  # fill byte
            position += 1
            continue
        if marker in (0xDA, 0xD9):  # the image itself begins, or all ends
            return None
        size = struct.unpack_from(">H", view, position + 2)[0]
        payload = view[position + 4 : position + 2 + size]
        if marker == 0xE1 and bytes(payload[:6]) == b"Exif\0\0":
            return payload[6:]
        position += 2 + max(size, 2)
    return None


def _chunk(view: memoryview, position: int, order: str, name: bytes, png: bool) -> memoryview | None:
    """Payload of the first chunk of that name; PNG puts the size first and a checksum last, RIFF pads to even."""
    for _ in range(_MAX_SEGMENTS):
        if position + 8 > len(view):
            return None
        found = bytes(view[position + 4 : position + 8] if png else view[position : position + 4])
        size = struct.unpack_from(order + "L", view, position + (0 if png else 4))[0]
        if found == name:
            return _without_prefix(view[position + 8 : position + 8 + size])
        position += 8 + size + (4 if png else size % 2)
    return None


def _without_prefix(payload: memoryview) -> memoryview:
    return payload[6:] if bytes(payload[:6]) == b"Exif\0\0" else payload


def _directory(block: memoryview, offset: int, order: str) -> dict[int, float | str]:
    """The wanted entries of one directory; the first of a repeated field counts.

    Editors that swap the byte order of a file forget directories. A count is at most 255 in one order only (but for
    0), so it tells in which one a directory was written.
    """
    if offset + 2 > len(block):
        return {}
    count = struct.unpack_from(order + "H", block, offset)[0]
    if count > _MAX_ENTRIES:
        swapped = struct.unpack_from(_OTHER_ORDER[order] + "H", block, offset)[0]
        order, count = (_OTHER_ORDER[order], swapped) if swapped <= _MAX_ENTRIES else (order, _MAX_ENTRIES)
    found: dict[int, float | str] = {}
    for entry in range(offset + 2, offset + 2 + 12 * count, 12):
        if entry + 12 > len(block):
            break
        field, kind, items = struct.unpack_from(order + "HHL", block, entry)
        if field in FIELD_NAMES and field not in found and kind in _UNIT_BYTES and items:
            value = _value(block, entry + 8, kind, items, order, field in TEXT_FIELDS)
            if value is not None:
                found[field] = value
    return found


def _value(block: memoryview, offset: int, kind: int, items: int, order: str, text: bool) -> float | str | None:
    """First item of an entry as a float, or its text; None when it lies outside the block, is empty or not finite."""
    size = _UNIT_BYTES[kind] * items
    start = offset if size <= 4 else struct.unpack_from(order + "L", block, offset)[0]
    if kind in _TEXT_TYPES or (text and kind in _BYTE_TYPES):
        characters = bytes(block[start : start + min(size, _MAX_TEXT)]).split(b"\0")[0]
        return characters.decode("utf-8", "replace").strip() or None
    if start + _UNIT_BYTES[kind] > len(block):
        return None
    if kind in (5, 10):
        above, below = struct.unpack_from(order + ("LL" if kind == 5 else "ll"), block, start)
        number = above / below if below else math.nan
    else:
        number = float(struct.unpack_from(order + _UNIT_FORMAT[kind], block, start)[0])
    return number if math.isfinite(number) else None
