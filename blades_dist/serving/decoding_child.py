"""The process that decodes uploads: ``python -m blades_dist.serving.decoding_child``. No Ray and no torch here."""

import io
import sys
from functools import partial
from pathlib import Path
from typing import Any

from PIL import Image

from blades_dist.data import wire
from blades_dist.data.decode import Rejected
from blades_dist.data.locate_models import LocatorError
from blades_dist.data.sandbox_child import Answer, serve
from blades_dist.detect.info import Preprocessing
from blades_dist.detect.preprocess import Unusable, preprocess
from blades_dist.serving.decoding import message_of

_NO_MEMORY = Unusable("too_large", "it needs more memory than there is")


def main(parent: int) -> int:
    """Serves ``parent`` until it closes the pipe."""
    return serve(parent, _begin)


def _begin(first: dict[str, Any]) -> tuple[Answer, int]:
    answer = partial(_answer, max_pixels=first["max_pixels"], max_bytes=first["max_bytes"])
    # Taken the whole way once, so that what libraries load at their first use is no upload's time or memory.
    stream = io.BytesIO()
    Image.new("RGB", (64, 64)).save(stream, "JPEG")
    how = Preprocessing(
        image_size=64, resize="area", crop_scale=1.3, min_face_px=16, locator="haar", re_encodings=("jpeg75",)
    )
    for whole in (True, False):
        answer(({"how": how.model_dump(mode="json"), "whole": whole, "locator_model": None}, stream.getvalue()))
    return answer, first["mebibytes"]


def _answer(message: wire.Message, max_pixels: int, max_bytes: int) -> wire.Message:
    header, data = message
    try:
        how, model = Preprocessing.model_validate(header["how"]), header["locator_model"]
        path = None if model is None else Path(model)
        return message_of(
            preprocess(bytes(data), how, max_pixels, max_bytes, whole=header["whole"], locator_model=path)
        )
    except Rejected as error:
        return message_of(Unusable(error.reason, error.detail))
    except MemoryError:
        return message_of(_NO_MEMORY)
    except LocatorError as error:
        return {"broken": str(error)}, b""
    except Exception as error:  # a library that hostile bytes have led astray
        if "memory" in str(error).lower():  # OpenCV has an error of its own for it
            return message_of(_NO_MEMORY)
        return message_of(Unusable("unreadable", f"it cannot be taken apart ({type(error).__name__})"))


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1])))
