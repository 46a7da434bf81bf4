"""EXIF that was exported to JSON: exiftool's ``-j`` and the forms in which Flickr and YFCC collections keep it.

Names and values are turned into EXIF fields by number, which ``exif.interpret`` understands as it does those of a file.
No Ray here.
"""

import json
import math
import re
from collections.abc import Iterator
from typing import Any

from blades_dist.data import exif_tables as table
from blades_dist.data.decode import Rejected
from blades_dist.data.exif import Raw, interpret
from blades_dist.data.metadata_words import FIELDS, GROUPS, NUMBER_FORM, WORDS, letters
from blades_dist.tasks import CATEGORICAL_TAGS, vocabulary

MAX_JSON_BYTES = 2**22  # exiftool copies binary previews into its output when asked to
_MAX_TEXT = 200  # characters of a value that are looked at
_MAX_NESTING = 4  # groups within groups
_CATEGORICAL = {field: tag for tag in CATEGORICAL_TAGS for field in table.SOURCES[tag]}
_KEPT_AS_TEXT = (table.MAKE, table.MODEL)


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
    numbers = {field: value for field, (_, value) in best.items() if field in _KEPT_AS_TEXT or isinstance(value, float)}
    raw = interpret(numbers)
    # Words of a vocabulary that no EXIF code stands for ("evaluative") are kept as they are.
    raw |= {_CATEGORICAL[field]: value for field, (_, value) in best.items() if field not in numbers}
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
    if group not in GROUPS:
        return None
    number = int(name) if name.isascii() and name.isdecimal() and len(name) < 6 else None
    if number is not None:  # the oldest Flickr exports and raw dumps
        return (number, GROUPS[group]) if number in table.FIELD_NAMES else None
    found = FIELDS.get(letters(name))
    return None if found is None else (found[0], GROUPS[group] + found[1])


def _understood(field: int, value: Any) -> float | str | None:
    """A value as a number (codes too), a maker's or model's name, or a word of the vocabulary; None: no use."""
    if field == table.ISO and isinstance(value, list) and value:
        value = value[0]  # EXIF allows several speeds; elsewhere a list may be a fraction
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        return None
    if field in _KEPT_AS_TEXT:
        return str(value)[:_MAX_TEXT].strip() or None
    number = _number(value)
    if number is not None or not isinstance(value, str):
        return number
    word = letters(value[:_MAX_TEXT])
    if field == table.FLASH:
        return _flash(word)
    tag = _CATEGORICAL.get(field)
    if tag is None:
        return None
    code = WORDS[tag].get(word)
    if code is not None:
        return float(code)
    return next((entry for entry in vocabulary(tag) if letters(entry) == word), None)


def _number(value: str | int | float) -> float | None:
    """Number at the start of a value, alone or with a unit ("1/60 sec", "f/2.8", "50.0 mm (35 mm equivalent: ...)")."""
    try:
        if isinstance(value, str):
            found = NUMBER_FORM.match(value[:_MAX_TEXT])
            if found is None:
                return None
            result = float(found["above"]) / float(found["below"] or 1)
        else:
            result = float(value)
    except (OverflowError, ZeroDivisionError, ValueError):
        return None
    return result if math.isfinite(result) else None


def _flash(word: str) -> float | None:
    """EXIF's flash code as far as bit 0, "the flash fired"."""
    if re.search("notfire|noflash|^off", word):
        return 0.0
    return 1.0 if "fired" in word or word in ("on", "yes", "true") else None
