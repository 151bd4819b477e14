"""The model card of a bundle, and tables as Markdown."""

from __future__ import annotations

from ltdi.bundle import Bundle
from training.configs.experiment import Experiment

WHY_DEFAULTS = (
    "Why the steps, segments, schedule and weight preparation are what they are, and where a measurement speaks against them: "
    "`docs/evidence.md#the-defaults-of-the-shipped-bundles`."
)


def card_of(experiment: Experiment, bundle: Bundle, result: dict, by_eq2_weight: dict[str, list[dict]]) -> dict:
    """What a user should know of a bundle, with the figures of `ltdi evaluate`.

    Args:
        by_eq2_weight: columns on validation classes of generators that differ in the weight of Eq. 2 alone.

    Returns:
        JSON-ready: `bundle_digest`, `accuracy` by protocol (generated, closed form, difference), the differences on
        validation by weight of Eq. 2, and `text`.
    """
    measured = {
        column["protocol"]: {
            "generated": column["accuracy"]["generated, seed 0"],
            "closed_form": column["accuracy"][column["closed_form"]] | {"name": column["closed_form"]},
            "difference": column["difference"],
        }
        for column in result["columns"]
    }
    return {
        "bundle_digest": bundle.digest,
        "config": experiment.name,
        "recipe": experiment.recipe,
        "data": experiment.data,
        "terms": experiment.terms,
        "commit": result["commit"],
        "accuracy": measured,
        "validation_difference_by_eq2_weight": {
            weight: {column["protocol"]: column["difference"] for column in columns}
            for weight, columns in by_eq2_weight.items()
        },
        "text": _text(experiment, bundle),
    }


def _text(experiment: Experiment, bundle: Bundle) -> str:
    ways = f"{bundle.fixed_ways}" if bundle.fixed_ways else f"2 to {bundle.limits.max_ways}"
    return (
        f"# Bundle `{bundle.name}`\n\n"
        f"Recipe `{experiment.recipe}`, {ways} classes, body {bundle.config.body.name} "
        f"({bundle.feature_size} features). Trained on {experiment.terms or experiment.data}: {experiment.trained_on}\n\n"
        f"{experiment.limits}\n\n{WHY_DEFAULTS}"
    )


def eq2_table(by_weight: dict[str, list[dict]]) -> str:
    """Paired differences to the best closed form on validation classes, a row for each weight of Eq. 2."""
    names = [column["protocol"] for column in next(iter(by_weight.values()))]
    rows = [["weight of Eq. 2", *names], ["---"] * (len(names) + 1)]
    rows += [[weight, *(_signed(c["difference"]) for c in columns)] for weight, columns in by_weight.items()]
    return _rows(rows)


def markdown_table(columns: list[dict]) -> str:
    """Accuracies and paired differences, percent, with 95 % intervals; a column for each protocol."""
    names = [c["protocol"] for c in columns]
    rows = [["", *names], ["---"] * (len(names) + 1)]
    rows.append(["generated head", *(_estimate(c["accuracy"]["generated, seed 0"]) for c in columns)])
    rows.append(["best closed form", *(_estimate(c["accuracy"][c["closed_form"]]) for c in columns)])
    rows.append(["which", *(c["closed_form"] for c in columns)])
    rows.append(["difference, paired", *(_signed(c["difference"]) for c in columns)])
    for seed in sorted({s for c in columns for s in c["difference_by_seed"]} - {"0"}):
        rows.append([f"difference, training seed {seed}", *(_signed(c["difference_by_seed"][seed]) for c in columns)])
    rows.append(["errors removed", *(f"{100 * c['errors_removed']:.1f} %" for c in columns)])
    if "beyond_estimate" in columns[0]:
        rows.append(["of it by the chain, beyond the estimated means", *(_signed(c["beyond_estimate"]) for c in columns)])
    if "closed_form_on_views" in columns[0]:
        on_views = [c["accuracy"][c["closed_form_on_views"]] for c in columns]
        rows.append(["best closed form on views too", *map(_estimate, on_views)])
        rows.append(["which", *(c["closed_form_on_views"] for c in columns)])
        rows.append(["difference to it, paired", *(_signed(c["difference_on_views"]) for c in columns)])
        rows.append(["generated from features alone", *(_estimate(c["accuracy"]["generated from features"]) for c in columns)])
        rows.append(["difference to the best closed form", *(_signed(c["from_features"]) for c in columns)])
    for key, bar in (("strict", "of these, views or not"), ("rival", "on a body trained for class means")):
        if key in columns[0]:
            found = [c[key] for c in columns]
            rows.append([f"best closed form {bar}", *(one["closed_form"] for one in found)])
            if key == "rival":
                rows.append(["its accuracy", *(_estimate(one["accuracy"]) for one in found)])
            for seed in found[0]["difference_by_seed"]:
                label = f"difference to it, training seed {seed}"
                rows.append([label, *(_signed(one["difference_by_seed"][seed]) for one in found)])
    return _rows(rows)


def controls_table(controls: dict[str, dict[str, dict]]) -> str:
    """Accuracies of negative controls, percent; a column for each protocol."""
    names = list(controls)
    rows = [["", *names], ["---"] * (len(names) + 1)]
    rows += [[label, *(_estimate(controls[name][label]) for name in names)] for label in controls[names[0]]]
    return _rows(rows)


def pool_table(rows: list[dict]) -> str:
    """Tasks with a pool, a row for each kind of it: accuracies and paired differences, percent."""
    seeds = list(rows[0]["difference_by_seed"])
    names = [name for name in rows[0]["accuracy"] if not name.startswith("seed")]
    against = [f"minus {names[1]}, seed {seed}" for seed in seeds] + [f"minus {names[0]}, seed {seed}" for seed in seeds]
    table = [["", "generated", *names, *against]]
    table.append(["---"] * len(table[0]))
    for row in rows:
        pool, accuracy = row["pool"], row["accuracy"]
        kind = f"{pool['size']} items, {'balanced' if pool['even'] else 'unbalanced'}"
        kind += f", {pool['polluted']:.0%} of other classes" if pool["polluted"] else ""
        differences = [row[key][seed] for key in ("difference_by_seed", "difference_to_plain_by_seed") for seed in seeds]
        shown = [_estimate(accuracy[name]) for name in (f"seed {seeds[0]}", *names)]
        table.append([f"{row['protocol']}, {kind}", *shown, *map(_signed, differences)])
    return _rows(table)


def _rows(rows: list[list[str]]) -> str:
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def _estimate(value: dict) -> str:
    return f"{value['mean']:.2f} ± {value['half_width']:.2f}"


def _signed(value: dict) -> str:
    return f"{value['mean']:+.2f} ± {value['half_width']:.2f}"
