"""What a bundle has to prove before it serves: it generates and embeds, and neighbours in a batch change no byte."""

from __future__ import annotations

from typing import Any

import torch

from ltdi import Bundle, HeadRequest, LtDiError, Options

WAYS, SHOTS, TASKS = 5, 2, 4
WORDS = ("money", "card", "parcel", "balance", "address", "my", "the", "lost", "where", "late")


class SelfTestFailed(LtDiError):
    """A bundle that must not serve; the message says why."""

    code = "self-test-failed"


def self_test(bundle: Bundle, max_batch: int) -> None:
    """Prove a bundle on small tasks of what callers send; afterwards its first caller does not pay for first calls.

    Heads are generated without a fallback, which proves that they are finite and survive their own file.
    Torch works on one thread here, as it does where requests are answered: with more, the bytes of a head may depend
    on the batch.

    Args:
        max_batch: how many tasks the service samples together; where it is 1, no batch is tried.

    Raises:
        LtDiError: why it must not serve.
    """
    torch.set_num_threads(1)
    if bundle.kind == "lora":
        if bundle.body.installed:  # one adapter, which loads the base model and checks itself; they are made one by one
            bundle.generate_many([_request(bundle, 0)])
        return
    requests = [_request(bundle, seed) for seed in range(TASKS)]
    together = bundle.generate_many(requests) if max_batch > 1 else []
    for request, head in zip(requests, together, strict=False):
        (alone,) = bundle.generate_many([request])
        if alone.to_bytes() != head.to_bytes():
            raise SelfTestFailed(
                "a task gives other bytes in a batch than alone on this device; set max_batch to 1 to serve without batches"
            )
    if not together:
        bundle.generate_many(requests[:1])
    bundle.embed(_inputs(bundle, WAYS, seed=0))


def _request(bundle: Bundle, seed: int) -> HeadRequest:
    limits = bundle.limits
    ways = bundle.fixed_ways or min(WAYS, limits.max_ways)
    shots = max(1, min(SHOTS, limits.max_shots, limits.max_examples // ways))
    pooled = bundle.takes_descriptions or (bundle.takes_pool and seed % 2)  # else they go one by one, and no batch is proven
    size = min(5 * ways, limits.max_unlabelled) if pooled else 0
    pool = _inputs(bundle, size, seed=seed + TASKS) if size else None
    labels = [f"class {i % ways}" for i in range(shots * ways)]
    support = bundle.support(_inputs(bundle, shots * ways, seed=seed), labels, unlabelled=pool)
    return HeadRequest(support, Options(seed=seed, fallback="none"))


def _inputs(bundle: Bundle, count: int, *, seed: int) -> Any:
    """Drawings, texts or features, whatever the bundle reads here."""
    dice = torch.Generator().manual_seed(seed)
    if bundle.body.kind == "images":
        size = bundle.config.body.image_size
        return torch.randint(0, 256, (count, size, size), dtype=torch.uint8, generator=dice)
    if bundle.body.kind == "text" and bundle.body.installed:
        rows = torch.randint(0, len(WORDS), (count, 6), generator=dice).tolist()
        return [" ".join(WORDS[i] for i in row) for row in rows]
    return torch.randn(count, bundle.feature_size or 64, generator=dice)
