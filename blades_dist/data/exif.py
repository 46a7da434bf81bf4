"""EXIF of an image file: what a photo's tags are, why one is absent, and the labels made of them. No Ray here.

``exif_reader`` finds the stored fields in a file, the rows of ``tags.EXIF_TAGS`` say what they mean.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from blades_dist.data import heif
from blades_dist.data.exif_reader import ORIENTATION, Fields, read_fields
from blades_dist.tags import EXIF_TAGS, Codes, ExifField, ExifTag, Names, Quantity
from blades_dist.tasks import ABSENT, CATEGORICAL_TAGS, ORDINAL_TAGS, TAGS, vocabulary

MAX_APEX = 40.0  # 2 to the 40 is beyond every plausible range

Raw = dict[str, float | str | None]


@dataclass(frozen=True)
class Reading:
    """One tag as understood: its ``value`` in the unit of its tag or one of its classes, the number of the
    EXIF ``field`` it was taken from and what is ``stored`` there. Where ``value`` is None, ``why`` says so; field and
    stored value are then those of the first field that holds something unusable, if any does."""

    value: float | str | None
    field: int | None = None
    stored: float | str | None = None
    why: str = ""


def read_exif(data: bytes) -> Raw:
    """Raw values of every tag of ``tasks.TAGS`` in an image file; None where absent or implausible.

    Ordinal tags are numbers (ISO speed, f-number, seconds, millimetres), the others words of the tag's vocabulary.
    Never raises on any bytes.
    """
    return interpret(read_fields(data))


def interpret(values: Fields) -> Raw:
    """Raw values of every tag of ``tasks.TAGS`` from EXIF fields by number, wherever they were stored."""
    return {tag: reading.value for tag, reading in explain(values).items()}


def explain(values: Fields) -> dict[str, Reading]:
    """``interpret`` with the reasons: where each tag of ``tasks.TAGS`` comes from, or why it is absent."""
    return {tag.name: _reading(tag, values) for tag in EXIF_TAGS}


def read_orientation(data: bytes) -> int:
    """EXIF orientation to be applied to an image file's pixels, 1 to 8; 1 where absent or out of range, and for HEIF,
    whose decoder turns the picture itself. Never raises on any bytes."""
    value = None if heif.is_heif(data) else number(read_fields(data).get(ORIENTATION))
    return int(value) if value is not None and value in range(1, 9) else 1


def number(value: object) -> float | None:
    """A stored value as a finite number; text counts when it is plain digits, with a point or as a fraction."""
    if isinstance(value, str):
        above, slash, below = value.strip().partition("/")
        parts = [_decimal(above), _decimal(below) if slash else 1.0]
        if parts[0] is None or not parts[1]:
            return None
        value = parts[0] / parts[1]
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    try:
        result = float(value)
    except OverflowError:
        return None
    return result if math.isfinite(result) else None


def class_of_name(names: Names, name: object, qualifier: object = None) -> str | None:
    """Class of a name as cameras write it, a maker's say; None for an empty one.

    ``qualifier``, the model say, decides where one name stands for several classes (Ricoh Imaging's Pentax).
    """
    if not (words := _words(name)):
        return None
    for opening, qualifier_opening, found in names.qualified:
        if words.startswith(opening) and _words(qualifier).startswith(qualifier_opening):
            return found
    for opening, found in names.openings:
        if words == opening or words.startswith(opening + " "):
            return found
    return names.other


def labels(raw: Mapping[str, float | str | None], edges: Mapping[str, tuple[float, float]]) -> dict[str, int]:
    """Label of every tag of ``tasks.TAGS``: a level for ordinal tags, an index of the tag's classes for the others.

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


def _reading(tag: ExifTag, values: Fields) -> Reading:
    refused: Reading | None = None
    for field in tag.fields:
        if field.number in values:
            value, why = _value(tag.values, field, values)
            if value is not None:
                return Reading(value, field.number, values[field.number])
            refused = refused or Reading(None, field.number, values[field.number], why)
    return refused or Reading(None, why="no " + " or ".join(field.name for field in tag.fields))


def _value(how: Quantity | Codes | Names, field: ExifField, values: Fields) -> tuple[float | str | None, str]:
    """Value of a field, or None and why not."""
    stored = values[field.number]
    if isinstance(how, Names):
        return class_of_name(how, stored, values.get(how.qualifier.number)), "not a name"
    found = number(stored)
    if found is None:
        return None, "not a number"
    return _measured(how, field, found) if isinstance(how, Quantity) else _class_of_code(how, found)


def _measured(how: Quantity, field: ExifField, value: float) -> tuple[float | None, str]:
    if value == how.overflow:
        return None, f"{how.overflow:g} stands for a value that does not fit"
    if field.apex is not None:
        if not abs(value) < MAX_APEX:
            return None, "implausible"
        value = field.apex(value)
    inside = how.low <= value <= how.high
    return (value, "") if inside else (None, f"implausible: not within {how.low:g} to {how.high:g}")


def _class_of_code(how: Codes, value: float) -> tuple[str | None, str]:
    if not (value.is_integer() and 0 <= value < 2**32):
        return None, "not a code"
    return how.classes.get(int(value) & how.bits, how.other), "a code without meaning here"


def _decimal(text: str) -> float | None:
    text = text.strip()
    plain = text.isascii() and text.replace(".", "", 1).isdecimal() and len(text) <= 32
    return float(text) if plain else None


def _words(text: object) -> str:
    """Lower-case letters and digits, every run of anything else one space."""
    if not isinstance(text, str):
        return ""
    return " ".join("".join(c if c.isalnum() else " " for c in text.lower()).split())
