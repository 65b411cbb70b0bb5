"""What the main job leaves in its folder: episodes, policies, networks, tables and figures."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

from matplotlib.figure import Figure as Drawing
from torch import nn

from compress_env.envs.pruning import PruningEnv
from compress_env.envs.quantization import QuantizationEnv
from compress_env.networks.models import save_checkpoint
from compress_env.quantization.fake_quant import bake
from compress_env.quantization.packing import save
from compress_env.task.counting import total_macs
from compress_env.task.layers import dense_params, sparse_macs, sparse_params
from experiments.common.figures import (
    draw_layers,
    draw_pareto,
    draw_rewards,
    draw_tradeoff,
    non_dominated,
)
from experiments.common.run_folder import RunFolder
from experiments.common.stored import read_object
from experiments.common.svg import to_svg
from experiments.compress.exports import (
    Export,
    describe_timing,
    export_networks,
    time_networks,
)
from experiments.compress.page import Figure, Page, format_page, format_snippets
from experiments.compress.report import Row, format_report, with_ratios
from experiments.compress.rounding import suggest_channel_round
from experiments.compress.stages import Contender, Job, Stage
from experiments.search.episodes import Episode, best_episode

__all__ = ["draw_searches", "score_networks", "write_pareto", "write_reports", "write_searches"]

VALUE_NAMES = {"pruning": PruningEnv.value_name, "quantization": QuantizationEnv.value_name}
VALUE_LABELS = {"pruning": "pruning rate (fraction removed)", "quantization": "bits per weight"}


def write_searches(folder: RunFolder, job: Job, names: list[str]) -> None:
    """Write every episode so far, and the best ones as policies.

    Args:
        folder: The run folder.
        job: The job.
        names: Its contenders, in the order in which they are told.
    """
    rows = []
    policies: dict[str, dict[str, Any]] = {}
    for name in names:
        for stage, value_name in VALUE_NAMES.items():
            episodes = job.searches.get((name, stage), [])
            rows += [{"search": name, "stage": stage} | episode.row() for episode in episodes]
            if any(episode.accuracy is not None for episode in episodes):
                best = best_episode(episodes)
                policies.setdefault(name, {})[stage] = _policy(best, value_name)
    folder.write_rows("episodes.csv", rows)
    folder.write_json("policy.json", policies)


def _policy(episode: Episode, value_name: str) -> dict[str, Any]:
    """Return what `--policy` reads, and a person."""
    return {
        "layers": episode.layers,
        value_name: episode.values,
        "actions": episode.actions,
        "validation_accuracy": episode.accuracy,
        "episode": episode.index,
    }


def write_pareto(folder: RunFolder, job: Job) -> None:
    """Write the pruned networks that no other beats, each with a policy to make it again.

    What counts is dense MACs, non-zero parameters and validation accuracy, of every finished
    episode of every search.
    """
    archive = [
        (name, episode)
        for (name, stage), episodes in job.searches.items()
        for episode in episodes
        if stage == "pruning" and episode.accuracy is not None
    ]
    costs = [(e.dense_macs, e.sparse_params) for _, e in archive]
    front = non_dominated(costs, [e.accuracy or 0.0 for _, e in archive])
    rows = []
    (folder.path / "pareto").mkdir(exist_ok=True)
    for number, place in enumerate(front):
        name, episode = archive[place]
        policy = f"pareto/policy-{number:03}.json"
        folder.write_json(policy, {name: {"pruning": _policy(episode, VALUE_NAMES["pruning"])}})
        rows.append({"policy": policy, "search": name} | episode.row())
    folder.write_rows("pareto.csv", rows)


def score_networks(job: Job, folder: RunFolder, contenders: list[Contender]) -> list[Row]:
    """Write every final network to files and measure it on the test images, once."""
    models = {"baseline": job.task.model}
    models |= {f"network-{c.name}": c.quantization.model for c in contenders}
    exports = _export(job, folder, models)
    times = time_networks(folder.path, models, job.task)
    env, image = job.pruning_env, job.task.example_image()
    full = env.unpruned
    full_size = _save_floats(job.task.model, folder.path / "baseline.safetensors")

    def measure(file: str, name: str, stages: list[Stage]) -> Row:
        model = models[file]
        float_bytes = _save_floats(model, folder.path / f"{file}.safetensors")
        size = save(folder.path / f"{file}.cenv", model) if stages else full_size
        # Counted anew, on the network that stands there.
        macs = {
            "dense": total_macs(model, image),
            "sparse": sparse_macs(model, env.positions) + env.other_macs,
        }
        fits = size <= job.size_budget_bytes and macs[env.macs] <= env.budget
        return Row(
            network=name,
            validation_accuracy=job.task.accuracy(model, "validation"),
            test_error=1.0 - job.task.accuracy(model, "test"),
            macs=macs["dense"] / full.macs,
            sparse_macs=macs["sparse"] / full.macs,
            params=dense_params(model) / full.params,
            sparse_params=sparse_params(model) / full.params,
            size_bytes=size,
            size=size / full_size,
            float_bytes=float_bytes,
            within_budget=not stages or fits,
            n_evaluations=sum(s.episodes[-1].n_evaluations for s in stages),
            seconds=sum(e.seconds for s in stages for e in s.episodes),
            **(exports[file]._asdict() if exports else {}),
            **times[file],
        )

    rows = [measure("baseline", "baseline", [])]
    for contender in contenders:
        stages = [contender.pruning, contender.quantization]
        rows.append(measure(f"network-{contender.name}", contender.name, stages))
    return with_ratios(rows)


def _export(job: Job, folder: RunFolder, models: dict[str, nn.Module]) -> dict[str, Export]:
    """Write ONNX files, if that is wanted and can be done."""
    if not job.config.onnx:
        return {}
    try:
        return export_networks(folder.path, models, job.task)
    except ValueError as error:
        job.console.print(f"no ONNX files: {error}", soft_wrap=True, markup=False)
        return {}


def _save_floats(model: nn.Module, path: Path) -> int:
    """Write the network's weights, quantized ones as float32, and return the file's bytes."""
    plain = copy.deepcopy(model)
    bake(plain)
    save_checkpoint(plain, path)
    return path.stat().st_size


def draw_searches(folder: RunFolder, job: Job, contenders: list[Contender]) -> None:
    """Draw rewards, choices and trade-offs of both stages, and bits beside 8 bits everywhere.

    The last contender is the one that the job is about.
    """
    task = _plain(job.config.title)
    for stage, label in VALUE_LABELS.items():
        searched = [c for c in contenders if (c.name, stage) in job.searches]
        results: dict[str, Stage] = {c.name: getattr(c, stage) for c in searched}
        rewards = {n: [episode.reward for episode in r.episodes] for n, r in results.items()}
        chosen = {name: result.best for name, result in results.items()}
        title = f"{task}: {stage}"
        folder.write_figure(f"reward-{stage}.png", draw_rewards(rewards, title))
        folder.write_figure(f"layers-{stage}.png", draw_layers(chosen, label, title))
        folder.write_figure(f"tradeoff-{stage}.png", _draw_tradeoff(job, stage, title))
    agent, config = contenders[-1], job.config
    uniform = [c for c in contenders if c.name == f"{config.algo}-8bit"]
    bits = {c.name: c.quantization.best for c in [*uniform, agent]}
    folder.write_figure("bits.png", draw_layers(bits, VALUE_LABELS["quantization"], task))
    folder.write_figure("pareto.png", _draw_pareto(job, agent, f"{task}: pruned networks"))


def _plain(text: str) -> str:
    return text.replace("$", r"\$")  # no formula


def _draw_tradeoff(
    job: Job, stage: str, title: str, chosen: Mapping[str, Episode] = MappingProxyType({})
) -> Drawing:
    labels = {"pruning": f"{_cost(job)} per image", "quantization": "bytes of the packed file"}
    budgets = {"pruning": job.pruning_env.budget, "quantization": job.size_budget_bytes}
    episodes = {name: each for (name, other), each in job.searches.items() if other == stage}
    return draw_tradeoff(episodes, labels[stage], title, chosen=chosen, budget=budgets[stage])


def _cost(job: Job) -> str:
    of = {"dense": "multiply-accumulates", "sparse": "multiply-accumulates by non-zero weights"}
    return of[job.pruning_env.macs]


def _draw_pareto(job: Job, contender: Contender, title: str) -> Drawing:
    env = job.pruning_env
    episodes = [
        episode
        for (_, stage), found in job.searches.items()
        for episode in found
        if stage == "pruning" and episode.accuracy is not None
    ]
    return draw_pareto(
        episodes,
        {contender.name: contender.pruning.best},
        (env.unpruned.cost_high, job.task.accuracy(job.task.model, "validation")),
        env.budget,
        cost=_cost(job),
        title=title,
    )


def write_reports(
    folder: RunFolder, job: Job, contenders: Sequence[Contender], rows: Sequence[Row]
) -> None:
    """Write `report.md` and `report.html`; the last contender is the one that they are about."""
    chosen = contenders[-1]
    notes = _notes(job, chosen, rows)
    skipped = job.pruning_env.skipped_layers, job.unquantized
    folder.write_text("report.md", format_report(job.config, [*rows], *skipped, notes))
    page = Page(
        title=job.config.title,
        rows=rows,
        chosen=chosen.name,
        macs=job.pruning_env.macs,
        budgets={_cost(job): job.config.flops_budget, "bytes": job.config.size_budget},
        removed="weights" if job.pruning_env.plan.removes_elements else "input channels",
        rates=_by_layer(chosen.pruning.best),
        bits=_by_layer(chosen.quantization.best),
        unpruned=skipped[0],
        unquantized=skipped[1],
        figures=_figures(job, chosen),
        notes=notes,
        snippets=_snippets(job, chosen, rows),
        settings=_flat(read_object(folder.path / "config.json")),
    )
    folder.write_text("report.html", format_page(page))


def _notes(job: Job, chosen: Contender, rows: Sequence[Row]) -> list[str]:
    has_onnx = rows[0].latency_1_ms is not None
    notes = [describe_timing(job.task.device, has_onnx=has_onnx)]
    suggestion = suggest_channel_round(
        job.pruning_env,
        chosen.pruning.best.values,
        channel_round=getattr(job.config, "channel_round", 1),
    )
    return notes if suggestion is None else [*notes, str(suggestion)]


def _by_layer(episode: Episode) -> dict[str, float]:
    return dict(zip(episode.layers, episode.values, strict=True))


def _figures(job: Job, chosen: Contender) -> list[Figure]:
    """Draw what the page shows."""
    mine = {chosen.name: chosen.quantization.best}
    pruning = to_svg(
        partial(_draw_pareto, job, chosen, "Pruning"),
        "pruning",
        "Accuracy against multiply-accumulates of every pruned network",
    )
    quantization = to_svg(
        partial(_draw_tradeoff, job, "quantization", "Quantization", mine),
        "quantization",
        "Accuracy against bytes of every quantized network",
    )
    tried = "on validation images, before the final fine-tuning. Rings: no other is better in both."
    return [
        Figure(pruning, f"Pruned networks that were tried, one dot each, {tried}"),
        Figure(quantization, f"Networks of other bits that were tried, one dot each, {tried}"),
    ]


def _snippets(job: Job, chosen: Contender, rows: Sequence[Row]) -> dict[str, str]:
    architecture = getattr(job.task.model, "architecture", None)
    if architecture is None:
        return {}
    has_onnx = rows[-1].onnx_bytes is not None
    return format_snippets(f"network-{chosen.name}", architecture, has_onnx=has_onnx)


def _flat(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings with those of inner dictionaries side by side; digests are left out."""
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        if isinstance(value, dict) and name != "inputs":
            flat |= {f"{name}: {key}": inner for key, inner in value.items()}
        elif name != "inputs":
            flat[name] = value
    return flat
