"""Table 4: tasks of a domain that was left out, read from the table of the config `pacs`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from training.figures import plots
from training.figures.evaluated import left_out_domains, seeds_sign, seeds_text
from training.figures.published import DOMAIN_NET
from training.figures.record import Claim, counted
from training.figures.setting import Setting

MOST_SEEDS = 0  # none of the laboratory's
TITLE = "a domain left out, PACS in place of DomainNet"
PAPER = "trained on five domains of DomainNet and tested on sketches, Lt-Di is above direct learning, other generators and Lv-Di."
MADE = "`ltdi figure table4` reads it from `results/pacs.json`, made by `ltdi evaluate --config pacs`: 3 seeds, 2000 tasks a row"


def measure(setting: Setting) -> dict[str, Any]:
    """Each of PACS's domains left out in turn, 5-way, as `ltdi evaluate --config pacs` has measured it."""
    return left_out_domains()


def budget(setting: Setting) -> None:
    """None of the laboratory's: that of `ltdi evaluate --config pacs` stands in `results/pacs.json`."""


def draw(values: dict[str, Any], path: Path) -> None:
    """Differences to the closed form, each seed a point with its interval over tasks."""
    figure, (axis,) = plots.panels(1, width=7)
    for place, row in enumerate(values["rows"]):
        for number, found in enumerate(row["difference_by_seed"].values()):
            axis.errorbar(found["mean"], place + 0.15 * (number - 1), xerr=found["half_width"], fmt="o", ms=4, capsize=2, color=plots.TRAJECTORY)
    axis.set_yticks(range(len(values["rows"])), [f"{row['domain']}, {row['shots']}" for row in values["rows"]], fontsize=8)
    axis.invert_yaxis()
    axis.axvline(0, color=plots.GREY, lw=1)
    axis.set_xlabel("generated, less the closed form with the same information, points")
    plots.save(figure, path)


def see(values: dict[str, Any]) -> list[str]:
    """What the page says."""
    lines = [
        "Few-shot tasks of five known classes in a domain that body, generator and closed forms have never seen. All of them know the other three "
        "domains; closed forms and their settings are chosen on inner problems, each of those domains left out in turn. `results/pacs.md` has every "
        "one of them.", "",
        "| left out, examples a class | generated | without the chain | closed form that inner problems choose | difference, three seeds | "
        "inner problems: that closed form, the best from the examples alone |", "|---" * 6 + "|",
    ]  # fmt: skip
    for row in values["rows"]:
        inner = row["inner"]
        lines.append(
            f"| {row['domain']}, {row['shots']} | {row['generated']:.2f} | {row['no_chain']:.2f} | {row['closed_form']['accuracy']:.2f} | "
            f"{seeds_text(row['difference_by_seed'])} | {inner['closed_form']:.1f}, {inner['examples alone']:.1f} |"
        )
    for shots, found in values["mean"].items():
        lines.append(f"| **mean**, {shots} | | | | **{found['all']['mean']:+.2f} ± {found['all']['half_width']:.2f}** | |")
    lines += ["", "| printed, DomainNet, ResNet-12 | 5-way 1-shot | 20-way 5-shot |", "|---|---|---|"]
    return lines + [f"| {name} | {one:.2f} | {five:.2f} |" for name, (one, five) in DOMAIN_NET.items()]


def claims(values: dict[str, Any]) -> list[Claim]:
    """Those of section 4.2.3: above direct learning, and what the chain is worth."""
    rows = values["rows"]
    signs = [seeds_sign(row["difference_by_seed"]) for row in rows]
    means = "; ".join(f"in the mean {found['all']['mean']:+.2f} ± {found['all']['half_width']:.2f} at {shots}" for shots, found in values["mean"].items())
    why = f"PACS, against the closed form with the same information: {_named(rows, signs, 1)} above, {_named(rows, signs, -1)} below in every seed; {means}"
    first = Claim("4.2.3", "generated heads are above direct learning in a domain that was left out", counted(signs), why)
    chain = [seeds_sign({"0": row["chain_adds"]}) for row in rows]
    adds = [row["chain_adds"]["mean"] for row in rows]
    why = (
        f"PACS, seed 0, against the same estimate of class means without a chain: {min(adds):+.2f} to {max(adds):+.2f} points; above 0 on "
        f"{_named(rows, chain, 1)}, below on {_named(rows, chain, -1)}; Lv-Di was not trained there"
    )
    return [first, Claim("4.2.3", "learning the trajectory improves it further", counted(chain), why)]


def _named(rows: list[dict[str, Any]], signs: list[int], way: int) -> str:
    return ", ".join(f"{row['domain']} at {row['shots']}" for row, found in zip(rows, signs, strict=True) if found == way) or "none"
