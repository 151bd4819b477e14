"""Images as callers have them: polarity, kinds, shapes, and what is refused."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from ltdi.errors import InvalidImage
from ltdi.images import MAX_PIXELS, MAX_SIDE, _strip_to_grey, _to_grey, prepare_images


@pytest.fixture
def ink() -> np.ndarray:
    """A grey drawing, ink 255 on paper 0, `[28, 28]` uint8."""
    drawing = np.zeros((28, 28), dtype=np.uint8)
    drawing[6:22, 12:15], drawing[9:12, 8:20] = 255, 200
    return drawing


def encoded(image: Image.Image, kind: str = "PNG", **how: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **how)
    return buffer.getvalue()


def one(image: object, size: int = 28) -> np.ndarray:
    return prepare_images([image], size)[0].numpy()


def png_of_size(width: int, height: int) -> bytes:
    """A PNG file that claims a size and holds nearly nothing."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def test_black_on_white_equals_white_on_black(ink: np.ndarray) -> None:
    assert np.array_equal(one(255 - ink), ink) and np.array_equal(one(ink), ink)


@pytest.mark.parametrize("size", [14, 28, 40])
def test_polarity_changes_nothing_after_resizing_but_rounding(ink: np.ndarray, size: int) -> None:
    light, dark = one(255 - ink, size).astype(int), one(ink, size).astype(int)
    assert light.shape == (size, size) and abs(light - dark).max() <= 1


def test_every_kind_of_input_gives_the_same_image(ink: np.ndarray, tmp_path) -> None:
    picture = Image.fromarray(255 - ink)
    see_through = Image.new("LA", (28, 28), (0, 0))
    see_through.putalpha(Image.fromarray(ink))
    (tmp_path / "a.png").write_bytes(encoded(picture))
    kinds = {
        "PNG": encoded(picture),
        "RGB PNG": encoded(picture.convert("RGB")),
        "RGBA PNG": encoded(picture.convert("RGBA")),
        "black on transparent": encoded(see_through),
        "palette": encoded(picture.convert("P")),
        "16 bits": encoded(Image.fromarray((255 - ink).astype(np.uint16) * 257)),
        "lossless WebP": encoded(picture.convert("RGB"), "WEBP", lossless=True),
        "PIL": picture,
        "path": tmp_path / "a.png",
        "path as text": str(tmp_path / "a.png"),
        "uint8": ink,
        "float64": ink / 255,
        "float32 tensor": torch.from_numpy(ink).float() / 255,
        "tensor with a gradient": (torch.from_numpy(ink).float() / 255).requires_grad_(),
        "int64": ink.astype(np.int64),
        "[1, H, W]": ink[None],
        "[3, H, W]": np.stack([ink] * 3),
        "flipped view": ink[::-1][::-1],
    }
    for kind, image in kinds.items():
        assert np.array_equal(one(image), ink), kind


@pytest.mark.parametrize("batch", [(4, 28, 28), (4, 1, 28, 28), (4, 3, 28, 28)])
def test_a_batch_is_its_images_one_by_one(batch: tuple[int, ...]) -> None:
    images = np.random.default_rng(0).integers(0, 100, batch, dtype=np.uint8)
    prepared = prepare_images(torch.from_numpy(images), 28)
    assert prepared.shape == (4, 28, 28) and prepared.dtype == torch.uint8
    assert torch.equal(prepared, prepare_images(list(images), 28))


def test_a_jpeg_is_close(ink: np.ndarray) -> None:
    found = one(encoded(Image.fromarray(255 - ink).convert("RGB"), "JPEG", quality=95)).astype(int)
    assert abs(found - ink).mean() < 3


def test_a_dark_image_of_three_channels_is_not_made_brighter() -> None:
    assert one(np.eye(28, dtype=np.uint8)[None].repeat(3, 0)).max() == 1


@pytest.mark.parametrize(("height", "width"), [(28, 56), (56, 28)])
def test_an_image_that_is_not_square_is_padded_with_its_paper(ink: np.ndarray, height: int, width: int) -> None:
    wide = np.full((height, width), 255, dtype=np.uint8)
    top, left = (height - 28) // 2, (width - 28) // 2
    wide[top : top + 28, left : left + 28] = 255 - ink
    square = np.zeros((56, 56), dtype=np.uint8)
    square[14:42, 14:42] = ink
    assert abs(one(wide).astype(int) - one(square)).max() <= 1


@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (2, 1), (3, 3)])
def test_tiny_images_are_taken(shape: tuple[int, int]) -> None:
    assert one(np.full(shape, 9, dtype=np.uint8)).shape == (28, 28)


def test_no_image_is_an_empty_batch() -> None:
    assert prepare_images([], 28).shape == (0, 28, 28)


REFUSED = {
    "no image": (b"not an image", "not a readable PNG, JPEG or WebP image"),
    "nothing": (b"", "not a readable PNG, JPEG or WebP image"),
    "truncated": (encoded(Image.effect_noise((64, 64), 90))[:800], "not a readable PNG, JPEG or WebP image"),
    "GIF": (encoded(Image.new("L", (8, 8)), "GIF"), "not a readable PNG, JPEG or WebP image"),
    "TIFF": (encoded(Image.new("L", (8, 8)), "TIFF"), "not a readable PNG, JPEG or WebP image"),
    "pixel bomb": (png_of_size(7000, 7000), f"7000 x 7000 pixels; at most {MAX_PIXELS}"),
    "huge bomb": (png_of_size(60_000, 60_000), "exceeds limit"),
    "long thin bomb": (png_of_size(1_000_000, 1), f"1000000 x 1 pixels; .* and {MAX_SIDE} a side"),
    "long thin array": (np.zeros((1, MAX_SIDE + 1), dtype=np.uint8), f"{MAX_SIDE + 1} x 1 pixels"),
    "no pixels": (np.zeros((0, 28), dtype=np.uint8), "size 28 x 0; both sides must be at least 1"),
    "channels last": (np.zeros((28, 28, 3), dtype=np.uint8), r"shape \[28, 28, 3\]; expected \[H, W\]"),
    "one number": (np.zeros((), dtype=np.uint8), r"shape \[\]"),
    "NaN": (np.full((28, 28), np.nan), "expected uint8, or floats in 0..1"),
    "floats to 16": (np.full((28, 28), 16.0), "holds 16.0 to 16.0; expected uint8, or floats in 0..1"),
    "negative": (np.full((28, 28), -0.1), "expected uint8, or floats in 0..1"),
    "integers beyond 255": (np.full((28, 28), 256), "expected uint8, or floats in 0..1"),
    "text": (np.full((28, 28), "a"), "array is of type <U1"),
    "a number": (7, "item is a int, not an image"),
    "None": (None, "item is a NoneType, not an image"),
    "a path to nothing": ("absent.png", "not a readable PNG, JPEG or WebP image"),
}


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("case", REFUSED)
def test_what_is_no_image_is_refused_with_its_place(case: str, ink: np.ndarray) -> None:
    image, message = REFUSED[case]
    with pytest.raises(InvalidImage, match=message) as caught:
        prepare_images([ink, image], 28)
    assert caught.value.field == "support/1"


@pytest.mark.parametrize("image", [b"bytes", "path"])
def test_one_image_in_place_of_a_list_is_refused(image: object) -> None:
    with pytest.raises(InvalidImage, match="must be a list or an array of images"):
        prepare_images(image, 28)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16"])
def test_an_image_read_in_strips_is_the_image_read_at_once(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (70, 50, 4), dtype=np.uint8)
    image = Image.fromarray(pixels[..., 0].astype(np.uint16) << 8) if mode == "I;16" else Image.fromarray(pixels).convert(mode)
    if mode == "P":
        image.info["transparency"] = 3
    at_once = _strip_to_grey(image)
    monkeypatch.setattr("ltdi.images.STRIP", 16)
    assert np.array_equal(_to_grey(image), at_once)
