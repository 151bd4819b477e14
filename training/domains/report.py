"""The page of an experiment of domains."""

from __future__ import annotations


def markdown_report(result: dict) -> str:
    """The table of differences, and under it the accuracy of every method for each domain and number of examples."""
    lines = [f"# {result['config']}", "", *card(result), "", *difference_table(result), "", *accuracy_tables(result)]
    return "\n".join(lines) + "\n"


def card(result: dict) -> list[str]:
    """What was trained on what, under which terms, and where it fails."""
    behind = [f"{row['domain']} at {row['shots']}" for row in result["rows"] if row["difference_by_seed"]["0"]["mean"] < 0]
    return [
        f"Data and terms: {result['terms']}. No bundle ships.", "",
        "Bodies, closed forms and generators of a row know every domain but the one left out, whose images fit nothing; "
        "settings come from inner problems, each of the other domains under a body that has not seen it. Tasks are of five of the "
        "known classes: for classes that are not among them this says nothing.", "",
        f"Behind the best closed form: {', '.join(behind) + ' examples a class' if behind else 'nowhere'}.",
    ]  # fmt: skip


def difference_table(result: dict) -> list[str]:
    """A row for each left-out domain and their mean: generated, best closed form, and the difference by seed."""
    lines = [
        "| left out | examples | generated | best closed form with the same information | difference, three seeds | best of all on test instead |",
        "|---|---|---|---|---|---|",
    ]
    for row in result["rows"]:
        accuracy = row["accuracy"]
        closed = f"{accuracy[row['closed_form']]['mean']:.1f}, {row['closed_form']}"
        lines.append(
            f"| {row['domain']} | {row['shots']} | {_told(_generated(row))} | {closed} | {_by_seed(row['difference_by_seed'])} | "
            f"{_by_seed(row['best_on_test']['difference_by_seed'])} |"
        )
    for shots, means in result["mean_difference"].items():
        by_seed = {seed: value for seed, value in means.items() if seed != "all"}
        lines.append(f"| **mean** | {shots} | | | {_by_seed(by_seed)}; all seeds **{_signed(means['all'])}** | |")
    return lines


def accuracy_tables(result: dict) -> list[str]:
    """Every family of closed forms at the setting that validation chose."""
    lines = []
    for row in result["rows"]:
        lines += [
            f"## {row['domain']}, 5-way, {row['shots']} example{'s' * (row['shots'] > 1)}", "",
            f"{row['episodes']} tasks; closed forms in the order of the inner problems.", "",
            "| method | accuracy | on inner problems |", "|---|---|---|",
        ]  # fmt: skip
        for name, value in row["accuracy"].items():
            chosen = f"{row['validation'][name]:.1f}" if name in row["validation"] else ""
            lines.append(f"| {name} | {_told(value)} | {chosen} |")
        far = {name: value for name, value in row["validation"].items() if name not in row["accuracy"]}
        lines += [f"| {name} | not measured, far behind | {value:.1f} |" for name, value in far.items()]
        lines.append("")
    return lines


def _generated(row: dict) -> dict:
    return next(value for name, value in row["accuracy"].items() if name.startswith("generated"))


def _by_seed(values: dict[str, dict]) -> str:
    return ", ".join(_signed(value) for value in values.values())


def _told(value: dict) -> str:
    return f"{value['mean']:.1f} ± {value['half_width']:.1f}"


def _signed(value: dict) -> str:
    return f"{value['mean']:+.2f} ± {value['half_width']:.2f}"
