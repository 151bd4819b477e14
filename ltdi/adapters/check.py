"""What is done with an adapter before it is handed out: what a user would do with it, and whether it does anything."""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from ltdi.adapters.adapter import Adapter
from ltdi.adapters.base import BaseModel
from ltdi.adapters.formats import CONFIG, WEIGHTS, from_files, to_files
from ltdi.adapters.imports import prepare_imports
from ltdi.adapters.items import Texts
from ltdi.errors import DamagedFile, ForeignBase, GenerationFailed

TOLERANCE = 1e-4  # between logits, for each unit of the largest, and of one at least
QUICK = 0.05  # the same of logits by bfloat16 products
SAMPLE = 2  # items that logits are compared on


@dataclass(frozen=True)
class Checked:
    """What was proven.

    Args:
        checks: `files` (they give back the same tensors), `keys` (names and shapes are those of the base model, both
            ways), `logits` (of the files, by plain torch, are those in memory), and `peft VERSION` where it is installed:
            it loads the folder without a warning, holds the same tensors, and gives the same logits.
        difference: the largest between logits.
        delta_norm: Frobenius norm of scale B A over that of the weights it is added to.
        logit_change: the largest that LoRA makes in a logit of the sample under the same head.
    """

    checks: tuple[str, ...]
    difference: float
    delta_norm: float
    logit_change: float


@torch.inference_mode()
def verify(
    adapter: Adapter, base: BaseModel, items: Texts, expected: Tensor | None = None, quick: bool = False
) -> Checked:
    """Load the adapter back by the code that a user would call, and compare.

    Args:
        items: texts or pairs; the first few are the sample.
        expected: their logits `[M, N]` as whoever made the adapter knows them; its own by plain torch where absent.
        quick: whether those were made by bfloat16 products; logits by plain torch then stand in for them once they are near.

    Raises:
        GenerationFailed: what does not hold.
    """
    sample, files = items[:SAMPLE], to_files(adapter)
    try:
        loaded = from_files(files[WEIGHTS], files[CONFIG])
        loaded.check_target(base.target)
    except (DamagedFile, ForeignBase) as error:
        raise GenerationFailed(f"the adapter does not load back: {error}") from error
    _same_tensors(adapter.tensors, loaded.tensors, "the file")
    answers, checks = logits(loaded, base, sample), ["files", "keys", "logits"]
    wanted = logits(adapter, base, sample) if quick or expected is None else expected[: len(sample)]
    if quick and expected is not None:
        _close(expected[: len(sample)], wanted, "the model of few digits", QUICK)
    difference = _close(answers, wanted, "the adapter that was loaded back")
    if peft_installed():
        of_peft, version = _with_peft(adapter, base, sample, files)
        difference = max(difference, _close(of_peft, wanted, "PEFT"))
        checks.append(f"peft {version}")
    plain = logits(adapter, base, sample, lora=False)
    return Checked(tuple(checks), difference, delta_norm(adapter, base), float((answers - plain).abs().max()))


def logits(adapter: Adapter, base: BaseModel, items: Texts, *, lora: bool = True) -> Tensor:
    """Logits `[M, N]` of items by plain torch.

    Args:
        lora: without, those of the same head on the base model's own features.
    """
    name, weight, bias = adapter.head
    whole = {key: value for key, value in adapter.whole.items() if not key.startswith(f"{name}.")}
    return F.linear(base.features(items, adapter.lora if lora else None, adapter.scale, whole), weight, bias)


def delta_norm(adapter: Adapter, base: BaseModel) -> float:
    """Frobenius norm of all that LoRA adds, over that of the weights it is added to."""
    added = own = 0.0
    for path, (a, b) in adapter.lora.items():
        added += float(((b.T @ b) * (a @ a.T)).sum().clamp_min(0)) * adapter.scale**2
        own += float(base.model.get_submodule(path).weight.detach().float().square().sum())
    return (added / own) ** 0.5


@cache
def peft_installed() -> bool:
    """Whether the check can be done by PEFT itself: it is there, and imports."""
    prepare_imports()
    try:
        import_module("peft")
    except ImportError:
        return False
    return True


def _with_peft(adapter: Adapter, base: BaseModel, items: Texts, files: Mapping[str, bytes]) -> tuple[Tensor, str]:
    """Logits of the folder under PEFT, and PEFT's version; its warnings are failures, as it only warns of missing keys."""
    model = base.with_head(len(adapter.labels))
    from peft import PeftModel, __version__, get_peft_model_state_dict

    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for name, content in files.items():
            (Path(folder) / name).write_bytes(content)
        try:
            loaded = PeftModel.from_pretrained(model, folder)
        except (KeyError, ValueError, TypeError, RuntimeError) as error:
            raise GenerationFailed(f"PEFT does not load the adapter: {type(error).__name__}: {error}") from error
        held = get_peft_model_state_dict(loaded, save_embedding_layers=False)  # "auto" asks the network
    said = [warning for warning in caught if issubclass(warning.category, UserWarning | RuntimeWarning)]
    if said:
        raise GenerationFailed(f"PEFT warns of the adapter: {said[0].message}")
    _same_tensors(adapter.tensors, held, "PEFT")
    return loaded.eval()(**base.tokens(items)).logits.float().cpu(), __version__


def _same_tensors(own: Mapping[str, Tensor], other: Mapping[str, Tensor], where: str) -> None:
    for name in own:
        if name not in other:
            raise GenerationFailed(f"{where} lacks the adapter's tensor {name!r}")
    for name, value in other.items():
        if name not in own:
            raise GenerationFailed(f"{where} holds a tensor {name!r} that the adapter has not")
        if not torch.equal(value.cpu(), own[name]):
            raise GenerationFailed(f"{where} holds another {name!r} than the adapter")


def _close(found: Tensor, expected: Tensor, where: str, tolerance: float = TOLERANCE) -> float:
    difference = float((found - expected).abs().max())
    most = tolerance * max(1.0, float(expected.abs().max()))
    if not difference <= most:
        raise GenerationFailed(f"{where} answers differently: logits differ by {difference:.2g}, at most {most:.2g} is allowed")
    return difference
