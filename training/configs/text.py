"""The experiments of text: which sets, under which encoders, and how the generator is trained."""

from __future__ import annotations

from dataclasses import dataclass, field

from ltdi.denoisers.geometry import GeometryConfig
from ltdi.schedule import ScheduleConfig
from training.geometry import GeometryTraining
from training.tasks import Mixture

TABLE = ("clinc150", "trec", "stackoverflow20", "hint3_curekart", "hint3_powerplay11", "hint3_sofmattress", "atis")


@dataclass(frozen=True)
class Source:
    """A text set that a generator learns from.

    Args:
        name: of the set.
        weight: how often its tasks are drawn.
        most: rows that are read, where it has more.
    """

    name: str
    weight: float = 1.0
    most: int | None = None


SOURCES = (
    Source("clinc150", 2.5),
    *(Source(name) for name in TABLE[1:]),
    *(Source(name) for name in ("snips", "webapps_intents", "askubuntu_intents", "chatbot_intents")),
    *(Source(name) for name in ("acl_arc_citation_intent", "tweeteval_emotion")),
    Source("scicite", most=6000),
    Source("ag_news_small", most=6000),
)


@dataclass(frozen=True)
class TextExperiment:
    """What `ltdi prepare`, `meta-train`, `evaluate` and `export` do for a text config.

    Args:
        name: of the config, the bundle and the folder under `runs/`.
        encoders: that tasks are drawn from, alike.
        measured: the encoder of the table.
        sources: text sets.
        images: whether Omniglot under the shipped body joins the training tasks.
        body: whether the bundle reads texts with the measured encoder.
        table: the sets of the table; each is measured by generators that did not see its group.
        terms: the terms of use of the data, for the card.
    """

    name: str
    encoders: tuple[str, ...]
    measured: str
    body: bool
    sources: tuple[Source, ...] = SOURCES
    images: bool = False
    geometry: GeometryConfig = GeometryConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    training: GeometryTraining = GeometryTraining()
    mixture: Mixture = field(default_factory=Mixture)
    table: tuple[str, ...] = TABLE
    recipe: str = "geometry"
    terms: str = "CLINC150 (CC BY 3.0), HINT3 (ODbL 1.0), NLU evaluation corpora (CC BY-SA 3.0) and research sets"


MINILM = TextExperiment("minilm", encoders=("minilm",), measured="minilm", body=True)
ANY_EMBEDDING = TextExperiment(
    "any-embedding", encoders=("minilm", "minilm-middle", "tfidf"), measured="ngrams", body=False, images=True,
    geometry=GeometryConfig(centre=True), mixture=Mixture(centre=True), training=GeometryTraining(tasks=2000),
)
TEXT_EXPERIMENTS = {one.name: one for one in (MINILM, ANY_EMBEDDING)}
