"""The bench: what it counts, and that every figure is there."""

from __future__ import annotations

from ltdi.bundle import Bundle
from training.bench import bench, chain_parameters


def test_a_chain_reads_its_fused_matrix_at_each_step_and_the_two_that_it_is_made_of_once(toy: Bundle) -> None:
    width, tokens, outputs = 32, 2 * 256 + 3, 257
    layer = width * 5 * width + 4 * width * width
    once = tokens * width + 2 * layer + outputs * width + 4 * width * outputs
    assert chain_parameters(toy) == (once, width * 5 * width + width * 4 * width)


def test_every_figure_is_there_for_any_recipe(toy: Bundle, toy_paper: Bundle) -> None:
    for bundle, ways in ((toy, 5), (toy_paper, 3)):
        result = bench(bundle, rounds=1)
        assert result["floor"]["chain_floor_ms"] > 0
        jobs = ("generate", "generate without the support check", "fine-tune, 100 Adam steps", "scikit-learn logistic regression")
        for job in jobs:
            for shots in (1, 5):
                assert result["one_head"][f"{job}, {ways}-way {shots}-shot"]["p95_ms"] > 0
        assert list(result["by_tasks"]) == ["1", "8", "64"]
