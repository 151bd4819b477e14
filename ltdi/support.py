"""What a caller has of a task, checked, and the canonical order that makes answers independent of order."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from ltdi.errors import EmptySupport, InvalidFeatures, InvalidSupport, LimitExceeded, TooFewClasses
from ltdi.files import all_finite

Items = Tensor | tuple[str, ...] | tuple[tuple[str, str], ...]  # images [M, H, W], features [M, D], texts, or pairs of them


@dataclass(frozen=True)
class Limits:
    """What a bundle takes in one task."""

    max_ways: int = 64
    max_shots: int = 100
    max_examples: int = 2000
    max_unlabelled: int = 10_000


@dataclass(frozen=True)
class SupportSet:
    """A task: examples with labels, class descriptions, and an unlabelled pool; any of them may be absent.

    Build it with `SupportSet.of`, which checks everything.

    Args:
        inputs: prepared images (`[M, H, W]`, uint8), features (`[M, D]`, float32), or M texts.
        labels: the label of each example.
        classes: the rows of the head, in the caller's order; sorted labels where the caller gave none.
        descriptions: label to a name or sentence, or to its features `[D]`.
        unlabelled: items of the same kind as `inputs`, of any class or of none.
    """

    inputs: Items
    labels: tuple[str, ...]
    classes: tuple[str, ...]
    descriptions: Mapping[str, str | Tensor] | None = None
    unlabelled: Items | None = None

    @classmethod
    def of(
        cls,
        inputs: Items,
        labels: Sequence[str],
        *,
        classes: Sequence[str] | None = None,
        descriptions: Mapping[str, str | Tensor] | None = None,
        unlabelled: Items | None = None,
        limits: Limits | None = None,
    ) -> SupportSet:
        """A checked task.

        Raises:
            EmptySupport: no example and no description.
            TooFewClasses: fewer than two classes.
            InvalidSupport: labels and inputs do not match, a class has nothing, or a label is unknown.
            LimitExceeded: more than the bundle takes.
            InvalidFeatures: features that are not finite.
        """
        labels = tuple(_label(label, "labels") for label in (() if labels is None else labels))
        descriptions = {_label(label, "descriptions"): value for label, value in (descriptions or {}).items()} or None
        if classes is None:
            classes = sorted(set(labels) | set(descriptions or ()))
        support = cls(inputs, labels, tuple(_label(c, "classes") for c in classes), descriptions, unlabelled)
        support._check_shape()
        support._check_limits(limits or Limits())
        return support

    def _check_shape(self) -> None:
        if len(self.inputs) != len(self.labels):
            raise InvalidSupport(
                f"{len(self.inputs)} examples and {len(self.labels)} labels; give one label for each example",
                field="labels",
            )
        if not self.labels and not self.descriptions:
            raise EmptySupport("the support set is empty; give at least one example of each class", field="support")
        if len(set(self.classes)) != len(self.classes):
            raise InvalidSupport("a label stands twice in `classes`; name each class once", field="classes")
        if len(self.classes) < 2:
            raise TooFewClasses(
                f"the task has {len(self.classes)} class; a head separates at least two, add examples of another",
                field="support",
            )
        for label in sorted(set(self.labels) - set(self.classes)):
            raise InvalidSupport(f"label {label!r} is not among `classes`; add it or drop its examples", field="classes")
        for label in sorted(set(self.descriptions or ()) - set(self.classes)):
            raise InvalidSupport(
                f"the description of {label!r} is of none of `classes`; add the class or drop it", field="descriptions"
            )
        with_examples = set(self.labels)
        for label in self.classes:
            if label not in with_examples and label not in (self.descriptions or {}):
                raise InvalidSupport(
                    f"class {label!r} has neither an example nor a description; give it at least one", field="support"
                )
        for name, items in (("support", self.inputs), ("unlabelled", self.unlabelled)):
            if isinstance(items, Tensor) and not all_finite(items):
                raise InvalidFeatures("the features hold NaN or infinity; every number must be finite", field=name)

    def _check_limits(self, limits: Limits) -> None:
        shots = max(self.counts.tolist(), default=0)
        for what, value, most, field in (
            ("classes", self.ways, limits.max_ways, "classes"),
            ("examples of one class", shots, limits.max_shots, "support"),
            ("examples", len(self.labels), limits.max_examples, "support"),
            ("unlabelled items", 0 if self.unlabelled is None else len(self.unlabelled), limits.max_unlabelled,
             "unlabelled"),
        ):
            if value > most:
                raise LimitExceeded(f"the task has {value} {what}; this bundle takes at most {most}", field=field)

    @property
    def ways(self) -> int:
        """N, the number of classes."""
        return len(self.classes)

    @cached_property
    def texts(self) -> tuple[str, ...]:
        """Its different texts, in the order in which they stand in examples, descriptions and pool."""
        parts = (self.inputs, tuple((self.descriptions or {}).values()), self.unlabelled)
        items = [item for part in parts if isinstance(part, tuple) for item in part]
        return tuple(dict.fromkeys(item for item in items if isinstance(item, str)))

    @cached_property
    def class_index(self) -> Tensor:
        """The row of each example's class: `[M]`, integer."""
        row = {label: i for i, label in enumerate(self.classes)}
        return torch.tensor([row[label] for label in self.labels], dtype=torch.long)

    @cached_property
    def counts(self) -> Tensor:
        """Examples of each class: `[N]`, integer."""
        return torch.bincount(self.class_index, minlength=self.ways)

    @cached_property
    def canonical(self) -> CanonicalTask:
        """The same task in an order that follows from content alone."""
        return _canonical(self)


@dataclass(frozen=True)
class CanonicalTask:
    """Examples and classes in canonical order: by digest of their content, never by label.

    Args:
        example_order: `[M]`, which of the caller's examples stands at each place; class by class.
        class_order: `[N]`, which of the caller's classes stands at each place.
        class_index: `[M]`, the canonical class of each example in canonical order, ascending.
        noise_row: `[N]`, which row of noise each class takes; classes of equal content share one.
        digest: of the content of the task, hexadecimal.
        pool_order: `[U]`, which of the caller's unlabelled items stands at each place.
    """

    example_order: Tensor
    class_order: Tensor
    class_index: Tensor
    noise_row: Tensor
    digest: str
    pool_order: Tensor

    @cached_property
    def restore(self) -> Tensor:
        """`[N]`: `rows[restore]` puts canonical rows back into the caller's order; equal classes get equal rows."""
        return self.noise_row[torch.argsort(self.class_order)]


def _canonical(support: SupportSet) -> CanonicalTask:
    examples = _digests(support.inputs)
    members: list[list[int]] = [[] for _ in support.classes]
    for example, row in enumerate(support.class_index.tolist()):
        members[row].append(example)
    for row in members:
        row.sort(key=examples.__getitem__)
    contents = [
        _digest(*(examples[e] for e in row), _content((support.descriptions or {}).get(label, "")))
        for row, label in zip(members, support.classes, strict=True)
    ]
    order = sorted(range(support.ways), key=contents.__getitem__)
    first: dict[bytes, int] = {}
    noise_row = [first.setdefault(contents[row], place) for place, row in enumerate(order)]
    pool = _digests(support.unlabelled) if support.unlabelled is not None else []
    pool_order = sorted(range(len(pool)), key=pool.__getitem__)
    return CanonicalTask(
        example_order=torch.tensor([e for row in order for e in members[row]], dtype=torch.long),
        class_order=torch.tensor(order),
        class_index=torch.tensor([place for place, row in enumerate(order) for _ in members[row]], dtype=torch.long),
        noise_row=torch.tensor(noise_row),
        digest=_digest(*(contents[row] for row in order), *sorted(pool)).hex(),
        pool_order=torch.tensor(pool_order, dtype=torch.long),
    )


def take(items: Items, order: Tensor) -> Items:
    """The items at the places `order`."""
    return items[order] if isinstance(items, Tensor) else tuple(items[i] for i in order.tolist())


def _digests(items: Items) -> list[bytes]:
    rows = items.contiguous().numpy() if isinstance(items, Tensor) else items
    return [_digest(_content(row)) for row in rows]


def _content(item: Any) -> bytes:
    """The bytes that tell an item from others."""
    if isinstance(item, str):
        return item.encode()
    if isinstance(item, tuple):
        return b"".join(len(text.encode()).to_bytes(8, "little") + text.encode() for text in item)
    return (item.contiguous().numpy() if isinstance(item, Tensor) else item).tobytes()


def _digest(*parts: bytes) -> bytes:
    hasher = hashlib.blake2b(digest_size=16)
    for part in parts:
        hasher.update(len(part).to_bytes(8, "little"))
        hasher.update(part)
    return hasher.digest()


def encodable(text: str) -> bool:
    """Whether a file can hold it: half a surrogate pair cannot be encoded."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _label(label: object, field: str) -> str:
    if not isinstance(label, str):
        raise InvalidSupport(f"label {label!r} is a {type(label).__name__}; labels are strings", field=field)
    if not encodable(label):
        raise InvalidSupport(f"label {label!r} holds half a surrogate pair; labels are Unicode text", field=field)
    return label
