"""The model card of a bundle of adapters."""

from __future__ import annotations

from collections.abc import Mapping

from training.cards import WHY_DEFAULTS
from training.runs import commit

TERMS = (
    "the sets' own: CLINC150 (CC BY 3.0), HINT3 (ODbL 1.0), TweetEval, SciCite, ACL-ARC, STS-B, GLUE sets, MR, SUBJ, CR, MPQA, TREC, "
    "SNIPS, ATIS, AG News and StackOverflow titles as research sets"
)
SHOWN = (
    "frozen body", "mean training LoRA", "multi-task LoRA", "picked training LoRA", "retrieved training LoRA",
    "names hidden", "condition of another task",
)  # fmt: skip


def card_of(name: str, digest: str, base: str, stored: int, table: Mapping) -> dict:
    """The card, JSON-ready; `text` is what a person reads.

    Args:
        stored: tasks in the bank.
        table: what `training.adapters.table.make_table` says.
    """
    mean = {title: row["mean"] for title, row in table["accuracy"].items()}
    less = table["less"]["generated"]
    lines = [f"| generated | {mean['generated']:.1f} | |"]
    for title in SHOWN:
        said = less[title]
        lines.append(
            f"| {title} | {mean[title]:.1f} | {said['mean']:+.1f} ± {said['interval']:.1f}, ahead on {said['above']} of {said['tasks']} |"
        )
    text = f"""# Bundle `{name}`

Makes LoRA adapters (r = 8, query and value) of {base} with their classification head, from labelled English texts or pairs of
texts and the names of their classes: it weighs the adapters of {stored} stored tasks. Items of up to 128 tokens; the stored
adapters were fitted on items cut at 40. Of the rows below, what is generated and what is retrieved are
told the names, the others are not; that the first is better than the second is not shown.
Terms of the training data: {TERMS}.

The table is of generators that never saw the task, nor any of the same source ({less["frozen body"]["tasks"]} tasks left out in four
folds, 16 examples a class, three draws, at most 200 test items; percent). The bundle itself knows all tasks.

| | accuracy | generated less it |
|---|---|---|
{chr(10).join(lines)}

It is worth most where a stored task is related: sentiment, kinds of questions, topics of short requests. On pairs of texts
(inference, paraphrase) and on grammar it is no better than chance allows to say. English alone.

{WHY_DEFAULTS}"""
    return {
        "bundle_digest": digest, "config": "adapters", "recipe": "lora", "terms": TERMS, "commit": commit(),
        "accuracy": {
            "left-out tasks, 16 examples a class": {
                "generated": {"mean": mean["generated"]},
                "closed_form": {"mean": mean["frozen body"], "name": "frozen body"},
                "difference": {"mean": less["frozen body"]["mean"]},
            }
        },
        "rows": mean, "less": less, "text": text,
    }  # fmt: skip
