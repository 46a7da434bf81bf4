"""``docs/exif.md`` from the tables: python -m blades_dist.data.exif_document > docs/exif.md"""

from collections.abc import Iterable, Sequence

from blades_dist.data.exif_tables import (
    CODES,
    FIELD_NAMES,
    FOCAL_LENGTH_35MM,
    ISO_OVERFLOW,
    MAKE_ALIASES,
    MAKE_BY_MODEL,
    OTHER_MAKE,
    OTHER_METERING,
    PLAUSIBLE,
    SOURCES,
    UNITS,
)
from blades_dist.tasks import TAGS, vocabulary

_OPENING = """# EXIF: what is read and what it means

Printed from `blades_dist/data/exif_tables.py`; a test holds the two together. After a change there:

    python -m blades_dist.data.exif_document > docs/exif.md

EXIF is read from JPEG, PNG, WebP and TIFF files, and from HEIF where `pillow_heif` is installed. The reader walks two
directories and the fields below, takes the first value of each and checks every offset, so that a hostile file costs no
more than an honest one. It never raises: what it cannot read is absent. `python jobs/ingest.py --inspect FILE` says for
one file where each tag comes from, or why it is absent.
"""

_RULES = f"""## Rules

- The first field of a tag that holds a usable value counts; later ones only stand in for it.
- A value outside its plausible range, or a code that is not listed, is absent (label -1), never clipped.
- ApertureValue A and ShutterSpeedValue T are APEX: f-number 2^(A/2), seconds 2^-T.
- An ISO of {ISO_OVERFLOW} is the end of the two-byte field and stands for "see the others".
- {FIELD_NAMES[FOCAL_LENGTH_35MM]} depends on the sensor's size and is never taken for a focal length; `--inspect`
  shows it.
- Any numeric type is read for a number, signed or not, and so is text of plain digits (`400`, `2.8`, `1/125`). A
  fraction over zero, infinity and not-a-number are absent.
- Fields of the EXIF directory win over the same ones in the main directory, where some writers put them.
- A byte order that contradicts the magic number or a directory's entry count is corrected; anything else is read as
  declared.
- MakerNote is not read: its layout belongs to each maker.
"""


def document() -> str:
    """The page as Markdown."""
    parts = [
        _OPENING,
        "## Tags\n\n" + _table(("tag", "from", "unit", "plausible"), (_tag_row(tag) for tag in TAGS)),
        _RULES,
        *(_codes(tag) for tag in CODES),
        "### flash\n\nBit 0 of Flash: 0 off, 1 on; the other bits (return light, mode, red-eye) are not read.\n",
        _makers(),
    ]
    return "\n".join(parts)


def _tag_row(tag: str) -> Sequence[str]:
    fields = ", else ".join(f"{FIELD_NAMES[field]} (0x{field:04X})" for field in SOURCES[tag])
    if tag not in PLAUSIBLE:
        return tag, fields, f"{len(vocabulary(tag))} words", "see below"
    low, high = PLAUSIBLE[tag]
    return tag, fields, UNITS[tag], f"{low:g} to {high:.0f}"


def _codes(tag: str) -> str:
    rows = [(str(code), word) for code, word in CODES[tag].items()]
    rows.append(("any other", OTHER_METERING if tag == "metering_mode" else "absent"))
    unreachable = [f"`{word}`" for word in vocabulary(tag) if word not in dict(rows).values()]
    told = f"\nIn the vocabulary without an EXIF code: {', '.join(unreachable)}.\n" if unreachable else ""
    return f"### {tag}\n\n" + _table(("code", "word"), rows) + told


def _makers() -> str:
    opening = (
        "### make\n\nCase and punctuation are ignored. The first row whose words open the Make wins; any other name is "
        f"`{OTHER_MAKE}`,\nan empty one is absent.\n\n"
    )
    rows = [(f"{make} (and Model: {model})", maker) for make, model, maker in MAKE_BY_MODEL]
    return opening + _table(("Make opens with", "maker"), [*rows, *MAKE_ALIASES])


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


if __name__ == "__main__":
    print(document(), end="")
