"""The page of evidence, written from the figures' JSON files, so that its numbers are theirs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from training.figures.defaults import defaults
from training.figures.record import Claim, has_record, read_record
from training.figures.registry import FIGURES

EVIDENCE = "evidence"
HEAD = """\
# The paper's evidence, redone

What of "Learning to Learn Weight Generation via Trajectory Diffusion" we could confirm, at the scale of one processor core. What was
measured for this page is read from `results/figures/NAME.json` (seeds, commit and budget inside), what bundles have and do from their files and tables, by
`ltdi figure evidence`; a test holds page and files together. Figures of other papers are printed beside them as such.

**The laboratory.** Omniglot, split of Vinyals et al., with the frozen Conv-4 of the bundle `omniglot`, and mini-ImageNet, split of Ravi and
Larochelle, with the frozen Conv-4 of the config `mini-imagenet`; 64 principal components of their 256 features. A head is one linear layer
on them, 5 x 65 weights. Its optimum is the minimum of cross entropy over all 20 drawings of each class (100 photographs) plus weight
decay: one point, since that is strongly convex, reached by 60 steps of gradient descent from a Gaussian start as wide as the optima themselves. The generator sees the class means of the examples. It is trained by Eq. 2 on
3000 tasks of training classes, and sampled by Eq. 1; *Lv-Di* is m = 1, *Lt-Di* m = 3 unless said otherwise, T = 20, cosine
schedule. Every generator has the same network and budget, 600 batches of 64 tasks, a few seconds of one core, but for [budget](#budget). Errors are
mean squares of standardised weights over 500 tasks of test classes: 1 is the error of the mean head, 0 the optimum.
Settings were chosen on Omniglot's validation classes, for m = 1 and m = 3 together. Each seed has tasks and starts of its own, to train on and
to measure on, the same for all methods, and one draw of x_T for each measured task (over which errors vary by less than 1e-6); "±" is Student's 95 % interval over the seeds named under each figure.

Where this is not the paper: the paper's head has two layers, its bodies are trained otherwise, its budget is GPU hours, and it
trains by REPTILE. The denoiser here is a small network over the rows of a head, not a U-Net; where the U-Net was tried too,
the page says so.

**What it comes to.** Two segments in place of one bring generated heads nearer to their optima at the page's budget, on drawings and on photographs
([figure3](#figure3), [figure3-mini](#figure3-mini)), and on photographs, trained on for long, two and three are far ahead of one ([budget](#budget)). Each time it is the length of heads: multiplied by
one factor apiece, one segment is level or ahead (in one case of twelve behind two, by 0.003). Accuracy does not follow, and class means stay ahead of every generator that learns to match optima ([table1](#table1), [table1-mini](#table1-mini)).

`ltdi figure --all --data data` remakes everything whose data is there (Omniglot, mini-ImageNet, CIFAR-10, Kannada-MNIST, digits); stages are kept under `runs/figures`, and a run that was stopped goes on.
Beginning with nothing kept, it took 2 hours 10 minutes of one core, and every number came out as before to the last digit; [budget](#budget) and
[figure6-mini](#figure6-mini) came after that run; the latter took 19 minutes of one core, the former takes an estimated 70. Tables named `-gpu` are made where there is one (`--device cuda`).
"""
ELSEWHERE = (
    "| 3.1 | Theorem 1: the chain recovers x_k in T - k steps | *holds with a condition* | with the loss's minimiser that knows x_k the "
    "chain lands on every waypoint to rounding (`tests/ltdi/test_sampler.py`); a learned network knows what the examples say | |",
    "| 3.2.1 | r(i) = i T / m | *holds with a condition* | rounded: 3 does not divide 20 | |",
)
LEFT = """\
## Elsewhere, and not here

For adapters (4.2.4, Table 5) see the
[README](../README.md#adapters-of-tasks-that-were-left-out). No published
rival was run here: their figures beside [table1](#table1) are as printed.
"""


def page(folder: Path) -> str:
    """The page as Markdown, from the JSON files under `folder`; figures that have none are named as not measured yet."""
    records = {name: read_record(folder, name) for name in FIGURES if has_record(folder, name)}
    found = [(name, claim) for name, record in records.items() for claim in FIGURES[name].claims(record["values"])]
    parts = [HEAD, "## Claims of the paper\n", *_claims(found), *ELSEWHERE]
    for name in FIGURES:
        parts += ["", *(_section(name, records[name]) if name in records else _missing(name))]
    return "\n".join([*parts, "", *defaults(records), "", LEFT])


def _claims(found: list[tuple[str, Claim]]) -> list[str]:
    lines = ["| section | the paper says | here | because | figure |", "|---|---|---|---|---|"]
    return lines + [
        f"| {claim.section} | {claim.says} | *{claim.verdict}* | {claim.why} | [{name}](#{name}) |" for name, claim in found
    ]


def _missing(name: str) -> list[str]:
    device = " --device cuda" if getattr(FIGURES[name], "long", False) else ""
    return [f"## {name}", "", f"**{FIGURES[name].TITLE}.** Not measured yet: `ltdi figure {name}{device}`."]


def _section(name: str, record: dict[str, Any]) -> list[str]:
    module = FIGURES[name]
    made = getattr(module, "MADE", f"`ltdi figure {name}`, {len(record['seeds'])} seeds, {record['part']} classes")
    return [
        f"## {name}", "", f"**{module.TITLE}.** The paper: {module.PAPER}", "", *module.see(record["values"]), "",
        f"![{module.TITLE}](../results/figures/{name}.png)", "",
        f"{made}.",
    ]  # fmt: skip
