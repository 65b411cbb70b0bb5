"""How the main job shows what it came to: figures, `report.md` and `report.html`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import Any

from matplotlib.figure import Figure as Drawing

from compress_env.envs.pruning import PruningEnv
from experiments.common.drawing.figures import draw_layers, draw_pareto, draw_rewards, draw_tradeoff
from experiments.common.drawing.svg import to_svg
from experiments.common.run_folder import RunFolder
from experiments.common.stored import read_object
from experiments.compress.outcome.exports import describe_timing
from experiments.compress.outcome.page import Figure, Page, format_page, format_snippets
from experiments.compress.outcome.report import Row, best_row, format_noise, format_report
from experiments.compress.outcome.rounding import suggest_channel_round
from experiments.compress.stages import Contender, Job
from experiments.search.episodes import Episode

__all__ = ["draw_searches", "write_reports"]

VALUE_LABELS = {"pruning": "pruning rate (fraction removed)", "quantization": "bits per weight"}


def draw_searches(
    folder: RunFolder, job: Job, contenders: Sequence[Contender], chosen: Contender
) -> list[str]:
    """Draw rewards, choices and trade-offs of each stage, and the pruned networks' Pareto front.

    Rewards are drawn where a search had several episodes.

    Args:
        folder: The run folder.
        job: The job.
        contenders: All of them.
        chosen: The one whose network is marked.

    Returns:
        The names of the figures' files.
    """
    task = _plain(job.config.title)
    figures: dict[str, Drawing] = {}
    for stage, label in VALUE_LABELS.items():
        results = {c.name: c.stages[stage] for c in contenders if stage in c.stages}
        if not results:
            continue
        title = f"{task}: {stage}"
        rewards = {n: [episode.reward for episode in r.episodes] for n, r in results.items()}
        values = {name: result.best for name, result in results.items()}
        if any(len(each) > 1 for each in rewards.values()):
            figures[f"reward-{stage}.png"] = draw_rewards(rewards, title)
        figures[f"layers-{stage}.png"] = draw_layers(values, label, title)
        figures[f"tradeoff-{stage}.png"] = _draw_tradeoff(job, stage, title)
    if job.pruning_env is not None:
        front = _draw_pareto(job, job.pruning_env, chosen, f"{task}: pruned networks")
        figures["pareto.png"] = front
    for name, figure in figures.items():
        folder.write_figure(name, figure)
    return [*figures]


def _plain(text: str) -> str:
    return text.replace("$", r"\$")  # no formula


def _draw_tradeoff(
    job: Job, stage: str, title: str, chosen: Mapping[str, Episode] = MappingProxyType({})
) -> Drawing:
    label, budget = "bytes of the packed file", job.size_budget_bytes
    if stage == "pruning" and job.pruning_env is not None:
        label, budget = f"{_cost(job.pruning_env)} per image", _limit(job.pruning_env)
    episodes = {name: each for (name, other), each in job.searches.items() if other == stage}
    return draw_tradeoff(episodes, label, title, chosen=chosen, budget=budget)


def _cost(env: PruningEnv) -> str:
    of = {"dense": "multiply-accumulates", "sparse": "multiply-accumulates by non-zero weights"}
    return of[env.macs]


def _limit(env: PruningEnv) -> float:
    """Return the budget of what figures show, which are multiply-accumulates."""
    return env.budgets.get("macs", float("inf"))


def _draw_pareto(job: Job, env: PruningEnv, contender: Contender, title: str) -> Drawing:
    episodes = [
        episode
        for (_, stage), found in job.searches.items()
        for episode in found
        if stage == "pruning" and episode.accuracy is not None
    ]
    return draw_pareto(
        episodes,
        {contender.name: contender.stages["pruning"].best},
        (env.unpruned.cost_high, job.baseline_score),
        _limit(env),
        cost=_cost(env),
        title=title,
    )


def write_reports(
    folder: RunFolder, job: Job, contenders: Sequence[Contender], rows: Sequence[Row]
) -> None:
    """Draw the figures, and write `report.md` and `report.html`, about the best of all rows."""
    name = best_row(rows).network
    chosen = next(each for each in contenders if each.name == name)
    figures = draw_searches(folder, job, contenders, chosen)
    notes = _notes(job, chosen, rows)
    skipped = job.unpruned, job.unquantized
    report = format_report(job.config, [*rows], *skipped, notes, figures)
    folder.write_text("report.md", report)
    settings = _flat(read_object(folder.path / "config.json"))
    page = Page(
        title=job.config.title,
        rows=rows,
        chosen=chosen.name,
        macs="dense" if job.pruning_env is None else job.pruning_env.macs,
        budgets=job.budgets,
        removed=_removed(job.pruning_env),
        rates=_by_layer(chosen, "pruning"),
        bits=_by_layer(chosen, "quantization"),
        unpruned=skipped[0],
        unquantized=skipped[1],
        figures=_figures(job, chosen),
        notes=notes,
        snippets=_snippets(job, chosen, rows),
        settings=settings,
    )
    folder.write_text("report.html", format_page(page))


def _removed(env: PruningEnv | None) -> str:
    return "weights" if env is not None and env.plan.removes_elements else "input channels"


def _notes(job: Job, chosen: Contender, rows: Sequence[Row]) -> list[str]:
    timing = describe_timing(job.task.device, has_onnx=rows[0].latency_1_ms is not None)
    notes = [timing, *format_noise(rows)]
    if job.pruning_env is None:
        return notes
    rates = chosen.stages["pruning"].best.values
    rounds = job.config.channel_round
    suggestion = suggest_channel_round(job.pruning_env, rates, channel_round=rounds)
    return notes if suggestion is None else [*notes, str(suggestion)]


def _by_layer(contender: Contender, stage: str) -> dict[str, float]:
    if stage not in contender.stages:
        return {}
    episode = contender.stages[stage].best
    return dict(zip(episode.layers, episode.values, strict=True))


def _figures(job: Job, chosen: Contender) -> list[Figure]:
    """Draw what the page shows."""
    tried = "on validation images, before the final fine-tuning. Rings: no other is better in both."
    figures = []
    if job.pruning_env is not None:
        svg = to_svg(
            partial(_draw_pareto, job, job.pruning_env, chosen, "Pruning"),
            "pruning",
            "Accuracy against multiply-accumulates of every pruned network",
        )
        figures.append(Figure(svg, f"Pruned networks that were tried, one dot each, {tried}"))
    if "quantization" in chosen.stages:
        mine = {chosen.name: chosen.stages["quantization"].best}
        svg = to_svg(
            partial(_draw_tradeoff, job, "quantization", "Quantization", mine),
            "quantization",
            "Accuracy against bytes of every quantized network",
        )
        text = f"Networks of other bits that were tried, one dot each, {tried}"
        figures.append(Figure(svg, text))
    return figures


def _snippets(job: Job, chosen: Contender, rows: Sequence[Row]) -> dict[str, str]:
    model, shape = job.task.model, job.task.data.image_shape
    architecture = getattr(model, "architecture", None)
    build = f"{type(model).__name__}()"
    if architecture is not None:
        name, n_classes, image_shape = architecture
        build = f"build_model({name!r}, {n_classes}, {image_shape})"
    has_onnx = rows[0].onnx_bytes is not None
    return format_snippets(f"network-{chosen.name}", build, shape, has_onnx=has_onnx)


def _flat(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings with those of inner dictionaries side by side; digests are left out."""
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        if isinstance(value, dict) and name != "inputs":
            flat |= {f"{name}: {key}": inner for key, inner in value.items()}
        elif name != "inputs":
            flat[name] = value
    return flat
