"""Generators between memory and file, and the fields that they are learned on."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from ltdi.adapter_bank import AdapterGenerator
from ltdi.bodies.adapted import AdaptedBert, Target
from ltdi.denoisers.adapter_tokens import AdapterTokens, AdapterTokensConfig
from ltdi.files import read_safetensors, write_safetensors
from ltdi.schedule import Schedule, ScheduleConfig
from training.adapters.banks import fold_bank, others, stored_of
from training.adapters.encoded import EncodedTask
from training.adapters.learn import Field


def new_generator(target: Target, seed: int = 0) -> AdapterGenerator:
    """A generator before learning: it weighs stored tasks by how well their classifiers separate the support."""
    torch.manual_seed(seed)
    denoiser = AdapterTokens(AdapterTokensConfig(), Schedule(ScheduleConfig()), 2 * target.layers)
    return AdapterGenerator(denoiser, (target.layers, 2, target.size, target.rank))


def write_generator(path: Path, generator: AdapterGenerator) -> None:
    """Keep its parameters."""
    write_safetensors(path, dict(generator.state_dict()), {"what": "generator of adapters"})


def read_generator(path: Path, encoder: AdaptedBert) -> AdapterGenerator:
    """A kept generator."""
    generator = new_generator(encoder.target)
    generator.load_state_dict(read_safetensors(path, "generator")[0])
    return generator.eval()


def field_of(out: Path, tasks: Sequence[EncodedTask], inner: int, outer: int) -> Field:
    """Episodes of the fold `inner` with the bank made without it, stored tasks of the fold `outer` not allowed."""
    bank = fold_bank(out, tasks, inner)
    known, own = others(tasks, inner), [task for task in tasks if task.fold == inner]
    allowed = torch.tensor([float(task.fold != outer) for task in known])
    waypoints = torch.stack([one.lora_b for one in stored_of(out, own)]) - bank.anchor
    moved = waypoints.flatten(4, 5).flatten(2, 3)
    coordinates = torch.einsum("tmwp,wkp->tmwk", moved, bank.basis) / bank.spread[:, None]
    return Field(own, bank, allowed, coordinates)
