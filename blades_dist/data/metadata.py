"""EXIF that was exported to JSON: exiftool's ``-j`` and the forms in which Flickr and YFCC collections keep it.

Names and values are turned into EXIF fields by number, which ``exif.interpret`` understands as it does those of a file.
No Ray here.
"""

import json
import math
import re
from collections.abc import Iterator
from typing import Any

from blades_dist.data.decode import Rejected
from blades_dist.data.exif import Raw, interpret
from blades_dist.data.exif_reader import FIELD_NAMES, TEXT_FIELDS
from blades_dist.tags import EXIF_TAGS, Codes, ExifField, ExifTag, Names, Quantity, plain

MAX_JSON_BYTES = 2**22  # exiftool copies binary previews into its output when asked to
_MAX_TEXT = 200  # characters of a value that are looked at
_MAX_NESTING = 4  # groups within groups

# Groups of exiftool (families 0 and 1) and Flickr's tag spaces that are the camera's EXIF, with their ranks. Those of
# makers' notes say other things under the same names, IFD1 is the thumbnail.
_GROUPS = {
    "exif": 0,
    "exififd": 0,
    "ifd0": 0,
    "subifd": 0,
    "tiff": 0,
    "": 10,
    "xmp": 20,
    "xmp-exif": 20,
    "xmp-exifex": 20,
    "xmp-tiff": 20,
    "composite": 30,
}


def _exported(fields: list[ExifField]) -> dict[str, tuple[int, int]]:
    """Name in exported JSON to (number of the field, rank among its names)."""
    named = {plain(field.name): (field.number, 0) for field in fields if field.apex is None}
    return named | {name: (field.number, rank) for field in fields for name, rank in field.exported_as.items()}


_UNITS = [word for tag in EXIF_TAGS if isinstance(tag.values, Quantity) for word in tag.values.abbreviated]
# A number or fraction, after "f/" or "F", before a known unit or what a note in brackets adds.
_NUMBER = re.compile(
    r"\s*(?:[fF]\s*/?\s*)?(?P<above>-?\d{1,15}(?:\.\d{0,15})?|-?\.\d{1,15})(?:\s*/\s*(?P<below>\d{1,15}(?:\.\d{0,15})?))?"
    rf"\s*(?:(?:{'|'.join(_UNITS)})\b\.?)?\s*(?:[(,;].*)?$",
    re.ASCII | re.DOTALL | re.IGNORECASE,
)
_FIELDS = [field for tag in EXIF_TAGS for field in tag.fields]
_FIELDS += [tag.values.qualifier for tag in EXIF_TAGS if isinstance(tag.values, Names)]
_EXPORTED = _exported(_FIELDS)
_REPEATED = frozenset(field.number for field in _FIELDS if field.repeated)
_TAG_BY_CODE_FIELD = {field.number: tag for tag in EXIF_TAGS if isinstance(tag.values, Codes) for field in tag.fields}


def exif_of_json(data: bytes) -> Raw | None:
    """Raw values of every tag of ``tasks.TAGS`` (None where the JSON does not say), or None when it is no EXIF at all.

    Understood are, with values numeric or as people read them ("1/250", "f/2.8", "50.0 mm", "Multi-segment"):

    - exiftool: ``[{"EXIF:FNumber": 2.8, ...}]`` of one file, the object alone, or with groups as nested objects;
    - Flickr: ``{"photo": {"exif": [{"tagspace", "tag", "label", "raw": {"_content": ...}, "clean": ...}]}}``, or that
      list alone;
    - flat: ``{"FNumber": "f/2.8", "Exposure Time": "1/60 sec"}``.

    A name that comes several times counts once: EXIF groups before names without a group, these before XMP. Maker
    notes and thumbnails do not count. ``ShutterSpeedValue`` and ``ApertureValue`` are taken as seconds and f-number, as
    exiftool writes them, and as APEX where a field is named by its number.

    Raises:
        Rejected: ``bad_sidecar``, when it is no JSON, too large or too deep, or of several files.
    """
    try:
        if len(data) > MAX_JSON_BYTES:
            raise ValueError(f"{len(data)} bytes; the limit is {MAX_JSON_BYTES}")
        content = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise Rejected("bad_sidecar", f"metadata: {error or 'too deep'}"[:200]) from None
    best: dict[int, tuple[int, Any]] = {}
    for group, name, value in _named(content):
        found = _field(group, name)
        if found is not None:
            field, rank = found
            understood = _understood(field, value)
            if understood is not None and (field not in best or rank < best[field][0]):
                best[field] = (rank, understood)
    if not best:
        return None
    numbers = {field: value for field, (_, value) in best.items() if field in TEXT_FIELDS or isinstance(value, float)}
    raw = interpret(numbers)
    # Words of a vocabulary that no EXIF code stands for ("evaluative") are kept as they are.
    raw |= {_TAG_BY_CODE_FIELD[field].name: value for field, (_, value) in best.items() if field not in numbers}
    return raw


def _named(content: Any) -> Iterator[tuple[str, str, Any]]:
    """(group, name, value) of everything that may be a tag; the group in lower case, "" where none is given."""
    if isinstance(content, dict) and isinstance(content.get("photo"), dict):
        content = content["photo"]
    if isinstance(content, dict) and isinstance(content.get("exif"), list):
        content = content["exif"]
    if isinstance(content, list):
        items = [item for item in content if isinstance(item, dict)]
        if any("tag" in item or "label" in item for item in items):
            yield from (named for item in items for named in _of_flickr(item))
            return
        if len(items) > 1:
            raise Rejected("bad_sidecar", f"metadata: a list of {len(items)} objects; one, of one photo, is expected")
        content = items[0] if items else None
    if isinstance(content, dict):
        yield from _of_object(content, "", _MAX_NESTING)


def _of_flickr(item: dict[str, Any]) -> Iterator[tuple[str, str, Any]]:
    group = str(item.get("tagspace") or "")[:_MAX_TEXT].lower()
    for form in ("raw", "clean"):
        value = item.get(form)
        value = value.get("_content") if isinstance(value, dict) else value
        for name in ("tag", "label"):
            if value is not None and isinstance(item.get(name), (str, int)):
                yield group, str(item[name])[:_MAX_TEXT], value


def _of_object(content: dict[str, Any], group: str, deeper: int) -> Iterator[tuple[str, str, Any]]:
    for key, value in content.items():
        prefix, _, name = key[:_MAX_TEXT].rpartition(":")
        own = prefix.partition(":")[0].lower() or group
        if isinstance(value, dict):
            if deeper:
                yield from _of_object(value, key[:_MAX_TEXT].lower(), deeper - 1)
        else:
            yield own, name, value


def _field(group: str, name: str) -> tuple[int, int] | None:
    """EXIF field of a name and its rank among others for the same field, lower is better; None: not one to be used."""
    if group not in _GROUPS:
        return None
    number = int(name) if name.isascii() and name.isdecimal() and len(name) < 6 else None
    if number is not None:  # the oldest Flickr exports and raw dumps
        return (number, _GROUPS[group]) if number in FIELD_NAMES else None
    found = _EXPORTED.get(plain(name))
    return None if found is None else (found[0], _GROUPS[group] + found[1])


def _understood(field: int, value: Any) -> float | str | None:
    """A value as a number (codes too), a maker's or model's name, or a word of the vocabulary; None: no use."""
    if field in _REPEATED and isinstance(value, list) and value:
        value = value[0]  # elsewhere a list may be a fraction
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        return None
    if field in TEXT_FIELDS:
        return str(value)[:_MAX_TEXT].strip() or None
    number = _number(value)
    if number is not None or not isinstance(value, str):
        return number
    tag = _TAG_BY_CODE_FIELD.get(field)
    return None if tag is None else _class_or_code(tag, plain(value[:_MAX_TEXT]))


def _class_or_code(tag: ExifTag, word: str) -> float | str | None:
    """The code that a word in ``plain`` form stands for, or the class that it is where no code says so."""
    written_as = tag.values.written_as if isinstance(tag.values, Codes) else {}
    for pattern, code in written_as.items():
        if re.fullmatch(pattern, word):
            return float(code)
    return next((name for name in tag.classes if plain(name) == word), None)


def _number(value: str | int | float) -> float | None:
    """Number at the start of a value, alone or with a unit ("1/60 sec", "f/2.8", "50.0 mm (35 mm equivalent: ...)")."""
    try:
        if isinstance(value, str):
            found = _NUMBER.match(value[:_MAX_TEXT])
            if found is None:
                return None
            result = float(found["above"]) / float(found["below"] or 1)
        else:
            result = float(value)
    except (OverflowError, ZeroDivisionError, ValueError):
        return None
    return result if math.isfinite(result) else None
