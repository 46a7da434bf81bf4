"""EXIF of an image file: a bounded reader, plausibility rules, maker names and labels. No Ray here.

The reader walks only what it needs (two directories, a fixed set of tags, the first value of each) and checks every
offset against the data it has, so a hostile file costs no more than an honest one: loops, huge counts and offsets
beyond the end are read as "absent". General EXIF libraries allocate what a count field claims.
"""

import math
import struct
from collections.abc import Iterable, Mapping

from blades_dist.tasks import ABSENT, CATEGORICAL_TAGS, ORDINAL_TAGS, TAGS, vocabulary

Raw = dict[str, float | str | None]

# What a photographic camera can have; anything outside is a broken or joking writer and counts as absent.
PLAUSIBLE = {
    "iso": (1.0, 10_000_000.0),  # ISO speed
    "aperture": (0.5, 128.0),  # f-number
    "exposure_time": (1e-6, 86_400.0),  # seconds
    "focal_length": (0.5, 5_000.0),  # millimetres
}

# Maker names by rule: the first entry whose words open the maker's name wins, anything else is "others". Phones sold
# as Nokia carry HMD Global since 2017; Pentax was Asahi Optical until 2002. Sony Ericsson was a maker of its own.
MAKE_ALIASES: tuple[tuple[str, str], ...] = (
    ("nikon", "Nikon"),
    ("apple", "Apple"),
    ("fujifilm", "FUJIFILM"),
    ("fuji photo film", "FUJIFILM"),
    ("canon", "Canon"),
    ("samsung", "Samsung"),
    ("sony ericsson", "others"),
    ("sonyericsson", "others"),
    ("sony", "Sony"),
    ("panasonic", "Panasonic"),
    ("matsushita", "Panasonic"),
    ("nokia", "Nokia"),
    ("hmd global", "Nokia"),
    ("pentax", "Pentax"),
    ("asahi", "Pentax"),
)

# EXIF 2.3, table 9 and following; codes that are not listed are absent, but for metering modes ("others").
METERING_MODES = {
    1: "average",
    2: "centerweighted",
    3: "spot",
    4: "multi-spot",
    5: "multi-segment",
    6: "partial",
}
EXPOSURE_MODES = {0: "auto", 1: "manual", 2: "auto-bracketing"}
WHITE_BALANCES = {0: "auto", 1: "manual"}
EXPOSURE_PROGRAMS = {
    1: "manual control",
    2: "normal program",
    3: "aperture priority",
    4: "shutter priority",
    7: "portrait mode",
    8: "landscape mode",
}

_MAKE, _MODEL, _ORIENTATION, _EXIF_IFD = 0x010F, 0x0110, 0x0112, 0x8769
_EXPOSURE_TIME, _F_NUMBER, _PROGRAM = 0x829A, 0x829D, 0x8822
_ISO, _ISO_OUTPUT, _ISO_RECOMMENDED, _ISO_SPEED = 0x8827, 0x8831, 0x8832, 0x8833
_SHUTTER_APEX, _APERTURE_APEX, _METERING, _FLASH, _FOCAL = 0x9201, 0x9202, 0x9207, 0x9209, 0x920A
_EXPOSURE_MODE, _WHITE_BALANCE = 0xA402, 0xA403
_WANTED = frozenset(
    {_MAKE, _MODEL, _ORIENTATION, _EXIF_IFD, _EXPOSURE_TIME, _F_NUMBER, _PROGRAM, _ISO, _ISO_OUTPUT, _ISO_RECOMMENDED}
    | {_ISO_SPEED, _SHUTTER_APEX, _APERTURE_APEX, _METERING, _FLASH, _FOCAL, _EXPOSURE_MODE, _WHITE_BALANCE}
)

_MAX_SEGMENTS = 100_000  # of a container, before its EXIF block
_MAX_ENTRIES = 1_000  # of a directory
_MAX_TEXT = 128  # bytes of a string value
_UNIT_BYTES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4}
_UNIT_FORMAT = {1: "B", 3: "H", 4: "L", 6: "b", 7: "B", 8: "h", 9: "l", 11: "f", 12: "d", 13: "L"}


def read_exif(data: bytes) -> Raw:
    """Raw values of every tag of ``tasks.TAGS`` in an image file; None where absent or implausible.

    Ordinal tags are numbers (ISO speed, f-number, seconds, millimetres), the others words of the tag's vocabulary.
    Never raises on any bytes.
    """
    values = _values(data)

    def code(tag: int) -> int | None:
        value = values.get(tag)
        return int(value) if isinstance(value, float) and value.is_integer() and 0 <= value < 2**32 else None

    metering, flash = code(_METERING), code(_FLASH)
    raw: Raw = {
        "iso": _iso(values),
        "aperture": _plausible("aperture", values.get(_F_NUMBER)) or _from_apex("aperture", values),
        "exposure_time": _plausible("exposure_time", values.get(_EXPOSURE_TIME)) or _from_apex("exposure_time", values),
        "focal_length": _plausible("focal_length", values.get(_FOCAL)),
        "make": normalise_make(values.get(_MAKE), values.get(_MODEL)),
        "metering_mode": None if metering is None else METERING_MODES.get(metering, "others"),
        "exposure_mode": EXPOSURE_MODES.get(_or_minus(code(_EXPOSURE_MODE))),
        "white_balance": WHITE_BALANCES.get(_or_minus(code(_WHITE_BALANCE))),
        "exposure_program": EXPOSURE_PROGRAMS.get(_or_minus(code(_PROGRAM))),
        "flash": None if flash is None else ("on" if flash & 1 else "off"),
    }
    return {tag: raw.get(tag) for tag in TAGS}


def read_orientation(data: bytes) -> int:
    """EXIF orientation of an image file, 1 to 8; 1 where absent or out of range. Never raises on any bytes."""
    value = _values(data).get(_ORIENTATION)
    return int(value) if isinstance(value, float) and value in range(1, 9) else 1


def normalise_make(make: object, model: object = None) -> str | None:
    """One of the table's makers for a Make string as cameras write it; None for an empty one.

    Ricoh Imaging writes the same maker into its Pentax and its Ricoh cameras: there the model decides.
    """
    words = _words(make)
    if not words:
        return None
    if words.startswith("ricoh"):
        return "Pentax" if _words(model).startswith("pentax") else "others"
    for opening, name in MAKE_ALIASES:
        if words == opening or words.startswith(opening + " "):
            return name
    return "others"


def labels(raw: Mapping[str, float | str | None], edges: Mapping[str, tuple[float, float]]) -> dict[str, int]:
    """Label of every tag of ``tasks.TAGS``: a level for ordinal tags, a place in the vocabulary for the others.

    A value up to the first of a tag's two ``edges`` has level 0, up to the second 1, above it 2. -1 where the value
    is absent, or an ordinal tag has no edges.
    """
    result = {}
    for tag in ORDINAL_TAGS:
        value = raw.get(tag)
        known = tag in edges and isinstance(value, (int, float)) and math.isfinite(value)
        result[tag] = sum(float(value) > edge for edge in edges[tag]) if known and value is not None else ABSENT
    for tag in CATEGORICAL_TAGS:
        word = raw.get(tag)
        result[tag] = vocabulary(tag).index(word) if isinstance(word, str) and word in vocabulary(tag) else ABSENT
    return {tag: result[tag] for tag in TAGS}


def tertile_edges(values: Mapping[float, int] | Iterable[float]) -> tuple[float, float] | None:
    """The two observed values that cut a sample into thirds as equal as its ties allow; None for no values.

    ``values`` are numbers, or a count for each. With three or more distinct values every level is used. With two,
    they are levels 0 and 2; with one, all is level 0.
    """
    if isinstance(values, Mapping):
        counts = dict(values)
    else:
        counts = {}
        for value in values:
            counts[value] = counts.get(value, 0) + 1
    distinct = sorted(value for value, count in counts.items() if count > 0 and math.isfinite(value))
    if len(distinct) < 3:
        return (distinct[0], distinct[0]) if distinct else None
    total = sum(counts[value] for value in distinct)
    shares, seen = [], 0
    for value in distinct:
        seen += counts[value]
        shares.append(seen / total)
    # Each edge is the value whose cumulative share is nearest its third, with one value left for every level above.
    first = min(range(len(distinct) - 2), key=lambda i: abs(shares[i] - 1 / 3))
    rest = 2 / 3 if shares[first] <= 1 / 2 else (1 + shares[first]) / 2
    second = min(range(first + 1, len(distinct) - 1), key=lambda i: abs(shares[i] - rest))
    return distinct[first], distinct[second]


def _iso(values: Mapping[int, float | str]) -> float | None:
    # 65535 is the end of the two-byte tag: cameras then give the speed in one of the later, wider ones.
    candidates = [values.get(tag) for tag in (_ISO, _ISO_SPEED, _ISO_RECOMMENDED, _ISO_OUTPUT)]
    usable = (_plausible("iso", value) for value in candidates if value != 65535.0)
    return next((value for value in usable if value is not None), None)


def _from_apex(tag: str, values: Mapping[int, float | str]) -> float | None:
    apex = values.get(_APERTURE_APEX if tag == "aperture" else _SHUTTER_APEX)
    if not isinstance(apex, float) or not abs(apex) < 40:
        return None
    return _plausible(tag, 2 ** (apex / 2) if tag == "aperture" else 2**-apex)


def _plausible(tag: str, value: float | str | None) -> float | None:
    low, high = PLAUSIBLE[tag]
    return value if isinstance(value, float) and low <= value <= high else None


def _or_minus(value: int | None) -> int:
    return -1 if value is None else value


def _words(text: object) -> str:
    """Lower-case letters and digits, every run of anything else one space."""
    if not isinstance(text, str):
        return ""
    return " ".join("".join(c if c.isalnum() else " " for c in text.lower()).split())


def _values(data: bytes) -> dict[int, float | str]:
    """The wanted tags of an image file: numbers as floats, text stripped."""
    try:
        block = _exif_block(data)
        if block is None:
            return {}
        order = {b"II": "<", b"MM": ">"}.get(bytes(block[:2]))
        if order is None:
            return {}
        main = _directory(block, struct.unpack_from(order + "L", block, 4)[0], order)
        pointer = main.get(_EXIF_IFD)
        # Some writers put the camera's tags into the main directory; the EXIF directory wins.
        return main | (_directory(block, int(pointer), order) if isinstance(pointer, float) else {})
    except (struct.error, ValueError, OverflowError):
        return {}


def _exif_block(data: bytes) -> memoryview | None:
    """The TIFF-structured block that holds the EXIF of a JPEG, PNG, WebP or TIFF file."""
    view = memoryview(data)
    if data[:2] == b"\xff\xd8":
        return _jpeg_block(view)
    if data[:8] == b"\x89PNG\r\n\x1a\n":
        return _chunk(view, 8, ">", b"eXIf", png=True)
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return _chunk(view, 12, "<", b"EXIF", png=False)
    return view if data[:4] in (b"II*\0", b"MM\0*") else None


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
            payload = view[position + 8 : position + 8 + size]
            return payload[6:] if bytes(payload[:6]) == b"Exif\0\0" else payload
        position += 8 + size + (4 if png else size % 2)
    return None


def _directory(block: memoryview, offset: int, order: str) -> dict[int, float | str]:
    """The wanted entries of one directory; the first of a repeated tag counts."""
    if offset + 2 > len(block):
        return {}
    count = min(struct.unpack_from(order + "H", block, offset)[0], _MAX_ENTRIES)
    found: dict[int, float | str] = {}
    for entry in range(offset + 2, offset + 2 + 12 * count, 12):
        if entry + 12 > len(block):
            break
        tag, kind, items = struct.unpack_from(order + "HHL", block, entry)
        if tag in _WANTED and tag not in found and kind in _UNIT_BYTES and items:
            value = _value(block, entry + 8, kind, items, order)
            if value is not None:
                found[tag] = value
    return found


def _value(block: memoryview, field: int, kind: int, items: int, order: str) -> float | str | None:
    """First item of an entry as a float, or its text; None when it lies outside the block or is not finite."""
    size = _UNIT_BYTES[kind] * items
    start = field if size <= 4 else struct.unpack_from(order + "L", block, field)[0]
    if kind == 2:
        text = bytes(block[start : start + min(size, _MAX_TEXT)]).split(b"\0")[0]
        return _number_or_text(text.decode("utf-8", "replace").strip())
    if start + _UNIT_BYTES[kind] > len(block):
        return None
    if kind in (5, 10):
        above, below = struct.unpack_from(order + ("LL" if kind == 5 else "ll"), block, start)
        number = above / below if below else math.nan
    else:
        number = float(struct.unpack_from(order + _UNIT_FORMAT[kind], block, start)[0])
    return number if math.isfinite(number) else None


def _number_or_text(text: str) -> float | str | None:
    """Numbers written as text are numbers; but for plain digits and a point, nothing is guessed."""
    if text.replace(".", "", 1).isdecimal() and text.isascii():
        return float(text)
    return text or None
