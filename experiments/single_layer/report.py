"""What the rows of a single-layer comparison say: differences, intervals, costs and the verdict.

Rows: one for each seed, method, layer and rate, and one for each seed of the method `none`, the
unpruned network. Errors and costs are fractions; tables show percent and points (percentage
points). An interval is the 95 % interval of the mean over seeds.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import pandas as pd

from experiments.common.drawing.intervals import (
    count_outcomes,
    format_mean,
    format_points,
    outcome,
)
from experiments.common.drawing.outputs import format_markdown
from experiments.common.intervals import Interval, mean_interval

__all__ = [
    "WHEN",
    "When",
    "compare",
    "compare_at_equal_dense_macs",
    "error_increases",
    "format_report",
]

When = Literal["before", "after"]
WHEN: tuple[When, ...] = ("before", "after")
COMPARISONS = (
    ("channel", "magnitude"),
    ("channel+variational", "channel"),
    ("variational", "channel"),
    ("channel+variational", "magnitude"),
    ("variational", "shuffled_information"),
    ("variational", "elements_by_weight"),
    ("elements_by_weight", "elements_at_random"),
    ("elements_at_random", "channel"),
)
SCHEMES = ("channel+variational", "variational")
"""What the paper's `variational` may stand for."""


def error_increases(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of pruned networks with `before` and `after`, in points.

    An increase is counted from the error of the seed's unpruned network after the same training.
    """
    unpruned = rows[rows["method"] == "none"].set_index("seed")
    pruned = rows[rows["method"] != "none"].copy()
    for when in WHEN:
        name = f"error_{when}"
        pruned[when] = 100.0 * (pruned[name] - pruned["seed"].map(unpruned[name]))
    return pruned


def compare(
    increases: pd.DataFrame, first: str, second: str, when: When, by: str = "rate"
) -> dict[object, Interval]:
    """Compare two methods seed by seed.

    Args:
        increases: From `error_increases`.
        first: A method.
        second: The method that it is compared with.
        when: Before or after fine-tuning.
        by: Column whose values get a difference each, averaged over everything else.
    """
    tables = [
        increases[increases["method"] == method].groupby(["seed", by])[when].mean().unstack()
        for method in (first, second)
    ]
    return _by_column(tables[0] - tables[1])


def compare_at_equal_dense_macs(
    increases: pd.DataFrame, first: str, second: str, when: When
) -> dict[object, Interval]:
    """Compare two methods at the dense multiply-accumulates that the first one comes to.

    The second's error is interpolated linearly between its rates, the unpruned network included.

    Args:
        increases: From `error_increases`.
        first: A method that saves dense multiply-accumulates, no more than the second at most.
        second: The method that it is compared with.
        when: Before or after fine-tuning.
    """
    differences = []
    for _, group in increases.groupby(["seed", "layer"]):
        mine, other = (group[group["method"] == name] for name in (first, second))
        order = other.sort_values("dense_macs")
        macs = [*order["dense_macs"], 1.0]
        errors = [*order[when], 0.0]
        shared = mine[mine["dense_macs"] >= macs[0]]
        expected = np.interp(shared["dense_macs"], macs, errors)
        differences.append(shared.assign(difference=shared[when] - expected))
    table = pd.concat(differences).groupby(["seed", "rate"])["difference"].mean().unstack()
    return _by_column(table)


def _by_column(table: pd.DataFrame) -> dict[object, Interval]:
    """Return the mean and interval of each column, over the rows."""
    return {name: mean_interval(table[name]) for name in table.columns}


def format_report(
    rows: pd.DataFrame, title: str, finetune_steps: int, variational_steps: int
) -> str:
    """Format the report as Markdown.

    Args:
        rows: Of all seeds.
        title: Network and data set.
        finetune_steps: Minibatches of fine-tuning.
        variational_steps: Minibatches of training with information dropout.
    """
    increases = error_increases(rows)
    parts = [
        f"# One layer pruned: {title}",
        _format_setting(rows, finetune_steps, variational_steps),
        "## Verdict",
        *(_format_verdict(increases, when) for when in WHEN),
    ]
    for when in WHEN:
        parts += [
            f"## Differences {when} fine-tuning, points of error",
            "First method minus second, mean over layers; negative means that the first is better.",
            _format_differences(increases, when),
        ]
    if "information_std" in rows:  # which earlier versions have not kept
        parts += ["## Whether information tells outputs apart", _format_information(rows)]
    parts += ["## The same dense multiply-accumulates", _format_equal_macs(increases)]
    parts += ["## Error increase after fine-tuning by layer, points", _format_layers(increases)]
    parts += ["## Costs, percent of the unpruned network, mean over layers", _format_costs(rows)]
    parts += ["![errors](errors.png)", "![costs](costs.png)"]
    return "\n\n".join(parts) + "\n"


def _format_setting(rows: pd.DataFrame, finetune_steps: int, variational_steps: int) -> str:
    unpruned = rows[rows["method"] == "none"]
    errors = [
        f"{format_mean(100.0 * unpruned[f'error_{when}'].to_numpy())} %"
        for when in ("trained", *WHEN)
    ]
    layers = ", ".join(f"`{name}`" for name in _names(rows, "layer"))
    return (
        f"{rows['seed'].nunique()} seeds, layers {layers} (those whose inputs can be pruned). "
        f"Validation error of the unpruned network: {errors[0]}; after {variational_steps} more "
        f"minibatches {errors[1]}; after {finetune_steps} of fine-tuning besides {errors[2]}. "
        f"Every method sees these {variational_steps} minibatches too: the variational ones while "
        "they train with information dropout, just before elements go (for `channel+variational` "
        "that is after its channels went), the others before they prune. An increase is counted "
        "from the unpruned network that has trained as long. Nothing is chosen by the validation "
        "images. At the same rate, all methods remove the same fraction of the layer's weights. "
        "Intervals are 95 % over seeds, not adjusted for their number."
    )


def _names(rows: pd.DataFrame, column: str) -> list[str]:
    """Return the different values of pruned networks, in their order."""
    return list(dict.fromkeys(rows.loc[rows["method"] != "none", column]))


def _format_verdict(increases: pd.DataFrame, when: When) -> str:
    """Say whether variational beats channel and channel beats magnitude."""
    present = set(increases["method"])
    lines = [f"{when.capitalize()} fine-tuning, rates at which the first method is:"]
    for first, second in COMPARISONS:
        if {first, second} <= present:
            by_rate = compare(increases, first, second, when)
            by_layer = compare(increases, first, second, when, by="layer")
            total = compare(increases.assign(all=0), first, second, when, by="all")[0]
            lines.append(
                f"- `{first}` against `{second}`: {count_outcomes(by_rate)} of {len(by_rate)} "
                f"(layers: {count_outcomes(by_layer)}); over all rates and layers "
                f"{format_points(total)} points, {outcome(total)}"
            )
    lines += [_format_claim(increases, scheme, when) for scheme in SCHEMES if scheme in present]
    return "\n".join(lines)


def _format_claim(increases: pd.DataFrame, scheme: str, when: When) -> str:
    if not {"channel", "magnitude"} <= set(increases["method"]):
        return f"- The claim with `{scheme}` needs `channel` and `magnitude`."
    upper = compare(increases, scheme, "channel", when)
    lower = compare(increases, "channel", "magnitude", when)
    both = [(outcome(upper[rate]), outcome(lower[rate])) for rate in upper]
    n_holds, n_fails = both.count(("better", "better")), sum("worse" in pair for pair in both)
    return (
        f"- **The claim `{scheme}` < `channel` < `magnitude` holds at {n_holds} of {len(upper)} "
        f"rates, is contradicted at {n_fails} and undecided at {len(upper) - n_holds - n_fails}.**"
    )


def _format_differences(increases: pd.DataFrame, when: When) -> str:
    present = set(increases["method"])
    pairs = [pair for pair in COMPARISONS if set(pair) <= present]
    if not pairs:
        return "No two methods to compare."
    columns = [compare(increases, first, second, when) for first, second in pairs]
    return _format_by_rate([f"{first} - {second}" for first, second in pairs], columns)


def _format_by_rate(heads: Sequence[str], columns: Sequence[dict[object, Interval]]) -> str:
    """Format differences by rate, a column each."""
    lines = [
        (f"{rate}", *(format_points(column[rate]) for column in columns)) for rate in columns[0]
    ]
    return format_markdown(("rate", *heads), lines)


def _format_equal_macs(increases: pd.DataFrame) -> str:
    if not {"channel", "channel+variational"} <= set(increases["method"]):
        return "Needs `channel` and `channel+variational`."
    columns = [
        compare_at_equal_dense_macs(increases, "channel+variational", "channel", when)
        for when in WHEN
    ]
    text = (
        "`channel+variational` at its rate minus `channel` at the rate, interpolated, that saves "
        "as many dense multiply-accumulates; after fine-tuning: "
        f"{count_outcomes(columns[1])} of {len(columns[1])}. What dense kernels cost is the same "
        "for both then; `channel+variational` has more zeros. `variational` saves no dense "
        "multiply-accumulates at all."
    )
    return text + "\n\n" + _format_by_rate(WHEN, columns)


def _format_information(rows: pd.DataFrame) -> str:
    """Say how far the information differs between outputs, and what that changes."""
    trained = rows[rows["information_std"].notna()]
    if trained.empty:
        return "Needs a method with information dropout."
    by_layer = trained.groupby(["method", "layer"], sort=False)["information_std"]
    spreads = [
        (f"{method}, {layer}", f"{x.min():.3f}", f"{x.median():.3f}", f"{x.max():.3f}")
        for (method, layer), x in by_layer
    ]
    parts = [
        "Standard deviation of the information over a layer's outputs, in nats, over all rates and "
        "seeds; below 0.05 outputs are not told apart.",
        format_markdown(("method, layer", "lowest", "median", "highest"), spreads),
    ]
    own = trained[trained["overlap"].notna()]
    if not own.empty:
        parts += [
            "Of the elements that `variational` and its control remove or keep, the share that the "
            "weight times its input alone would remove or keep of the same network, in percent, "
            "mean over layers and seeds. By chance it would be the rate, and one minus the rate.",
            format_markdown(("method, rate", "removed", "kept"), _overlaps(own)),
        ]
    return "\n\n".join(parts)


def _overlaps(rows: pd.DataFrame) -> list[tuple[str, ...]]:
    """Return a line for each method and rate: percent of what goes and of what stays."""
    rate = rows["weights_removed"]
    stays = (1.0 - rate * (2.0 - rows["overlap"])) / (1.0 - rate)
    means = rows.assign(stays=stays).groupby(["method", "rate"], sort=False)[["overlap", "stays"]]
    return [
        (f"{method} {rate}", *(f"{100.0 * value:.1f}" for value in values))
        for (method, rate), values in zip(means.mean().index, means.mean().to_numpy(), strict=True)
    ]


def _format_layers(increases: pd.DataFrame) -> str:
    methods = _names(increases, "method")
    cells = increases.groupby(["layer", "rate", "method"], sort=False)["after"]
    lines = []
    for layer in _names(increases, "layer"):
        for rate in sorted(increases["rate"].unique()):
            shown = (format_mean(cells.get_group((layer, rate, each))) for each in methods)
            lines.append((f"{layer} {rate}", *shown))
    return format_markdown(("layer, rate", *methods), lines)


def _format_costs(rows: pd.DataFrame) -> str:
    names = {
        "weights_removed": "weights of the layer removed",
        "dense_macs": "dense MACs",
        "sparse_macs": "sparse MACs",
        "dense_params": "dense params",
        "sparse_params": "sparse params",
    }
    pruned = rows[rows["method"] != "none"]
    means = pruned.groupby(["method", "rate"], sort=False)[list(names)].mean()
    lines = [
        (f"{method} {rate}", *(f"{100.0 * value:.1f}" for value in values))
        for (method, rate), values in zip(means.index, means.to_numpy(), strict=True)
    ]
    return format_markdown(("method, rate", *names.values()), lines)
