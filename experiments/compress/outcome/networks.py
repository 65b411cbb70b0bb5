"""What the main job comes to: episodes, policies, networks, and the rows of its table."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

from torch import nn

from compress_env.envs.pruning import PruningEnv
from compress_env.envs.quantization import QuantizationEnv
from compress_env.networks.models import save_checkpoint
from compress_env.quantization.fake_quant import bake
from compress_env.quantization.packing import save
from compress_env.task.counting import total_macs
from compress_env.task.layers import dense_params, sparse_macs, sparse_params
from compress_env.task.scoring import tops_for
from experiments.common.cli.say import say
from experiments.common.drawing.figures import non_dominated
from experiments.common.run_folder import RunFolder
from experiments.compress.outcome.exports import Export, export_networks, time_networks
from experiments.compress.outcome.report import Row, with_ratios
from experiments.compress.stages import Contender, Job, Stage
from experiments.search.episodes import Episode, best_episode

__all__ = ["VALUE_NAMES", "score_networks", "write_pareto", "write_searches"]

VALUE_NAMES = {"pruning": PruningEnv.value_name, "quantization": QuantizationEnv.value_name}
"""What a decision is called, by stage."""


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
    if not archive:
        return
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
    models |= {f"network-{c.name}": c.model for c in contenders}
    exports = _export(job, folder, models)
    times = time_networks(folder.path, models, job.task)
    env, image = job.first_env, job.task.example_image()
    full, tops = env.unpruned, tops_for(job.task.data.num_classes)
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
        params = {"dense": dense_params(model), "sparse": sparse_params(model)}
        errors = [1.0 - accuracy for accuracy in job.task.accuracies(model, "test", tops)]
        fits = size <= job.size_budget_bytes and job.fits(macs, params)
        return Row(
            network=name,
            validation_accuracy=job.task.score(model),
            test_error=errors[0],
            test_error_top5=errors[1] if len(errors) > 1 else None,
            macs=macs["dense"] / full.macs,
            sparse_macs=macs["sparse"] / full.macs,
            params=params["dense"] / full.params,
            sparse_params=params["sparse"] / full.params,
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
        stages = [*contender.stages.values()]
        rows.append(measure(f"network-{contender.name}", contender.name, stages))
    return with_ratios(rows)


def _export(job: Job, folder: RunFolder, models: dict[str, nn.Module]) -> dict[str, Export]:
    """Write ONNX files, if that is wanted and can be done."""
    if not job.config.onnx:
        return {}
    try:
        return export_networks(folder.path, models, job.task)
    except ValueError as error:
        say(job.console, f"no ONNX files: {error}")
        return {}


def _save_floats(model: nn.Module, path: Path) -> int:
    """Write the network's weights, quantized ones as float32, and return the file's bytes."""
    plain = copy.deepcopy(model)
    bake(plain)
    save_checkpoint(plain, path)
    return path.stat().st_size
