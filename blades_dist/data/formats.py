"""Image formats that are recognised only to say so."""

# (offset, magic, name)
_OTHER_FORMATS = (
    (0, b"GIF8", "GIF"),
    (0, b"BM", "BMP"),
    (0, b"8BPS", "Photoshop"),
    (0, b"%PDF", "PDF"),
    (0, b"\0\0\0\x0cjP  ", "JPEG 2000"),
    (0, b"\xff\x0a", "JPEG XL"),
    (0, b"FUJIFILMCCD-RAW", "camera raw"),
    (4, b"ftyp", "HEIF or AVIF"),
)


def other_format(data: bytes) -> str | None:
    """Name of the format of an image file that is not supported; None for everything that is not recognised."""
    return next((name for offset, magic, name in _OTHER_FORMATS if data[offset : offset + len(magic)] == magic), None)
