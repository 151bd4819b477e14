"""Generators and their episodes between memory and file."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import fields
from pathlib import Path

import torch
from torch import Tensor

from ltdi.adapters.bank import Bank
from ltdi.adapters.generator import AdapterGenerator
from ltdi.bodies.adapted import AdaptedBert
from ltdi.denoisers.adapter_tokens import AdapterTokens, AdapterTokensConfig
from ltdi.files import read_safetensors, write_safetensors
from ltdi.schedule import Schedule, ScheduleConfig
from training.adapters.banks import banked, read_multitask, read_names, stored_of
from training.adapters.encoded import EncodedTask
from training.adapters.learn import Episode, read_episode
from training.adapters.store import final
from training.adapters.tasks import FOLDS

EACH = 2  # episodes a task; the second round hides the names of classes


def new_generator(seed: int = 0) -> AdapterGenerator:
    """A generator before learning: it weighs candidates by how well the support is told apart under them."""
    torch.manual_seed(seed)
    return AdapterGenerator(AdapterTokens(AdapterTokensConfig(), Schedule(ScheduleConfig())))


def write_generator(path: Path, generator: AdapterGenerator) -> None:
    """Keep its parameters."""
    write_safetensors(path, dict(generator.state_dict()), {"what": "generator of adapters"})


def read_generator(path: Path) -> AdapterGenerator:
    """A kept generator."""
    generator = new_generator()
    generator.load_state_dict(read_safetensors(path, "generator")[0])
    return generator.eval().requires_grad_(False)


def multitasks(out: Path) -> list[Tensor]:
    """The multi-task adapter of each fold."""
    return [read_multitask(out, fold) for fold in range(len(FOLDS))]


def read_episodes(
    out: Path, encoder: AdaptedBert, tasks: Sequence[EncodedTask], bank: Bank, log: Callable
) -> list[Episode]:
    """Episodes of every task, its own source not allowed; a file each, kept. The bank is that of all tasks.

    The default of an episode is the multi-task adapter that was made without the task's fold.
    """
    sources = [task.source for task in banked(tasks)]
    adapters, defaults = final(stored_of(out, banked(tasks))), multitasks(out)
    names, episodes = read_names(out), []
    for i in range(EACH * len(tasks)):
        task = tasks[i % len(tasks)]
        path = out / "episodes" / f"{task.name}.{i // len(tasks)}.safetensors"
        if not path.is_file():
            draw = torch.Generator().manual_seed(i)
            allowed = torch.tensor([float(source != task.source) for source in sources] + [1.0])
            own = names[task.name] if i // len(tasks) % 2 == 0 else None
            with torch.no_grad():
                made = read_episode(encoder, bank, torch.cat([adapters, defaults[task.fold][None]]), task, allowed, draw, own)
            _write(path, made)
            log(f"episode {i + 1} of {EACH * len(tasks)}: {task.name}")
        episodes.append(_read(path))
    return episodes


def _write(path: Path, episode: Episode) -> None:
    tensors = {field.name: torch.as_tensor(getattr(episode, field.name)) for field in fields(Episode)}
    write_safetensors(path, tensors, {})


def _read(path: Path) -> Episode:
    tensors, _ = read_safetensors(path, "episode")
    return Episode(**tensors | {"ways": int(tensors["ways"]), "fold": int(tensors["fold"])})
