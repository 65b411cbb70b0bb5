"""The second leaderboard, and what README says of it, are as they were measured."""

from experiments.benchmark.confirmed_report import leaderboard_of
from experiments.benchmark.table import read_best_known, read_runs
from tests.pages import PAGES, README, ROOT


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
        assert (label, *(round(float(cells[2].split()[1]) - float(x)) for x in searched)) in (
            ("pruning", 9, 3, -3),
            ("bits", 4, 2, 1),
        )
    assert "by 9 points of test accuracy for pruning and by 4 for bits" in README
    assert "with 300 CMA-ES is ahead by 3 for pruning, and level for bits" in README
