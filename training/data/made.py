"""Made characters: random strokes with a shaky hand. For trying the whole way in a minute, and for tests."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image, ImageDraw

from training.data.dataset import ClassImages

SEEDS = {"train": 1, "val": 2, "test": 3}


def load_made(part: str, classes: int = 60, drawings: int = 20, image_size: int = 28) -> ClassImages:
    """Images of made characters, the same at every call; parts share no character."""
    chance = np.random.default_rng(SEEDS[part])
    images = np.stack([_character(chance, drawings, image_size) for _ in range(classes)])
    return ClassImages(torch.from_numpy(images), [f"{part}/{n:03d}" for n in range(classes)])


def _character(chance: np.random.Generator, drawings: int, size: int) -> np.ndarray:
    strokes = chance.uniform(0.2, 0.8, (3, 3, 2))
    return np.stack([_draw(strokes + chance.normal(0, 0.03, strokes.shape), size) for _ in range(drawings)])


def _draw(strokes: np.ndarray, size: int) -> np.ndarray:
    canvas = Image.new("L", (4 * size, 4 * size), 0)
    for stroke in strokes:
        ImageDraw.Draw(canvas).line([tuple(point) for point in stroke * 4 * size], fill=255, width=size // 3)
    return np.asarray(canvas.resize((size, size), Image.Resampling.BOX))
