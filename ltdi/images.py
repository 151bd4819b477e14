"""Images as callers have them, to the one form that a body reads: grey squares, or colour ones."""

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


def prepare_images(images: Tensor | np.ndarray | Iterable[Any], size: int, field: str = "support") -> Tensor:
    """Grey squares with ink 255 on paper 0, whatever the caller's images look like.

    Each image is made grey, padded to a square with the colour of its border, resized to `size`
    (averaging where it shrinks, bilinear where it grows), and turned so that the border is dark.

    Args:
        images: a tensor or array `[M, H, W]`, `[M, 1, H, W]` or `[M, 3, H, W]` (uint8, or float in 0..1),
            or a list of such images, PIL images, paths, or encoded PNG, JPEG or WebP files.
        size: side in pixels.
        field: where the images stand, for errors.

    Returns:
        `[M, size, size]`, uint8.

    Raises:
        InvalidImage: something that is no image; `field` names which.
    """
    if isinstance(images, (str, bytes, PathLike)):
        raise InvalidImage("images must be a list or an array of images, not one of them", field=field)
    prepared = [_prepare(image, size, f"{field}/{i}") for i, image in enumerate(images)]
    if not prepared:
        return torch.zeros(0, size, size, dtype=torch.uint8)
    return torch.from_numpy(np.stack(prepared))


def prepare_photos(images: Tensor | np.ndarray | Iterable[Any], size: int, field: str = "support") -> Tensor:
    """Colour squares, whatever the caller's images look like: the square in the middle of each, resized (bilinear, averaging
    where it shrinks).

    Args:
        images: as for `prepare_images`; grey ones get three equal channels.
        size, field: likewise.

    Returns:
        `[M, 3, size, size]`, uint8.

    Raises:
        InvalidImage: as for `prepare_images`.
    """
    if isinstance(images, (str, bytes, PathLike)):
        raise InvalidImage("images must be a list or an array of images, not one of them", field=field)
    prepared = [photo_square(_to_colour(image, f"{field}/{i}"), size) for i, image in enumerate(images)]
    return torch.stack(prepared) if prepared else torch.zeros(0, 3, size, size, dtype=torch.uint8)


def photo_square(image: Image.Image, size: int) -> Tensor:
    """The square in the middle of a colour image as `[3, size, size]`, uint8."""
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    box = (left, top, left + side, top + side)
    small = image.resize((size, size), Image.Resampling.BILINEAR, box=box)
    return torch.from_numpy(np.array(small)).permute(2, 0, 1).contiguous()


def _to_colour(image: Any, field: str) -> Image.Image:
    if isinstance(image, Tensor):
        image = image.detach().cpu()
        image = (image.float() if image.is_floating_point() else image).numpy()
    if isinstance(image, np.ndarray):
        return _colour_from_array(image, field)
    if isinstance(image, (bytes, str, PathLike)):
        image = _decode(image, field)
    if not isinstance(image, Image.Image):
        raise InvalidImage(f"item is a {type(image).__name__}, not an image", field=field)
    _check_size(image.width, image.height, field)
    if 0 in image.size:
        raise InvalidImage(f"image has size {image.width} x {image.height}; both sides must be at least 1", field=field)
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba)
    return image.convert("RGB")


def _colour_from_array(array: np.ndarray, field: str) -> Image.Image:
    _check_array(array, field)
    colour = array if array.ndim == 3 else array[None]
    if 0 in colour.shape:
        raise InvalidImage(
            f"image has size {colour.shape[2]} x {colour.shape[1]}; both sides must be at least 1", field=field
        )
    _check_size(colour.shape[2], colour.shape[1], field)
    full = 1 if array.dtype.kind == "f" else 255
    planes = np.rint(colour * (255 // full)).astype(np.uint8).repeat(3 // len(colour), 0)
    return Image.fromarray(np.ascontiguousarray(planes.transpose(1, 2, 0)))


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
    _check_array(array, field)
    full = 1 if array.dtype.kind == "f" else 255
    grey = array.mean(0, dtype=np.float64) if array.ndim == 3 else array
    return np.rint(grey * (255 // full)).astype(np.uint8)


def _check_array(array: np.ndarray, field: str) -> None:
    if array.ndim != 2 and (array.ndim != 3 or array.shape[0] not in (1, 3)):
        raise InvalidImage(f"image array has shape {list(array.shape)}; expected [H, W], [1, H, W] or [3, H, W]", field=field)
    if array.dtype.kind not in "fiu":
        raise InvalidImage(f"image array is of type {array.dtype}; expected uint8, or floats in 0..1", field=field)
    full = 1 if array.dtype.kind == "f" else 255
    if array.size and not (array.min() >= 0 and array.max() <= full):  # NaN is neither
        raise InvalidImage(
            f"image array holds {array.min()} to {array.max()}; expected uint8, or floats in 0..1", field=field
        )


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
