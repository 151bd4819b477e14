"""What `ltdi evaluate` has measured, for the figures that read its tables in place of measuring again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ltdi.errors import DataMissing

RESULTS = Path(__file__).parents[2] / "results"
TRANSFERS = (("mini-imagenet", "cifar10"), ("mini-imagenet", "pacs"), ("omniglot", "kannada"), ("omniglot", "digits"))
WITHOUT_LABELS = {"names": "names", "names and unlabelled texts": "all"}  # what a head is made from, and how the table of texts calls it
NO_EXAMPLES = {"shots": 0, "raw_labels": False}

Estimate = dict[str, float]


def table(name: str, command: str, folder: Path = RESULTS) -> dict[str, Any]:
    """A table of `results`.

    Raises:
        DataMissing: it is not there; `command` makes it.
    """
    path = folder / f"{name}.json"
    if not path.exists():
        raise DataMissing(f"no {path.name}; make it by `{command}`")
    return json.loads(path.read_text(encoding="utf-8"))


def without_labels(bundle: str, folder: Path = RESULTS) -> dict[str, list[dict[str, Any]]]:
    """Heads for left-out sets of texts from no labelled item, by what they are made from.

    Returns:
        For each of `WITHOUT_LABELS` a row for each set: classes, accuracy generated and of the best closed form with the same
        information, self-training among them, and their paired difference with its interval, in points.
    """
    cells = table(bundle, f"ltdi evaluate --config {bundle}", folder)["cells"]
    return {kind: [_cell(cell) for cell in cells if _matches(cell, information)] for kind, information in WITHOUT_LABELS.items()}


def _matches(cell: dict[str, Any], information: str) -> bool:
    return all(cell[key] == value for key, value in ({"information": information} | NO_EXAMPLES).items())


def _cell(cell: dict[str, Any]) -> dict[str, Any]:
    return {
        "set": cell["set"], "ways": cell["ways"], "pool": cell["pool"], "generated": cell["generated"], "closed_form": cell["strict"],
        "difference": cell["difference_strict"],
    }  # fmt: skip


def transfers(folder: Path = RESULTS) -> list[dict[str, Any]]:
    """Generators of images as they were trained, few-shot on sets of other images, nothing chosen there: a row for each protocol.

    Returns:
        Accuracy of the generated head, of it without the chain and of the closed form that the source's validation classes choose;
        differences to that one, a seed each, and to the best that sees views of the examples too, as the generator does, seed 0.
    """
    found = []
    for source, on in TRANSFERS:
        columns = table(f"{source}-on-{on}", f"ltdi evaluate --config {source} --on {on}", folder)["columns"]
        found += [{"from": source, "to": on, **_column(column)} for column in columns]
    return found


def _column(column: dict[str, Any]) -> dict[str, Any]:
    accuracy = {name: value["mean"] for name, value in column["accuracy"].items()}
    closed, on_views = column["closed_form"], column["closed_form_on_views"]
    return {
        "protocol": column["protocol"], "generated": _over_seeds(accuracy, "generated"), "no_chain": accuracy["estimated means, no chain"],
        "closed_form": {"name": closed, "accuracy": accuracy[closed]}, "difference_by_seed": column["difference_by_seed"],
        "on_views": {"name": on_views, "accuracy": accuracy[on_views], "difference": column["difference_on_views"]},
    }  # fmt: skip


def left_out_domains(folder: Path = RESULTS) -> dict[str, Any]:
    """PACS, each domain left out in turn: a row for each domain and number of examples, and the mean difference by examples.

    Returns:
        `rows` with accuracies over the training seeds, generated, without the chain, and of the closed form that inner problems choose,
        differences to it a seed each, and what the chain adds; `mean`, by examples a class and then by seed or `all`.
    """
    found = table("pacs", "ltdi evaluate --config pacs", folder)
    return {"rows": [_domain(row) for row in found["rows"]], "mean": found["mean_difference"]}


def _domain(row: dict[str, Any]) -> dict[str, Any]:
    accuracy = {name: value["mean"] for name, value in row["accuracy"].items()}
    alone = [value for name, value in row["validation"].items() if name.startswith("examples:")]
    return {
        "domain": row["domain"], "shots": row["shots"], "generated": _over_seeds(accuracy, "generated"),
        "no_chain": _over_seeds(accuracy, "estimated means, no chain"), "chain_adds": row["beyond_estimate"],
        "closed_form": {"name": row["closed_form"], "accuracy": accuracy[row["closed_form"]]},
        "inner": {"closed_form": row["validation"][row["closed_form"]], "examples alone": max(alone)},
        "difference_by_seed": row["difference_by_seed"],
    }  # fmt: skip


def _over_seeds(accuracy: dict[str, float], name: str) -> float:
    found = [value for key, value in accuracy.items() if key.startswith(f"{name}, seed ")]
    return sum(found) / len(found)


def seeds_text(by_seed: dict[str, Estimate]) -> str:
    """`+0.31, +0.30, +0.33 ± 0.18`, each seed's difference with the widest interval."""
    means = ", ".join(f"{found['mean']:+.2f}" for found in by_seed.values())
    return f"{means} ± {max(found['half_width'] for found in by_seed.values()):.2f}"


def seeds_sign(by_seed: dict[str, Estimate]) -> int:
    """1 or -1 where the whole interval of every seed lies on one side of 0, else 0."""
    ways = {0 if abs(found["mean"]) <= found["half_width"] else (1 if found["mean"] > 0 else -1) for found in by_seed.values()}
    return ways.pop() if len(ways) == 1 else 0
