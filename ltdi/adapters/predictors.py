"""The predictors that a bundle of adapters can name."""

from __future__ import annotations

from ltdi.adapters.banked import Banked
from ltdi.adapters.predictor import Mean, Predictor, PredictorConfig, Space
from ltdi.errors import InvalidConfig

PREDICTORS: dict[str, type[Predictor]] = {"mean": Mean, "bank": Banked}


def build_predictor(config: PredictorConfig, space: Space) -> Predictor:
    """A predictor with fresh parameters.

    Raises:
        InvalidConfig: an unknown name.
    """
    if config.name not in PREDICTORS:
        raise InvalidConfig(f"predictor {config.name!r} is unknown; known: {', '.join(PREDICTORS)}", field="predictor")
    return PREDICTORS[config.name](space, config.sizes)
