"""Images as callers have them, to the one form that a body reads."""

from __future__ import annotations

import io
from collections.abc import Iterable
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ltdi.errors import InvalidImage

FORMATS = ("PNG", "JPEG", "WEBP")
MAX_PIXELS = 16_000_000
MAX_SIDE = 8_000  # an image is padded to a square, so a long thin one costs its side squared
STRIP = 256  # rows


def prepare_images(images: Tensor | np.ndarray | Iterable[Any], size: int) -> Tensor:
    """Grey squares with ink 255 on paper 0, whatever the caller's images look like.

    Each image is made grey, padded to a square with the colour of its border, resized to `size`
    (averaging where it shrinks, bilinear where it grows), and turned so that the border is dark.

    Args:
        images: a tensor or array `[M, H, W]`, `[M, 1, H, W]` or `[M, 3, H, W]` (uint8, or float in 0..1),
            or a list of such images, PIL images, paths, or encoded PNG, JPEG or WebP files.
        size: side in pixels.

    Returns:
        `[M, size, size]`, uint8.

    Raises:
        InvalidImage: something that is no image; `field` names which.
    """
    if isinstance(images, (str, bytes, PathLike)):
        raise InvalidImage("images must be a list or an array of images, not one of them", field="support")
    prepared = [_prepare(image, size, f"support/{i}") for i, image in enumerate(images)]
    if not prepared:
        return torch.zeros(0, size, size, dtype=torch.uint8)
    return torch.from_numpy(np.stack(prepared))


def _prepare(image: Any, size: int, field: str) -> np.ndarray:
    if isinstance(image, Tensor):
        image = image.detach().cpu()
        image = (image.float() if image.is_floating_point() else image).numpy()
    if isinstance(image, np.ndarray):
        grey = _from_array(image, field)
    elif isinstance(image, Image.Image):
        grey = _to_grey(image)
    elif isinstance(image, (bytes, str, PathLike)):
        grey = _to_grey(_decode(image, field))
    else:
        raise InvalidImage(f"item is a {type(image).__name__}, not an image", field=field)
    if 0 in grey.shape:
        raise InvalidImage(f"image has size {grey.shape[1]} x {grey.shape[0]}; both sides must be at least 1", field=field)
    _check_size(grey.shape[1], grey.shape[0], field)
    if grey.shape != (size, size):
        grey = _resize(_square(grey), size)
    return 255 - grey if _border(grey).mean() > 127 else grey


def _from_array(array: np.ndarray, field: str) -> np.ndarray:
    if array.ndim != 2 and (array.ndim != 3 or array.shape[0] not in (1, 3)):
        raise InvalidImage(f"image array has shape {list(array.shape)}; expected [H, W], [1, H, W] or [3, H, W]", field=field)
    if array.dtype.kind not in "fiu":
        raise InvalidImage(f"image array is of type {array.dtype}; expected uint8, or floats in 0..1", field=field)
    full = 1 if array.dtype.kind == "f" else 255
    if array.size and not (array.min() >= 0 and array.max() <= full):  # NaN is neither
        raise InvalidImage(
            f"image array holds {array.min()} to {array.max()}; expected uint8, or floats in 0..1", field=field
        )
    grey = array.mean(0, dtype=np.float64) if array.ndim == 3 else array
    return np.rint(grey * (255 // full)).astype(np.uint8)


def _decode(source: bytes | str | PathLike[str], field: str) -> Image.Image:
    try:
        image = Image.open(io.BytesIO(source) if isinstance(source, bytes) else Path(source), formats=FORMATS)
        _check_size(image.width, image.height, field)
        image.load()
        return image
    except InvalidImage:
        raise
    except Exception as error:  # Pillow raises many types for damaged files
        raise InvalidImage(f"not a readable PNG, JPEG or WebP image: {error}".split(" <")[0], field=field) from error


def _check_size(width: int, height: int, field: str) -> None:
    if width * height > MAX_PIXELS or max(width, height) > MAX_SIDE:
        raise InvalidImage(
            f"image has {width} x {height} pixels; at most {MAX_PIXELS}, and {MAX_SIDE} a side, are decoded", field=field
        )


def _to_grey(image: Image.Image) -> np.ndarray:
    """Grey, a strip at a time: a small file can hold 16 million pixels, and a colour takes four bytes in each step."""
    grey = np.empty((image.height, image.width), dtype=np.uint8)
    for top in range(0, image.height, STRIP):
        bottom = min(top + STRIP, image.height)
        grey[top:bottom] = _strip_to_grey(image.crop((0, top, image.width, bottom)))
    return grey


def _strip_to_grey(image: Image.Image) -> np.ndarray:
    if image.mode.startswith("I;16"):  # Pillow would clip, not scale
        return (np.asarray(image).astype(np.uint16) >> 8).astype(np.uint8)
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba)
    return np.asarray(image.convert("L"))


def _border(grey: np.ndarray) -> np.ndarray:
    return np.concatenate([grey[0], grey[-1], grey[:, 0], grey[:, -1]])


def _square(grey: np.ndarray) -> np.ndarray:
    height, width = grey.shape
    side = max(height, width)
    square = np.full((side, side), int(np.median(_border(grey))), dtype=np.uint8)
    top, left = (side - height) // 2, (side - width) // 2
    square[top : top + height, left : left + width] = grey
    return square


def _resize(square: np.ndarray, size: int) -> np.ndarray:
    how = Image.Resampling.BOX if square.shape[0] >= size else Image.Resampling.BILINEAR
    return np.asarray(Image.fromarray(square).resize((size, size), how))
