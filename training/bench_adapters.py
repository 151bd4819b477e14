"""Times one generated LoRA adapter against the gradient steps that PEFT would take on the same examples."""

from __future__ import annotations

import platform
import random
from collections.abc import Callable

import torch
from torch.nn import functional as F

from ltdi.adapters.bundle import AdapterBundle
from ltdi.adapters.imports import prepare_imports
from training.bench import interleaved

WAYS, SHOTS, BATCH = (2, 6), 16, 16
STEPS, TIMED = 100, 5  # gradient steps of a usual few-shot run, and how many of them are timed
WORDS = ["the", "a", "this", "that", "film", "story", "card", "money", "order", "service", "answer", "was", "is", "seems", "looks", "good", "bad", "slow", "quick", "warm", "cold", "late", "early", "broken", "lovely", "dull", "bright", "because", "although", "when", "where", "nobody", "everybody", "again", "never", "always", "really", "quite", "of", "with", "without"]


def made_texts(ways: int, shots: int, seed: int = 0) -> tuple[list[str], list[str]]:
    """Texts of 8 to 30 words, about 20 in the mean, and labels, class by class."""
    draw = random.Random(seed)
    texts = [" ".join(draw.choices(WORDS, k=draw.randint(8, 30))) for _ in range(ways * shots)]
    return texts, [f"class {n}" for n in range(ways) for _ in range(shots)]


def gradient_steps(bundle: AdapterBundle, texts: list[str], labels: list[str]) -> Callable[[], object]:
    """`TIMED` Adam steps of a PEFT LoRA of the same rank on the same modules, `BATCH` texts each."""
    prepare_imports()
    from peft import LoraConfig, get_peft_model

    config, classes = bundle.config, sorted(set(labels))
    lora = LoraConfig(
        task_type="SEQ_CLS", r=config.r, lora_alpha=config.lora_alpha, target_modules=list(config.target.target_modules)
    )
    model = get_peft_model(bundle.body.with_head(len(classes)), lora).train()
    optimiser = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    tokens = bundle.body.tokens(texts[:: max(len(texts) // BATCH, 1)][:BATCH])
    target = torch.tensor([classes.index(label) for label in labels[:: max(len(labels) // BATCH, 1)][:BATCH]])

    def run() -> None:
        for _ in range(TIMED):
            optimiser.zero_grad()
            F.cross_entropy(model(**tokens).logits, target).backward()
            optimiser.step()

    return run


def bench_adapters(bundle: AdapterBundle, rounds: int = 10) -> dict:
    """p50 and p95 in ms of a checked adapter, of one without folds, and of PEFT's steps; JSON-ready."""
    jobs: dict[str, Callable[[], object]] = {}
    for ways in WAYS:
        texts, labels = made_texts(ways, SHOTS)
        name = f"{ways} classes, {SHOTS} texts each"
        jobs |= {
            f"generate, {name}": lambda t=texts, c=labels: bundle.generate(t, c),
            f"generate without folds, {name}": lambda t=texts, c=labels: bundle.generate(t, c, check=False),
            f"{TIMED} steps of PEFT's LoRA, {name}": gradient_steps(bundle, texts, labels),
        }
    times = interleaved(jobs, rounds)
    for ways in WAYS:
        name = f"{ways} classes, {SHOTS} texts each"
        gradient = times[f"{TIMED} steps of PEFT's LoRA, {name}"]["p50_ms"] * STEPS / TIMED
        times[f"{STEPS} steps of PEFT's LoRA by a generated adapter, {name}"] = {
            "ratio": round(gradient / times[f"generate, {name}"]["p50_ms"], 1)
        }
    return {
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}",
        "device": str(bundle.device),
        "one_adapter": times,
    }
