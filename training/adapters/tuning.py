"""Tuning by gradient descent, as `transformers` and PEFT do it: what a generated adapter is measured against.

Full fine-tuning, and LoRA, AdaLoRA and FourierFT of PEFT. PEFT has no DyLoRA (the word
does not stand in 0.21.2), and no package index that was searched has one by that name; it is left out.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from ltdi.adapters.imports import prepare_imports, quiet
from training.adapters.encoded import BATCH_TOKENS, RANK, SCALE, Part
from training.adapters.heads import percent

TARGETS = ["query", "value"]
MARKS, SHARES = (1.0, 5.0, 20.0), (0.5, 1.0)  # where a curve has its points: core seconds, and shares of the steps
WARM_UP, WEIGHT_DECAY = 0.1, 0.01


@dataclass(frozen=True)
class TuneConfig:
    """One run.

    Args:
        method: of `METHODS`.
        steps: of AdamW.
        rate: of all weights but the classifier's; rises over a tenth of the steps, then falls to 0.
        head_rate: of the classifier, which is new.
        batch: rows a step.
        seed: of the classifier, the adapter, dropout and the order of rows.
    """

    method: str
    steps: int
    rate: float
    head_rate: float = 5e-3
    batch: int = 16
    seed: int = 0


@dataclass(frozen=True)
class Point:
    """A point of a run's curve.

    Args:
        step: steps done.
        core_seconds: of the processor, over the steps alone; with one thread what a core that does nothing else takes.
        seconds: on the clock, over the steps alone.
        accuracy: on what is measured on, per cent.
    """

    step: int
    core_seconds: float
    seconds: float
    accuracy: float


def whole(model: nn.Module, steps: int) -> nn.Module:
    """Every weight is learned."""
    return model


def lora(model: nn.Module, steps: int) -> nn.Module:
    """LoRA (Hu et al., 2022) of the rank and scale of the adapters that are generated."""
    from peft import LoraConfig, get_peft_model

    own = LoraConfig(task_type="SEQ_CLS", r=RANK, lora_alpha=int(RANK * SCALE), target_modules=TARGETS)
    return get_peft_model(model, own)


def adalora(model: nn.Module, steps: int) -> nn.Module:
    """AdaLoRA (Zhang et al., 2023): rank 12 at first, 8 in the mean from 70 per cent of the steps on."""
    from peft import AdaLoraConfig, get_peft_model

    times = {"tinit": steps // 10, "tfinal": 3 * steps // 10, "total_step": steps}
    own = AdaLoraConfig(
        task_type="SEQ_CLS", init_r=12, target_r=RANK, lora_alpha=int(RANK * SCALE), target_modules=TARGETS, **times
    )
    return get_peft_model(model, own)


def fourier(model: nn.Module, steps: int) -> nn.Module:
    """FourierFT (Gao et al., 2024): PEFT's 1 000 frequencies a matrix (fewer in a small one), zero at first, scale 150."""
    from peft import FourierFTConfig, get_peft_model

    count = min(1000, model.config.hidden_size**2)
    own = FourierFTConfig(task_type="SEQ_CLS", n_frequency=count, init_weights=True, target_modules=TARGETS)
    return get_peft_model(model, own)


METHODS: dict[str, Callable[[nn.Module, int], nn.Module]] = {
    "full": whole, "lora": lora, "adalora": adalora, "fourierft": fourier
}  # fmt: skip


def tuned_model(folder: Path, ways: int, config: TuneConfig) -> nn.Module:
    """The model for sequence classification of a folder in float32 with a new classifier, as the method wants it."""
    prepare_imports()
    from transformers import AutoModelForSequenceClassification

    with quiet():
        model = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=ways, dtype=torch.float32)
    return METHODS[config.method](model, config.steps)


def tune(folder: Path, ways: int, train: Part, test: Part, config: TuneConfig) -> dict:
    """One run and its curve.

    Returns:
        `config`, `learned` (weights that are learned) and `curve`, a list of `Point`s as dictionaries.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        model = tuned_model(folder, ways, config)
        learned = sum(weight.numel() for weight in model.parameters() if weight.requires_grad)
        curve = [asdict(point) for point in _curve(model, train, test, config)]
    return {"config": asdict(config), "learned": learned, "curve": curve}


def _curve(model: nn.Module, train: Part, test: Part, config: TuneConfig) -> Iterator[Point]:
    optimiser, schedule = optimisers(model, config)
    batches, core, clock, marks = shuffled(train, config), 0.0, 0.0, list(MARKS)
    ends = {max(round(share * config.steps), 1) for share in SHARES}
    for step in range(1, config.steps + 1):
        batch = next(batches)
        model.train()
        began = time.process_time(), time.perf_counter()
        take_step(model, batch, optimiser, step)
        schedule.step()
        core, clock = core + time.process_time() - began[0], clock + time.perf_counter() - began[1]
        passed = [mark for mark in marks if core >= mark]
        if passed or step in ends:
            marks = [mark for mark in marks if mark not in passed]
            yield Point(step, round(core, 3), round(clock, 3), percent(answers(model, test), test.labels))


def optimisers(model: nn.Module, config: TuneConfig) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
    """AdamW with a rate for the classifier and one for the rest, and its schedule."""
    groups: dict[bool, list[Tensor]] = {True: [], False: []}
    for name, weight in model.named_parameters():
        if weight.requires_grad:
            groups["classifier" in name].append(weight)
    rates = [{"params": groups[False], "lr": config.rate}, {"params": groups[True], "lr": config.head_rate}]
    optimiser = torch.optim.AdamW(rates, weight_decay=WEIGHT_DECAY, fused=True)
    warm = max(round(WARM_UP * config.steps), 1)

    def share(done: int) -> float:
        return min((done + 1) / warm, (config.steps - done) / max(config.steps - warm, 1))

    return optimiser, torch.optim.lr_scheduler.LambdaLR(optimiser, share)


def take_step(model: nn.Module, batch: Part, optimiser: torch.optim.Optimizer, step: int) -> float:
    """Forward, backward, AdamW; AdaLoRA then allots its ranks by the gradients. The loss, with what the method adds to it."""
    loss = model(**inputs(model, batch), labels=batch.labels).loss
    loss.backward()
    optimiser.step()
    if hasattr(model, "base_model") and hasattr(model.base_model, "update_and_allocate"):
        model.base_model.update_and_allocate(step)
    optimiser.zero_grad()
    return loss.item()


def inputs(model: nn.Module, part: Part) -> dict[str, Tensor]:
    """Tokens by the names that BERT's and RoBERTa's `forward` has for them; RoBERTa knows one kind alone."""
    kinds = part.tokens.kinds.clamp_max(model.config.type_vocab_size - 1)
    return {"input_ids": part.tokens.ids, "token_type_ids": kinds, "attention_mask": part.tokens.mask}


def shuffled(train: Part, config: TuneConfig) -> Iterator[Part]:
    """Batches without end, each row once before any comes again."""
    rng, rows = random.Random(f"order {config.seed}"), []
    while True:
        while len(rows) < config.batch:
            rows += rng.sample(range(len(train)), len(train))
        taken, rows = rows[: config.batch], rows[config.batch :]
        yield train.take(torch.tensor(taken))


@torch.no_grad()
def answers(model: nn.Module, part: Part) -> Tensor:
    """Logits `[M, N]` of rows, read by length so that little is padded.

    Products are in bfloat16, as in all that this table stands beside (`training/adapters/fast.py`); learning is float32.
    """
    model.eval()
    order = part.tokens.mask.sum(1).argsort()
    groups = order.split(max(BATCH_TOKENS // part.tokens.mask.shape[1], 1))
    with torch.autocast("cpu", torch.bfloat16):
        found = [model(**inputs(model, part.take(rows))).logits for rows in groups]
    return torch.cat(found).float()[order.argsort()]
