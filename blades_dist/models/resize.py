"""A native-size crop to what an encoder was trained to see. One function, as methods of resizing leave traces."""

import cv2
import numpy as np
from PIL import Image

from blades_dist.config import Resize
from blades_dist.data.read import resize_into

FLOAT = ("bilinear", "bilinear_antialias")


def resized(pixels: np.ndarray, size: int, how: Resize) -> np.ndarray:
    """(H, W, 3) uint8 RGB to (3, S, S), the aspect ratio not kept.

    ``area``: OpenCV, INTER_AREA when it shrinks and INTER_LINEAR when it grows, as shards are read for training;
    ``pil_*``: Pillow's filter of that name, as Hugging Face's image processors do. Both give uint8.
    ``bilinear``, ``bilinear_antialias``: the float tensor in 0..1, as torchvision's Resize does after ToTensor
    (antialias is its default since 0.17); float32.

    Raises:
        ValueError: pixels of another shape or type.
    """
    if pixels.ndim != 3 or pixels.shape[2] != 3 or pixels.dtype != np.uint8 or not pixels.size:
        raise ValueError(f"expected a crop (H, W, 3) uint8, got {pixels.dtype} {pixels.shape}")
    if how in FLOAT:
        return _bilinear(pixels, size, antialias=how == "bilinear_antialias")
    target = np.empty((3, size, size), np.uint8)
    if how == "area":
        resize_into(target, cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR))
        return target
    picture = Image.fromarray(np.ascontiguousarray(pixels))
    kernel = Image.Resampling[how.removeprefix("pil_").upper()]
    target[:] = np.asarray(picture.resize((size, size), kernel)).transpose(2, 0, 1)
    return target


def _bilinear(pixels: np.ndarray, size: int, antialias: bool) -> np.ndarray:
    import torch  # only here: a process that decodes photos for the other methods does without
    import torch.nn.functional as F

    tensor = torch.from_numpy(np.array(pixels)).permute(2, 0, 1)[None].float() / 255
    if tensor.shape[2:] != (size, size):
        tensor = F.interpolate(tensor, (size, size), mode="bilinear", antialias=antialias)
    return np.ascontiguousarray(tensor[0].numpy())
