"""How strongly a JPEG file was compressed."""

import numpy as np
from PIL import Image

# Luminance table of the JPEG standard (annex K, table K.1), sorted: quality estimates need no zigzag order.
# fmt: off
_LUMINANCE = np.array([
    10, 11, 12, 12, 13, 14, 14, 14, 16, 16, 16, 17, 18, 19, 22, 22, 24, 24, 24, 26, 29, 35,
    37, 40, 40, 49, 51, 51, 55, 55, 56, 56, 57, 58, 60, 61, 62, 64, 64, 68, 69, 72, 77, 78,
    80, 81, 87, 87, 92, 92, 95, 98, 99, 100, 101, 103, 103, 103, 104, 109, 112, 113, 120, 121,
], float)
# fmt: on


def jpeg_quality(image: Image.Image) -> float | None:
    """Quality from 1 to 100 in the scale of the IJG library, from the luminance quantisation table;
    None for other files."""
    tables = getattr(image, "quantization", None)
    if image.format not in ("JPEG", "MPO") or not tables or len(tables.get(0, ())) != 64:
        return None
    table = np.sort(np.asarray(tables[0], float))
    # Steps that the 8-bit table clips at 1 or 255 tell nothing of the scale.
    inner = (table > 1) & (table < 255)
    if not inner.any():
        return 100.0 if table.max() <= 1 else 1.0
    percent = 100 * table[inner].sum() / _LUMINANCE[inner].sum()
    return round(float(np.clip(100 - percent / 2 if percent <= 100 else 5000 / percent, 1, 100)), 1)
