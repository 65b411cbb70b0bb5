"""The second leaderboard's page says what its trials have measured."""

from experiments.benchmark.confirmed_report import leaderboard_of
from experiments.benchmark.table import read_best_known, read_runs
from tests.pages import PAGES, ROOT


def test_second_leaderboard_is_summed_up_as_it_was_measured() -> None:
    trials = read_runs([ROOT / "results" / "benchmark-v1"])
    known = read_best_known(ROOT / "results" / "benchmark-v1" / "best_known.csv")
    assert leaderboard_of(trials, known)[1].split("\n\n", 1)[1].strip() in PAGES["leaderboard.md"]
    deep = trials[~trials["task"].str.contains("LeNet5")]

    def shown(stage: str, agent: str, budget: int) -> str:
        mine = deep[deep["task"].str.contains(stage) & (deep["agent"] == agent)]
        return f"{100 * mine.groupby('task')[f'confirmed_{budget}'].mean().mean():.1f}"

    for label, stage, rule, other in (
        ("pruning", "Prune", "kl_curve", "tpe"),
        ("bits", "Quantize", "relative_error", "random"),
    ):
        searched = [shown(stage, "cma_es", budget) for budget in (30, 100, 300)]
        cells = [
            label,
            shown(stage, "uniform", 300),
            f"`{rule}` {shown(stage, rule, 300)}",
            shown(stage, "portfolio", 300),
            *searched,
            f"`{other}` {shown(stage, other, 300)}",
        ]
        assert f"| {' | '.join(cells)} |" in PAGES["leaderboard.md"]
