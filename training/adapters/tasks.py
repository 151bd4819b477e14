"""The tasks that adapters are trained on, and the folds in which their sources are left out."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from training.adapters.sources import Row, source_rows

MOST_TRAIN, MOST_TEST, HELD = 2000, 300, 200
LEAST_TRAIN = 20  # rows a class; 16 of them are a support set

FOLDS: tuple[tuple[str, ...], ...] = (
    ("sst2", "rte", "wnli", "tweeteval_irony", "scicite", "ag_news_small", "atis"),
    ("mr", "mrpc", "trec", "clinc150"),
    ("cr", "subj", "qnli_dev", "tweeteval_emotion", "stackoverflow20", "hint3_curekart", "hint3_powerplay11"),
    ("mpqa", "cola", "stsb", "acl_arc_citation_intent", "snips"),
)
MEASURED = (
    "sst2", "rte", "wnli", "irony", "scicite", "ag_news", "atis",
    "mr", "mrpc", "trec", "clinc-domains",
    "cr", "subj", "qnli", "emotion", "stackoverflow-tags",
    "mpqa", "cola", "stsb", "acl_arc", "snips",
)  # fmt: skip
BANKED = (  # the tasks whose adapters a bank holds: one or two a source, what other tasks may be related to
    "sst2", "irony", "scicite", "ag_news", "atis", "rte",
    "mr", "mrpc", "trec", "clinc-domains", "clinc-same",
    "cr", "subj", "qnli", "emotion", "stackoverflow-tags", "stackoverflow-same",
    "mpqa", "cola", "stsb", "acl_arc", "snips",
)  # fmt: skip

Make = Callable[[tuple[Row, ...], random.Random], Iterable[Row]]


@dataclass(frozen=True)
class TextTask:
    """A task: `train` rows to fit and to draw support sets from, `held` to watch the fit, `test` to measure.

    Args:
        name: of the task.
        source: the file that its texts come from; what is left out together.
        classes: labels in the order of the classifier's rows.
    """

    name: str
    source: str
    classes: tuple[str, ...]
    train: tuple[Row, ...]
    held: tuple[Row, ...]
    test: tuple[Row, ...]

    @property
    def pairs(self) -> bool:
        """Whether its items are pairs of texts."""
        return self.train[0].second is not None


def fold_of(source: str) -> int:
    """The fold that leaves a source out."""
    return next(i for i, fold in enumerate(FOLDS) if source in fold)


def text_tasks(data: Path, names: Iterable[str] | None = None) -> list[TextTask]:
    """All tasks, or those of these names, in the order of `RECIPES`."""
    wanted = RECIPES if names is None else {name: RECIPES[name] for name in RECIPES if name in set(names)}
    return [_build(data, name, *recipe) for name, recipe in wanted.items()]


def _build(data: Path, name: str, source: str, make: Make) -> TextTask:
    rng = random.Random(f"task {name}")
    rows = list(make(source_rows(data, source), rng))
    rng.shuffle(rows)
    train, test = ([row for row in rows if row.part == part] for part in ("train", "test"))
    classes = sorted({row.label for row in train})
    counts = {label: sum(row.label == label for row in train) for label in classes}
    classes = [label for label in classes if counts[label] >= LEAST_TRAIN]
    train = [row for row in train if row.label in classes]
    test = [row for row in test if row.label in classes]
    train = balanced(train, MOST_TRAIN + HELD, rng)
    held = min(HELD, len(train) // 5)
    return TextTask(
        name, source, tuple(classes), tuple(train[held:]), tuple(train[:held]), tuple(balanced(test, MOST_TEST, rng))
    )


def balanced(rows: list[Row], most: int, rng: random.Random) -> list[Row]:
    """At most so many rows, no class more than three times as frequent as the rarest, nor above its equal share."""
    by_label: dict[str, list[Row]] = {}
    for row in rows:
        by_label.setdefault(row.label, []).append(row)
    if not by_label:
        return []
    each = min(most // len(by_label), 3 * min(len(group) for group in by_label.values()))
    kept = [row for _, group in sorted(by_label.items()) for row in group[: max(each, 1)]]
    rng.shuffle(kept)
    return kept


def _own(rows: tuple[Row, ...], rng: random.Random) -> Iterable[Row]:
    return rows


def classes(*labels: str, by: str = "label") -> Make:
    """These labels as classes."""
    return groups(**{label: (label,) for label in labels}, by=by)


def groups(by: str = "label", **members: tuple[str, ...]) -> Make:
    """Groups of labels as classes; `REST` is every other label."""

    def make(rows: tuple[Row, ...], rng: random.Random) -> Iterable[Row]:
        where = {label: group for group, labels in members.items() for label in labels}
        for row in rows:
            group = where.get(getattr(row, by), where.get("REST"))
            if group is not None:
                yield Row(row.text, row.second, group, row.part, row.extra)

    return make


def coarse(rows: tuple[Row, ...], rng: random.Random) -> Iterable[Row]:
    """The coarse label as the class."""
    return [Row(row.text, row.second, row.extra, row.part) for row in rows if row.extra not in ("", "oos")]


def similar(low: float, high: float) -> Make:
    """Pairs with a score of at most `low` against those of at least `high`."""

    def make(rows: tuple[Row, ...], rng: random.Random) -> Iterable[Row]:
        for row in rows:
            score = float(row.label)
            if score <= low or score >= high:
                yield Row(row.text, row.second, "similar" if score >= high else "different", row.part)

    return make


def word_order(rows: tuple[Row, ...], rng: random.Random) -> Iterable[Row]:
    """Texts as they are against texts with two pairs of neighbouring words swapped."""
    for row in rows:
        words = row.text.split()[:24]
        if len(words) < 6:
            continue
        label = rng.choice(("kept", "swapped"))
        if label == "swapped":
            first = rng.randrange(0, len(words) // 2 - 1)
            second = rng.randrange(len(words) // 2, len(words) - 1)
            for i in (first, second):
                words[i], words[i + 1] = words[i + 1], words[i]
        yield Row(" ".join(words), None, label, row.part)


def same_class(by: str = "label") -> Make:
    """Pairs of texts of one class against pairs of two classes."""

    def make(rows: tuple[Row, ...], rng: random.Random) -> Iterable[Row]:
        for part in ("train", "test"):
            own = [row for row in rows if row.part == part and getattr(row, by) not in ("", "oos")]
            by_label: dict[str, list[Row]] = {}
            for row in own:
                by_label.setdefault(getattr(row, by), []).append(row)
            for row in rng.sample(own, min(len(own), 3000)):
                label = rng.choice(("same", "other"))
                others = by_label[getattr(row, by)] if label == "same" else own
                other = rng.choice(others)
                if other.text != row.text and (getattr(other, by) == getattr(row, by)) == (label == "same"):
                    yield Row(row.text, other.text, label, part)

    return make


def two_halves(rows: tuple[Row, ...], rng: random.Random) -> Iterable[Row]:
    """The two halves of one text against halves of two texts."""
    for part in ("train", "test"):
        own = [row for row in rows if row.part == part and len(row.text.split()) >= 10]
        for row in rng.sample(own, min(len(own), 3000)):
            label = rng.choice(("one", "two"))
            other = row if label == "one" else rng.choice(own)
            words, rest = row.text.split(), other.text.split()
            yield Row(" ".join(words[: len(words) // 2]), " ".join(rest[len(rest) // 2 :]), label, part)


def holds(pattern: str) -> Make:
    """Texts that match a pattern against texts that do not."""

    def make(rows: tuple[Row, ...], rng: random.Random) -> Iterable[Row]:
        for row in rows:
            yield Row(row.text, None, "with" if re.search(pattern, row.text.lower()) else "without", row.part)

    return make


def length(words: int) -> Make:
    """Texts shorter than so many words against longer ones, a gap of two left out."""

    def make(rows: tuple[Row, ...], rng: random.Random) -> Iterable[Row]:
        for row in rows:
            count = len(row.text.split())
            if abs(count - words) > 1:
                yield Row(row.text, None, "long" if count > words else "short", row.part)

    return make


WEB = ("ajax", "wordpress", "drupal", "magento", "apache", "spring")
CODE = ("scala", "haskell", "matlab", "qt", "linq", "bash")
RECIPES: dict[str, tuple[str, Make]] = {
    "sst2": ("sst2", _own),
    "rte": ("rte", _own),
    "wnli": ("wnli", _own),
    "irony": ("tweeteval_irony", _own),
    "scicite": ("scicite", _own),
    "scicite-method": ("scicite", groups(method=("method",), rest=("REST",))),
    "scicite-result": ("scicite", groups(result=("result",), rest=("REST",))),
    "ag_news": ("ag_news_small", _own),
    "ag_news-world-business": ("ag_news_small", classes("World", "Business")),
    "ag_news-sports": ("ag_news_small", groups(sports=("Sports",), rest=("REST",))),
    "ag_news-science-business": ("ag_news_small", classes("Sci/Tech", "Business")),
    "ag_news-order": ("ag_news_small", word_order),
    "ag_news-halves": ("ag_news_small", two_halves),
    "ag_news-same": ("ag_news_small", same_class()),
    "atis-flight-airfare": ("atis", classes("atis_flight", "atis_airfare")),
    "atis-ground-airline": ("atis", classes("atis_ground_service", "atis_airline")),
    "atis": ("atis", classes("atis_flight", "atis_airfare", "atis_ground_service", "atis_airline", "atis_abbreviation")),
    "mr": ("mr", _own),
    "mrpc": ("mrpc", _own),
    "trec": ("trec", coarse),
    "trec-HUM": ("trec", groups(by="extra", human=("HUM",), rest=("REST",))),
    "trec-LOC": ("trec", groups(by="extra", place=("LOC",), rest=("REST",))),
    "trec-NUM": ("trec", groups(by="extra", number=("NUM",), rest=("REST",))),
    "trec-ENTY-DESC": ("trec", classes("ENTY", "DESC", by="extra")),
    "trec-definition": ("trec", groups(definition=("DESC:def",), other=("DESC:desc", "DESC:manner", "DESC:reason"))),
    "trec-person-group": ("trec", classes("HUM:ind", "HUM:gr")),
    "clinc-domains": ("clinc150", coarse),
    "clinc-banking-travel": ("clinc150", classes("banking", "travel", by="extra")),
    "clinc-work-home": ("clinc150", classes("work", "home", by="extra")),
    "clinc-cards-banking": ("clinc150", classes("credit_cards", "banking", by="extra")),
    "clinc-meta-talk": ("clinc150", classes("meta", "small_talk", by="extra")),
    "clinc-kitchen-utility": ("clinc150", classes("kitchen_and_dining", "utility", by="extra")),
    "clinc-auto": ("clinc150", groups(by="extra", auto=("auto_and_commute",), rest=("REST",))),
    "clinc-outside": ("clinc150", groups(by="extra", outside=("oos",), inside=("REST",))),
    "clinc-order": ("clinc150", word_order),
    "clinc-same": ("clinc150", same_class()),
    "cr": ("cr", _own),
    "cr-length": ("cr", length(17)),
    "subj": ("subj", _own),
    "qnli": ("qnli_dev", _own),
    "emotion": ("tweeteval_emotion", _own),
    "emotion-anger-joy": ("tweeteval_emotion", classes("anger", "joy")),
    "emotion-sadness": ("tweeteval_emotion", groups(sadness=("sadness",), rest=("REST",))),
    "emotion-joy-optimism": ("tweeteval_emotion", classes("joy", "optimism")),
    "stackoverflow-web": ("stackoverflow20", groups(web=WEB, code=CODE)),
    "stackoverflow-cms": ("stackoverflow20", classes("wordpress", "drupal", "magento", "sharepoint")),
    "stackoverflow-data": ("stackoverflow20", groups(data=("oracle", "linq", "hibernate", "excel"), rest=("REST",))),
    "stackoverflow-apple": ("stackoverflow20", groups(apple=("osx", "cocoa"), rest=("REST",))),
    "stackoverflow-functional": ("stackoverflow20", classes("scala", "haskell")),
    "stackoverflow-tags": ("stackoverflow20", classes("svn", "bash", "excel", "matlab", "qt", "spring")),
    "stackoverflow-same": ("stackoverflow20", same_class()),
    "stackoverflow-how": ("stackoverflow20", holds(r"^(how|what|why|is|can|where|which)\b")),
    "curekart": (
        "hint3_curekart",
        classes("RECOMMEND_PRODUCT", "REFUNDS_RETURNS_REPLACEMENTS", "ORIGINAL_PRODUCT", "ORDER_STATUS"),
    ),
    "curekart-outside": ("hint3_curekart", groups(product=("RECOMMEND_PRODUCT",), rest=("REST",))),
    "mpqa": ("mpqa", _own),
    "cola": ("cola", _own),
    "cola-order": ("cola", word_order),
    "stsb": ("stsb", similar(2.0, 3.5)),
    "stsb-close": ("stsb", similar(3.6, 4.4)),
    "stsb-genre": ("stsb", coarse),
    "acl_arc": ("acl_arc_citation_intent", classes("Background", "Uses", "CompareOrContrast")),
    "acl_arc-background": ("acl_arc_citation_intent", groups(background=("Background",), rest=("REST",))),
    "acl_arc-uses": ("acl_arc_citation_intent", groups(uses=("Uses",), rest=("REST",))),
    "snips": ("snips", _own),
    "snips-music": ("snips", classes("PlayMusic", "AddToPlaylist")),
    "snips-creative-event": ("snips", classes("SearchCreativeWork", "SearchScreeningEvent")),
    "snips-rate-book": ("snips", classes("RateBook", "BookRestaurant")),
    "snips-order": ("snips", word_order),
    "snips-halves": ("snips", two_halves),
    "snips-same": ("snips", same_class()),
}
