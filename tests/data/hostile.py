"""Several hundred files that no camera wrote, made from nothing but code, the same ones every time.

``write`` says for each what may become of it when it is ingested without faces (``min_tags`` 1, locator haar): the set
of reasons allowed. A file that is merely odd must be read, so it ends as ``no_face``: its picture holds none.
"""

import struct
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from blades_dist.testing.hostile_bytes import (
    RANDOM_SEED,
    claimed_jpeg,
    claimed_tiff,
    claimed_webp,
    exif_block,
    jpeg_markers,
    picture,
    png,
    png_chunks,
    profile_bomb,
    saved,
    text_bomb,
    webp_chunks,
    with_exif,
)

Allowed = set[str]
READ = {"no_face"}  # it was decoded; there is no face in it
DAMAGED = {"truncated", "unreadable"}
ANY_DAMAGE = DAMAGED | READ | {"too_large", "unsupported", "no_usable_tag", "empty"}  # depends on where it was hit
CLAIMED = 30_000  # pixels a side that bombs claim


def write(folder: Path) -> dict[str, Allowed]:
    """Writes all files; their names, and the reasons that each may be quarantined for."""
    folder.mkdir(parents=True, exist_ok=True)
    expected: dict[str, Allowed] = {}
    for group in (_odd, _wrong_names, _bombs, _truncated, _flipped, _exif, _orientations):
        for name, data, allowed in group():
            assert name not in expected
            (folder / name).write_bytes(data)
            expected[name] = allowed
    return expected


Files = Iterator[tuple[str, bytes, Allowed]]


def _odd() -> Files:
    rgb = Image.fromarray(picture())
    gray, deep = rgb.convert("L"), Image.fromarray(picture()[..., 0].astype(np.uint16) * 257)
    yield "cmyk.jpg", saved(rgb.convert("CMYK"), "JPEG"), READ
    yield "gray.jpg", saved(gray, "JPEG"), READ
    yield "progressive.jpg", saved(rgb, "JPEG", progressive=True), READ
    yield "444.jpg", saved(rgb, "JPEG", subsampling=0, quality=100), READ
    yield "restart.jpg", saved(rgb, "JPEG", restart_marker_blocks=1), READ
    yield "arithmetic.jpg", saved(rgb, "JPEG").replace(b"\xff\xc0\0\x11", b"\xff\xc9\0\x11"), DAMAGED | READ
    yield "lossless.jpg", saved(rgb, "JPEG").replace(b"\xff\xc0\0\x11", b"\xff\xc3\0\x11"), DAMAGED
    yield "comment.jpg", saved(rgb, "JPEG", comment=b"x" * 60_000), READ
    yield "junk_profile.jpg", saved(rgb, "JPEG", icc_profile=bytes(range(256)) * 700), READ
    small = saved(rgb.resize((64, 64)), "JPEG", b"")
    with_thumbnail = saved(rgb, "JPEG", exif_block(thumbnail=small))
    yield "thumbnail.jpg", with_thumbnail, READ
    yield "thumbnail_junk.jpg", with_thumbnail.replace(small[200:400], b"\xff\xd9junk!!!" * 22 + b"ab", 1), READ
    yield "several.jpg", saved(rgb, "MPO", save_all=True, append_images=[rgb.rotate(90), gray.convert("RGB")]), READ
    yield "trailing.jpg", saved(rgb, "JPEG") + b"and more" * 999, READ
    yield "one_pixel.jpg", saved(rgb.resize((1, 1)), "JPEG"), READ
    yield "thin.jpg", saved(rgb.resize((60_000, 1)), "JPEG"), READ
    yield "tall.png", saved(rgb.resize((1, 30_000)), "PNG"), READ
    for name, image in {
        "palette": rgb.quantize(16),
        "bilevel": gray.convert("1"),
        "gray": gray,
        "gray_alpha": rgb.convert("LA"),
        "alpha": rgb.convert("RGBA"),
        "deep": deep,
    }.items():
        yield f"{name}.png", saved(image, "PNG"), READ
        yield f"{name}.tif", saved(image, "TIFF"), READ
    yield "transparent_palette.png", saved(rgb.quantize(16), "PNG", transparency=3), READ
    yield "transparent_colour.png", saved(rgb, "PNG", transparency=(1, 2, 3)), READ
    yield "junk_profile.png", saved(rgb, "PNG", icc_profile=b"junk"), READ
    yield "cmyk.tif", saved(rgb.convert("CMYK"), "TIFF"), READ
    yield "lab.tif", saved(Image.new("LAB", (96, 96)), "TIFF"), {"unsupported"}
    yield "real.tif", saved(Image.new("F", (96, 96)), "TIFF"), {"unsupported"}
    yield "integers.tif", saved(Image.new("I", (96, 96), 9), "TIFF"), READ
    for method in ("tiff_lzw", "tiff_adobe_deflate", "jpeg", "packbits"):
        yield f"{method}.tif", saved(rgb, "TIFF", compression=method), READ
    yield "fax.tif", saved(gray.convert("1"), "TIFF", compression="group4"), READ
    yield "pages.tif", saved(rgb, "TIFF", save_all=True, append_images=[gray, deep]), READ
    yield "lossless.webp", saved(rgb, "WEBP", lossless=True), READ
    yield "alpha.webp", saved(rgb.convert("RGBA"), "WEBP"), READ
    film = {"save_all": True, "append_images": [rgb.rotate(90), rgb.rotate(180)]}
    yield "film.png", saved(rgb, "PNG", **film), {"unsupported"}
    yield "film.webp", saved(rgb, "WEBP", **film), {"unsupported"}
    yield "film.gif", saved(rgb, "GIF", **film), {"unsupported"}


def _wrong_names() -> Files:
    rgb = Image.fromarray(picture())
    for form, suffix in (("JPEG", "png"), ("PNG", "jpg"), ("WEBP", "tif"), ("TIFF", "webp"), ("MPO", "jpeg")):
        yield f"{form.lower()}_as.{suffix}", saved(rgb, form), READ
    for form in ("GIF", "BMP", "JPEG2000"):
        yield f"{form.lower()}_as.jpg", saved(rgb, form), {"unsupported"}
    for name, data, allowed in (
        ("text", b"this is not an image\n" * 99, DAMAGED),
        ("page", b"<!doctype html><html><body>403</body></html>", DAMAGED),
        ("document", b"%PDF-1.7\n" + bytes(99), {"unsupported"}),
        ("archive", b"PK\3\4" + bytes(99), DAMAGED),
        ("script", b"#!/bin/sh\nexit 1\n", DAMAGED),
        ("drawing", b"<svg xmlns='http://www.w3.org/2000/svg' width='9' height='9'/>", DAMAGED),
        ("empty", b"", {"empty"}),
        ("zero_byte", b"\0", DAMAGED),
        ("zeros", bytes(10_000), DAMAGED),
        ("ones", b"\xff" * 10_000, DAMAGED),
        ("marker", b"\xff\xd8", DAMAGED),
        ("markers", b"\xff\xd8\xff\xd9", DAMAGED),
        ("soi_only", b"\xff\xd8" * 5000, DAMAGED),
        ("heif", b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(99), {"unsupported"} | DAMAGED),
        ("avif", b"\0\0\0\x18ftypavif\0\0\0\0mif1avif" + bytes(99), {"unsupported"}),
        ("jxl", b"\xff\x0a" + bytes(99), {"unsupported"}),
        ("noise", np.random.default_rng(1).bytes(5000), DAMAGED),
    ):
        yield f"{name}_as.jpg", data, allowed


def _bombs() -> Files:
    too_large, n = {"too_large"}, CLAIMED
    yield "bomb.png", png(n, n, b""), too_large
    yield "bomb.jpg", claimed_jpeg(n, n), too_large
    yield "bomb_progressive.jpg", claimed_jpeg(n, n, progressive=True), too_large
    yield "bomb.tif", claimed_tiff(n, n), too_large
    yield "bomb.webp", claimed_webp(16_383, 16_383), too_large | DAMAGED
    yield "bomb_most.png", png(2**31 - 1, 2**31 - 1, b""), too_large | DAMAGED
    yield "bomb_most.jpg", claimed_jpeg(65_535, 65_535), too_large
    yield "bomb_most.tif", claimed_tiff(2**31, 2**31), too_large | DAMAGED
    # Within the limit of pixels, and costly: the pixels are not there, or compress to next to nothing.
    yield "claims_90mp.png", png(10_000, 9_000, b""), DAMAGED
    yield "claims_90mp.jpg", claimed_jpeg(10_000, 9_000), DAMAGED | READ
    yield "claims_90mp_progressive.jpg", claimed_jpeg(10_000, 9_000, progressive=True), DAMAGED | READ
    yield "claims_90mp.tif", claimed_tiff(10_000, 9_000), DAMAGED
    yield "claims_90mp_lzw.tif", claimed_tiff(10_000, 9_000, compression="tiff_lzw"), DAMAGED | {"too_large"}
    yield "claims_90mp.webp", claimed_webp(10_000, 9_000), DAMAGED | {"too_large"}
    yield "flat_49mp.png", png(7000, 7000, bytes(7000 * (1 + 3 * 7000))), READ
    yield "flat_49mp_interlaced.png", png(7000, 7000, bytes(8 * 7000 + 7000 * 3 * 7000 + 7000), interlace=1), READ
    yield "flat_80mp_bilevel.png", png(9000, 8888, bytes(8888 * (1 + 1125)), 1, 0), READ
    yield "flat_64mp.jpg", saved(Image.new("RGB", (8000, 8000), "gray"), "JPEG"), READ
    yield "flat_36mp_alpha.png", png(6000, 6000, bytes(6000 * (1 + 4 * 6000)), 8, 6), READ
    yield "text_chunk_bomb.png", text_bomb(), DAMAGED | READ
    yield "profile_bomb.png", profile_bomb(), DAMAGED | READ


def _truncated() -> Files:
    jpeg, progressive = saved(picture(), "JPEG"), saved(picture(), "JPEG", progressive=True)
    for name, data in (("jpeg", jpeg), ("progressive", progressive)):
        for i, at in enumerate(jpeg_markers(data)):
            for shift in (0, 1, 3, 9):
                # Without its EXIF a file is out for having none; a decoder may take a picture for whole at its end.
                if at + shift < len(data) - 2:
                    yield f"{name}_{i:02d}_{shift}.jpg", data[: at + shift], ANY_DAMAGE - READ
    data = saved(picture(), "PNG")
    for i, at in enumerate(png_chunks(data)):
        for shift in (0, 4, 8, 20):
            yield f"png_{i:02d}_{shift}.png", data[: at + shift], ANY_DAMAGE
    for options in ({"lossless": True}, {"lossless": False}):
        data = saved(picture(), "WEBP", **options)
        for i, at in enumerate(webp_chunks(data)):
            for shift in (0, 6, 12, 40):
                yield f"webp_{options['lossless']:d}_{i}_{shift}.webp", data[: at + shift], ANY_DAMAGE
    for method in ("raw", "tiff_lzw"):
        data = saved(picture(), "TIFF", compression=method)
        (directory,) = struct.unpack_from("<L", data, 4)
        for entry in range(18):
            at = min(directory + 2 + 12 * entry, len(data) - 1)
            yield f"{method}_{entry:02d}.tif", data[:at], ANY_DAMAGE
    for form, data in (("jpg", jpeg), ("png", saved(picture(), "PNG")), ("webp", saved(picture(), "WEBP"))):
        for share in range(1, 10):
            yield f"share_{share}.{form}", data[: len(data) * share // 10], ANY_DAMAGE - READ


def _flipped() -> Files:
    random = np.random.default_rng(RANDOM_SEED)
    sources = {
        "jpg": saved(picture(), "JPEG"),
        "png": saved(picture(), "PNG"),
        "webp": saved(picture(), "WEBP"),
        "tif": saved(picture(), "TIFF", compression="tiff_lzw"),
    }
    for suffix, data in sources.items():
        for i in range(40):
            changed = bytearray(data)
            # Half of them in the first kilobyte, where headers and tables are.
            end = min(1024, len(data)) if i % 2 else len(data)
            for at in random.integers(0, end, 1 + i % 5):
                changed[at] ^= 1 << int(random.integers(0, 8))
            yield f"flipped_{i:02d}.{suffix}", bytes(changed), ANY_DAMAGE


def _exif() -> Files:
    """Sound pictures whose EXIF is hostile: they are read, or out for having no usable tag, and nothing else."""
    allowed = READ | {"no_usable_tag"}
    block = exif_block()[6:]
    (main,) = struct.unpack_from(">L", block, 4)
    (count,) = struct.unpack_from(">H", block, main)
    cases: dict[str, bytes] = {"none": b"", "letters": b"II", "header": block[:8], "junk": b"\xff" * 500}
    for name, offset in (("self", 4), ("beyond", 2**31), ("end", len(block)), ("most", 2**32 - 1), ("zero", 0)):
        cases[f"main_{name}"] = block[:4] + struct.pack(">L", offset) + block[8:]
    for entry in range(count):
        at = main + 2 + 12 * entry
        cases[f"count_{entry}"] = block[: at + 4] + b"\xff\xff\xff\xff" + block[at + 8 :]
        cases[f"offset_{entry}"] = block[: at + 8] + b"\xff\xff\xff\xf0" + block[at + 12 :]
        cases[f"loop_{entry}"] = block[: at + 8] + struct.pack(">L", main) + block[at + 12 :]
        cases[f"type_{entry}"] = block[: at + 2] + b"\0\x0c" + block[at + 4 :]
    for entries in (255, 256, 65_535):
        cases[f"entries_{entries}"] = block[:main] + struct.pack(">H", entries) + block[main + 2 :]
    camera = block.index(struct.pack(">HHL", 0x8827, 3, 1))
    for name, place in (
        ("text", b"\0\2\0\0\0\x04400\0"),
        ("double", b"\0\x0c\0\0\0\1\0\0\0\1"),
        ("none", b"\0\3\0\0\0\0"),
    ):
        cases[f"iso_{name}"] = block[: camera + 2] + place + block[camera + 2 + len(place) :]
    for name, content in cases.items():
        yield f"exif_{name}.jpg", with_exif(content), allowed
    yield "exif_claims.jpg", with_exif(block)[:4] + b"\xff\xff" + with_exif(block)[6:], allowed | DAMAGED
    swapped = b"II" + block[2:]
    yield "exif_swapped.jpg", with_exif(swapped), allowed
    yield "exif_twice.jpg", with_exif(b"junk" * 20, with_exif(block)), allowed
    sound = saved(picture(), "JPEG")
    yield "exif_far.jpg", sound[:2] + b"\xff\xe2\xff\xffx" + bytes(65_532) + sound[2:], READ
    for i in range(0, len(block), max(1, len(block) // 24)):
        yield f"exif_cut_{i:03d}.jpg", with_exif(block[:i]), allowed


def _orientations() -> Files:
    for orientation in range(12):
        for form, suffix in (("JPEG", "jpg"), ("PNG", "png"), ("WEBP", "webp"), ("TIFF", "tif")):
            yield f"turned_{orientation:02d}.{suffix}", saved(picture()[:64], form, exif_block(orientation)), READ
