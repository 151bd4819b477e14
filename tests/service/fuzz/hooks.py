"""How Schemathesis writes the service's media types; it loads this file by `SCHEMATHESIS_HOOKS`."""

from __future__ import annotations

import schemathesis
import torch
from hypothesis import strategies as st

from ltdi import safetensors_bytes

SAFETENSORS = "application/vnd.safetensors"


def task_file(labels: list[int], size: int, images: bool) -> bytes:
    """A task of features or images, good where it has two classes and the bundle's size."""
    values = torch.linspace(0, 1, len(labels) * size * size).reshape(len(labels), 1, size, size)
    inputs = {"images": (255 * values).to(torch.uint8)} if images else {"features": values.flatten(1)}
    return safetensors_bytes(inputs | {"labels": torch.tensor(labels, dtype=torch.int64)}, {})


FILES = st.builds(task_file, st.lists(st.integers(0, 5), max_size=8), st.sampled_from([16, 1]), st.booleans())
schemathesis.openapi.media_type(SAFETENSORS, st.one_of(FILES, st.binary(max_size=64)))


@schemathesis.serializer(SAFETENSORS)
def as_bytes(context: object, value: object) -> bytes:
    """The file as it is; what stands in its place in a negative case, as text."""
    return value if isinstance(value, bytes) else str(value).encode("utf-8", "surrogatepass")


FEATURES = [[0.1 * ((7 * row + place) % 11) for place in range(256)] for row in range(4)]
SUPPORT = [{"label": label, "features": row} for label, row in zip("abab", FEATURES, strict=True)]
USABLE = {"support": SUPPORT, "inputs": [{"features": row} for row in FEATURES]}


@schemathesis.hook
def before_call(context: object, case: schemathesis.Case, kwargs: dict) -> None:
    """Every other good JSON body gets inputs that the bundle can use, so that the rest of it reaches the generator."""
    good = case.meta is not None and case.meta.generation.mode.is_positive
    if good and isinstance(case.body, dict) and case.media_type == "application/json" and len(str(case.body)) % 2:
        usable = {key: value for key, value in USABLE.items() if key in case.body}
        if usable:
            dropped = ("classes", "model", "unlabelled", "task_embedding")
            case.body = {key: value for key, value in case.body.items() if key not in dropped} | usable
