"""``docs/exif.md`` from the table of tags: python -m blades_dist.data.exif_document > docs/exif.md"""

from collections.abc import Iterable, Iterator, Sequence

from blades_dist.data.exif_reader import FIELD_NAMES, FOCAL_LENGTH_35MM
from blades_dist.tags import EXIF_TAGS, Codes, ExifTag, Names, Quantity

_OPENING = """# EXIF: what is read and what it means

Printed from `blades_dist/tags.py`, the table of tags; a test holds the two together. After a change there:

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
%s- {FIELD_NAMES[FOCAL_LENGTH_35MM]} depends on the sensor's size and is never taken for a focal length; `--inspect`
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
    head = ("tag", "in words", "from", "unit", "plausible")
    parts = [
        _OPENING,
        "## Tags\n\n" + _table(head, (_tag_row(tag) for tag in EXIF_TAGS)),
        _RULES % "".join(_overflows()),
        *(_codes(tag, tag.values) for tag in EXIF_TAGS if isinstance(tag.values, Codes)),
        *(_names(tag, tag.values) for tag in EXIF_TAGS if isinstance(tag.values, Names)),
    ]
    return "\n".join(parts)


def _tag_row(tag: ExifTag) -> Sequence[str]:
    fields = ", else ".join(f"{field.name} (0x{field.number:04X})" for field in tag.fields)
    if isinstance(tag.values, Quantity):
        how = tag.values.unit, f"{tag.values.low:g} to {tag.values.high:.0f}"
    else:
        how = f"{len(tag.classes)} classes", "see below"
    return tag.name, tag.words, fields, *how


def _overflows() -> Iterator[str]:
    for tag in EXIF_TAGS:
        if isinstance(tag.values, Quantity) and tag.values.overflow is not None:
            yield f'- {tag.values.overflow:g} in a field of {tag.name} stands for "too large for it, see the others".\n'


def _codes(tag: ExifTag, how: Codes) -> str:
    rows = [(str(code), name) for code, name in how.classes.items()]
    if len(how.classes) <= how.bits:
        rows.append(("any other", how.other or "absent"))
    unreachable = [f"`{name}`" for name in tag.classes if name not in dict(rows).values()]
    told = f"\nClasses without an EXIF code: {', '.join(unreachable)}.\n" if unreachable else ""
    told += f"\nThe code is {tag.fields[0].name} & {how.bits}; not read: {how.ignored}.\n" if how.ignored else ""
    return f"### {tag.name}\n\n" + _table(("code", "class"), rows) + told


def _names(tag: ExifTag, how: Names) -> str:
    field = tag.fields[0].name
    opening = (
        f"### {tag.name}\n\nCase and punctuation are ignored. The first row whose words open {field} wins; any other "
        f"name is `{how.other}`,\nan empty one is absent.\n\n"
    )
    rows = [(f"{words} (and {how.qualifier.name}: {beside})", name) for words, beside, name in how.qualified]
    return opening + _table((f"{field} opens with", "class"), [*rows, *how.openings])


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


if __name__ == "__main__":
    print(document(), end="")
