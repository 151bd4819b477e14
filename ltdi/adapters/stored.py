"""A bundle of adapters from its folder, verified; its base model is not loaded before it is needed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ltdi.adapters.base import BaseModel
from ltdi.adapters.bundle import CARD, CONFIG, DIGEST, WEIGHTS, AdapterBundle, digest_of
from ltdi.adapters.parts import FORMAT, FORMAT_VERSION, AdapterBundleConfig, AdapterParts
from ltdi.adapters.predictor import Predictor
from ltdi.adapters.predictors import build_predictor
from ltdi.bodies.sentence import PACKAGED
from ltdi.config import from_json
from ltdi.errors import DamagedFile, InvalidInput
from ltdi.files import parse_json, read_safetensors


def load_adapter_bundle(folder: Path, device: torch.device) -> AdapterBundle:
    """A bundle of adapters.

    Raises:
        DamagedFile: wrong digest, missing or wrongly shaped tensors, NaN, an unknown version.
    """
    recorded = _text(folder / DIGEST).strip()
    if recorded != digest_of(folder):
        raise DamagedFile(f"bundle {folder.name!r} does not match its digest; fetch or export it again")
    values = _object(folder / CONFIG)
    if values.get("format") != FORMAT or values.get("format_version") != FORMAT_VERSION:
        raise DamagedFile(f"bundle {folder.name!r} is no {FORMAT} of version {FORMAT_VERSION}")
    try:
        config = from_json(AdapterBundleConfig, values)
        predictor = build_predictor(config.predictor, config.space)
    except (ValueError, TypeError, LookupError, RuntimeError, InvalidInput) as error:
        raise DamagedFile(f"bundle {folder.name!r} has a config that cannot be used: {error}") from error
    tensors, _ = read_safetensors(folder / WEIGHTS, "bundle's weights")
    groups: dict[str, dict[str, Tensor]] = {kind: {} for kind in ("lora_A", "mean", "basis", "saved", "predictor")}
    for name, tensor in tensors.items():
        kind, _, path = name.partition(".")
        if kind not in groups:
            raise DamagedFile(f"bundle {folder.name!r} holds a tensor it should not: {name[:80]!r}")
        groups[kind][path] = tensor
    _fill(predictor, groups["predictor"])
    parts = AdapterParts(groups["lora_A"], groups["mean"], groups["basis"], groups["saved"])
    body = BaseModel(_place(config.body.model, folder), config.body.max_tokens, config.target)
    return AdapterBundle(config, body, parts, predictor, digest=recorded, card=_card(folder, recorded), device=device)


def _place(model: str, folder: Path) -> str:
    """A packaged model's name, or a path: from the bundle's folder where it is not absolute."""
    return model if model in PACKAGED else str(folder / model)


def _fill(predictor: Predictor, tensors: dict[str, Tensor]) -> None:
    try:
        predictor.load_state_dict(tensors)
    except RuntimeError as error:
        raise DamagedFile(f"the bundle's predictor is not whole: {str(error).splitlines()[-1].strip()[:120]}") from error


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DamagedFile(f"the bundle's {path.name} cannot be read") from error


def _object(path: Path) -> dict[str, Any]:
    try:
        found = parse_json(_text(path))
    except ValueError as error:
        raise DamagedFile(f"the bundle's {path.name} is not JSON") from error
    if not isinstance(found, dict):
        raise DamagedFile(f"the bundle's {path.name} is no JSON object")
    return found


def _card(folder: Path, recorded: str) -> dict[str, Any]:
    card = _object(folder / CARD) if (folder / CARD).exists() else {}
    if card and card.get("bundle_digest") != recorded:
        raise DamagedFile(f"the bundle's {CARD} speaks of another digest")
    return card
