"""Hypothesis strategies for EXIF that no camera wrote, and what the reader owes on all of it."""

import math
import struct

import piexif
from hypothesis import strategies as st

from blades_dist.data import exif
from blades_dist.data.exif_reader import EXIF_DIRECTORY, FIELD_NAMES, read_fields
from blades_dist.tags import EXIF_TAGS, Quantity
from blades_dist.tasks import ORDINAL_TAGS, TAGS, vocabulary

_E = piexif.ExifIFD
VALID = piexif.dump(
    {
        "0th": {piexif.ImageIFD.Make: b"RICOH", piexif.ImageIFD.Model: b"PENTAX K-1", piexif.ImageIFD.Orientation: 6},
        "Exif": {
            _E.ISOSpeedRatings: 65535, _E.ISOSpeed: 102400, _E.FNumber: (28, 10), _E.ApertureValue: (297, 100),
            _E.ExposureTime: (1, 125), _E.ShutterSpeedValue: (697, 100), _E.FocalLength: (50, 1),
            _E.FocalLengthIn35mmFilm: 75, _E.MeteringMode: 5, _E.ExposureMode: 1, _E.WhiteBalance: 1,
            _E.ExposureProgram: 3, _E.Flash: 25,
        },
    }
)[6:]  # fmt: skip

_numbers = st.one_of(st.integers(0, 2**32 - 1), st.sampled_from([0, 1, 2, 8, 26, 100, 65535, 2**31, 2**32 - 1]))
_fields = st.one_of(st.sampled_from(sorted(FIELD_NAMES)), st.integers(0, 65535))
_kinds = st.one_of(st.integers(0, 14), st.sampled_from([129, 255, 65535]))
_entries = st.lists(st.tuples(_fields, _kinds, st.one_of(st.integers(0, 9), _numbers), _numbers), max_size=8)
_texts = st.sampled_from([b"Canon\0", b"1/125\0", b"9" * 40, b"\xff\xfe\0", b" \0"])
_values = st.one_of(st.binary(max_size=16), _texts, st.builds(struct.pack, st.just("<LL"), _numbers, _numbers))


@st.composite
def tiff_blocks(draw: st.DrawFn) -> bytes:
    """A main directory and an EXIF directory of random entries, whose values may lie anywhere."""
    order, inner = draw(st.sampled_from("<>")), draw(st.sampled_from("<>"))
    main, camera = draw(_entries), draw(_entries)
    begin = 8 + 2 + 12 * (len(main) + 1) + 4
    pointer = draw(st.one_of(st.just(begin), st.just(begin), _numbers))
    main.insert(draw(st.integers(0, len(main))), (EXIF_DIRECTORY, 4, 1, pointer))
    block = draw(st.sampled_from([b"II", b"MM", b"XX"]))[:2] + struct.pack(
        order + "HL", 42, draw(st.just(8) | _numbers)
    )
    for entries, own in ((main, order), (camera, inner)):
        count = draw(st.one_of(st.just(len(entries)), st.integers(0, 65535)))
        block += struct.pack(own + "H", count) + b"".join(struct.pack(own + "HHLL", *entry) for entry in entries)
        block += struct.pack(own + "L", draw(st.just(0) | _numbers))
    return block + b"".join(draw(st.lists(_values, max_size=4)))


@st.composite
def damaged(draw: st.DrawFn, block: bytes) -> bytes:
    """A valid block with bytes changed, cut out or repeated."""
    data = bytearray(block)
    for _ in range(draw(st.integers(1, 8))):
        at = draw(st.integers(0, max(0, len(data) - 1)))
        change = draw(st.sampled_from(["byte", "word", "cut", "repeat"]))
        if change == "byte":
            data[at : at + 1] = bytes([draw(st.integers(0, 255))])
        elif change == "word":
            data[at : at + 4] = struct.pack("<L", draw(_numbers))
        elif change == "cut":
            del data[at : at + draw(st.integers(1, 12))]
        else:
            data[at:at] = data[at : at + draw(st.integers(1, 24))]
    return bytes(data)


@st.composite
def files(draw: st.DrawFn) -> bytes:
    """A block, of one of three kinds, in one of the containers, whose sizes may lie too."""
    block = draw(st.one_of(tiff_blocks(), damaged(VALID), st.binary(max_size=200)))
    size = draw(st.one_of(st.just(len(block) + 8), st.integers(0, 65535)))
    container = draw(st.sampled_from(["jpeg", "png", "webp", "tiff", "bare"]))
    if container == "jpeg":
        before = draw(st.sampled_from([b"", b"\xff\xe0\0\x04ab", b"\xff\xff", b"\xff\xe1\0\0"]))
        return b"\xff\xd8" + before + b"\xff\xe1" + struct.pack(">H", size) + b"Exif\0\0" + block + b"\xff\xd9"
    if container == "png":
        before = draw(st.sampled_from([b"", struct.pack(">L", 2) + b"IHDRab0000", struct.pack(">L", 2**32 - 1) + b"x"]))
        return b"\x89PNG\r\n\x1a\n" + before + struct.pack(">L", size) + b"eXIf" + block
    if container == "webp":
        return b"RIFF\0\0\0\0WEBP" + b"EXIF" + struct.pack("<L", size) + block
    return block if container == "bare" else draw(st.sampled_from([b"II*\0", b"MM\0*"])) + block


def check_reader(data: bytes) -> None:
    """The reader's promise on any bytes: every tag, each absent, plausible or a word of its vocabulary."""
    raw = exif.read_exif(data)
    assert tuple(raw) == TAGS
    for tag in EXIF_TAGS:
        value, how = raw[tag.name], tag.values
        if isinstance(how, Quantity):
            assert value is None or (isinstance(value, float) and how.low <= value <= how.high)
        else:
            assert value is None or value in tag.classes
    assert exif.read_orientation(data) in range(1, 9)
    fields = read_fields(data)
    assert all(math.isfinite(v) if isinstance(v, float) else 0 < len(v) <= 128 for v in fields.values())
    labels = exif.labels(raw, {tag: (1.0, 2.0) for tag in ORDINAL_TAGS})
    assert all(-1 <= label < len(vocabulary(tag)) for tag, label in labels.items())
