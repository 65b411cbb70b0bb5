"""What the scores of layers during training say: agreement with the final ones, and the verdict.

Rows: one for each model, seed, epoch, score and layer, with the value and the rate that follows.
Scores: `afie`, `width_only` (ln(p) / c), `entropy_ratio` (K / ln(p)), `sbpf`, and `sbpf_again`, a
second measurement of the final network.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import stats

from experiments.common.drawing.intervals import format_mean
from experiments.common.drawing.outputs import format_markdown

__all__ = [
    "STABLE",
    "TRACKED",
    "Agreement",
    "agreement_with_final",
    "compare_scores",
    "format_report",
    "judge",
]

UNSTABLE = "Not stable."
STABLE = 0.9
"""Mean Spearman correlation with the final ranking from which on a score counts as stable."""
TRACKED = ("afie", "entropy_ratio", "sbpf")
CONTROLS = (("width_only", "afie"), ("entropy_ratio", "afie"), ("sbpf_again", "sbpf"))
HEADINGS = ("Spearman", "Kendall", "change", "rate")


class Agreement(NamedTuple):
    """How alike two scores of the same layers are."""

    spearman: float
    """Rank correlation; NaN where a score is the same for all layers."""
    kendall: float
    """Rank correlation by pairs, tau-b; NaN likewise."""
    change: float
    """Largest difference of a layer's score, relative to the second one; layers where that is 0
    are left out, and it is NaN if that is so for all."""
    rate_change: float
    """Largest difference of a pruning rate; NaN for a score that no rates follow from."""


def compare_scores(first: pd.DataFrame, second: pd.DataFrame) -> Agreement:
    """Compare two scores of the same layers; columns `layer`, `value` and `rate`."""
    left, right = (x.set_index("layer")[["value", "rate"]] for x in (first, second))
    left = left.loc[right.index]
    a, b = left["value"].to_numpy(np.float64), right["value"].to_numpy(np.float64)
    changes = np.abs(a - b)[b != 0.0] / np.abs(b[b != 0.0])
    rates = (left["rate"] - right["rate"]).abs().max()
    return Agreement(
        _correlation(stats.spearmanr, a, b),
        _correlation(stats.kendalltau, a, b),
        float(changes.max()) if len(changes) else float("nan"),
        float(rates),
    )


def _correlation(function: object, a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    if np.ptp(a) == 0.0 or np.ptp(b) == 0.0:
        return float("nan")
    return float(function(a, b).statistic)  # type: ignore[operator]


def agreement_with_final(
    rows: pd.DataFrame, score: str, against: str | None = None
) -> pd.DataFrame:
    """Compare a score at every epoch with the final one, seed by seed.

    Args:
        rows: Of one model.
        score: A score.
        against: The score whose final values it is compared with; itself when None.

    Returns:
        A row for each seed and epoch, with the fields of `Agreement`.
    """
    last = rows["epoch"].max()
    found = []
    for (seed, epoch), mine in rows[rows["score"] == score].groupby(["seed", "epoch"]):
        final = rows[(rows["seed"] == seed) & (rows["epoch"] == last)]
        final = final[final["score"] == (against or score)]
        found.append({"seed": seed, "epoch": epoch} | compare_scores(mine, final)._asdict())
    return pd.DataFrame(found)


def format_report(rows: pd.DataFrame, data_label: str, target: float) -> str:
    """Format the report as Markdown.

    Args:
        rows: Of all models and seeds.
        data_label: Name of the data set.
        target: Fraction of the filters that the rates remove.
    """
    parts = [
        f"# Stability of importance scores: {data_label}",
        f"{rows['seed'].nunique()} seed(s): means and, where they differ, lowest and highest (of "
        "accuracies: 95 % intervals). Agreement of each score with itself at the end of "
        "training, over the layers whose filters can be removed: rank correlations; `change`, the "
        "largest relative change of a layer's score; `rate`, the largest difference of a pruning "
        f"rate when {100 * target:.0f} % of the filters go. A score counts as stable if its mean "
        f"Spearman correlation is {STABLE} or more.",
    ]
    for model in dict.fromkeys(rows["model"]):
        mine = rows[rows["model"] == model]
        parts += [f"## {model}", _format_setting(mine), _format_verdict(mine)]
        parts += [_format_agreement(mine), _format_controls(mine)]
    parts += ["![scores](scores.png)", "![agreement](agreement.png)"]
    return "\n\n".join(parts) + "\n"


def _format_setting(rows: pd.DataFrame) -> str:
    accuracies = rows.dropna(subset="accuracy").groupby(["epoch", "seed"])["accuracy"].first()
    told = [
        f"{format_mean(100.0 * accuracies[epoch].to_numpy())} % after {epoch}"
        for epoch in accuracies.index.levels[0]  # type: ignore[attr-defined]
    ]
    layers = rows["layer"].nunique()
    return f"{layers} layers. Validation accuracy by epochs: {', '.join(told)}."


def _mean_spearman(rows: pd.DataFrame, score: str, epoch: int, against: str | None = None) -> float:
    table = agreement_with_final(rows, score, against)
    values = table.loc[table["epoch"] == epoch, "spearman"]
    return float(values.mean()) if len(values) else float("nan")


def _format_verdict(rows: pd.DataFrame) -> str:
    """Tell stable because informative from stable because of what is the same for any weights."""
    epochs = sorted(rows["epoch"].unique())
    early, last = next(epoch for epoch in epochs if epoch > 0), epochs[-1]

    def told(score: str) -> tuple[float, float, str]:
        stable, random = (_mean_spearman(rows, score, epoch) for epoch in (early, 0))
        before = "undefined" if np.isnan(random) else f"{random:.2f}"
        return stable, random, f"{stable:.2f} after {early} epoch(s), {before} before"

    stable, random, text = told("afie")
    width = _mean_spearman(rows, "width_only", last, "afie")
    lines = [
        f"**AFIE: {judge(stable, random, width)}** Spearman's correlation with the final ranking: "
        f"{text}; of ln(p) / c {width:.2f}; of K / ln(p) with its own {told('entropy_ratio')[2]}."
    ]
    stable, random, text = told("sbpf")
    again = _mean_spearman(rows, "sbpf_again", last, "sbpf")
    verdict = judge(stable, random)
    if again < STABLE and verdict == UNSTABLE:
        verdict = "Undecided: not even the final ranking can be measured that well."
    lines += [f"**SBPF: {verdict}** {text}; a second measurement of the final network {again:.2f}."]
    return "\n".join(f"- {line}" for line in lines)


def judge(stable: float, random: float, width: float = float("nan")) -> str:
    """Return the verdict on a score from Spearman's correlations with the final ranking.

    Args:
        stable: Early in training.
        random: With random weights; NaN where that was not measured.
        width: Of the score that knows nothing but the width; NaN where there is none.
    """
    if not stable >= STABLE:
        return UNSTABLE
    reasons = []
    if width >= STABLE:
        reasons.append("the width alone ranks the layers so")
    if random >= STABLE:
        reasons.append("random weights rank the layers so")
    if reasons:
        return f"Stable, but not because it is informative: {' and '.join(reasons)}."
    return "Stable because informative: no control ranks the layers so."


def _format_agreement(rows: pd.DataFrame) -> str:
    lines = []
    for score in TRACKED:
        for epoch, group in agreement_with_final(rows, score).groupby("epoch"):
            if epoch != rows["epoch"].max():
                lines.append(_line(f"`{score}`, {epoch}", group))
    return format_markdown(("score, epochs", *HEADINGS), lines)


def _line(name: str, group: pd.DataFrame) -> tuple[str, ...]:
    return (name, *(_format_field(group[field]) for field in Agreement._fields))


def _format_controls(rows: pd.DataFrame) -> str:
    """Format what the final scores are compared with besides earlier ones."""
    last = rows["epoch"].max()
    lines = []
    for first, second in CONTROLS:
        table = agreement_with_final(rows, first, second)
        group = table[table["epoch"] == last]
        if first == "entropy_ratio":  # another quantity: only ranks can be compared
            group = group.assign(change=np.nan)
        lines.append(_line(f"`{first}`, `{second}`", group))
    ratio = rows[(rows["score"] == "entropy_ratio") & (rows["epoch"] == last)]["value"]
    return (
        "Controls at the end of training: another score against this one. K / ln(p), all that AFIE "
        f"takes from the weights, lies between {ratio.min():.3f} and {ratio.max():.3f}.\n\n"
        + format_markdown(("scores", *HEADINGS), lines)
    )


def _format_field(values: pd.Series) -> str:
    given = values.dropna()
    if given.empty:
        return "-"
    lowest, highest = f"{given.min():.2f}", f"{given.max():.2f}"
    same = lowest == highest
    return f"{given.mean():.2f}" + ("" if same else f" ({lowest} to {highest})")
