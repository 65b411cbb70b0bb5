"""The main job: prune a network, quantize it, and compare the agent with the baselines.

`python -m experiments.compress` searches pruning rates, applies the best ones and fine-tunes,
searches bits for the pruned network, applies and fine-tunes again, and measures test accuracy
once. Uniform compression and random search with as many network evaluations go the same way.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from rich.console import Console
from torch import nn

from compress_env.data import DATASETS
from compress_env.envs.base import RewardAt
from compress_env.envs.pruning import PruningEnv, PruningMethod
from compress_env.envs.quantization import QuantizationEnv
from compress_env.models import MODELS, save_checkpoint
from compress_env.quantization.packing import save_packed
from compress_env.rewards import REWARDS
from experiments.algorithms import check_algorithm
from experiments.command import resume_hint, run_command
from experiments.figures import draw_layers, draw_rewards, draw_tradeoff
from experiments.progress import check_tensorboard
from experiments.report import Row, format_report, print_rows, read_rows
from experiments.run_folder import RunFolder, resume_run
from experiments.search import best_episode
from experiments.stages import Contender, Job, Stage

__all__ = ["Config", "main", "run"]

VALUE_NAMES = {"pruning": PruningEnv.value_name, "quantization": QuantizationEnv.value_name}


@dataclass(frozen=True)
class Config:
    """Settings of the main job."""

    model: str = "lenet5"
    """Named network."""
    dataset: str = "digits"
    """Named data set."""
    data_root: Path | None = None
    """Folder of the data set's files."""
    download: bool = False
    """Download the data set when it is missing."""
    checkpoint: Path | None = None
    """Weights of the network (safetensors or state_dict); trained by recipe when there is one."""
    algo: str = "q_critic_ppo"
    """Agent: q_critic_ppo, ppo, a2c, ddpg, td3, sac, random or uniform."""
    method: PruningMethod = "channel"
    """How channels are selected."""
    flops_budget: float = 0.164
    """Highest multiply-accumulates after pruning, a fraction of the unpruned network's."""
    size_budget: float = 0.03
    """Highest size after quantization, a fraction of the unpruned network's float32 size."""
    reward: str = "err"
    """Reward: err, flops, amc_flops or amc_params."""
    reward_at: RewardAt = "episode"
    """Score, and reward, after every layer or once at the end: one evaluation an episode."""
    episodes: int = 150
    """Episodes of the agent in each of the two stages."""
    finetune_steps: int = 10
    """Minibatches of fine-tuning after each layer."""
    final_finetune_steps: int | None = None
    """Minibatches of fine-tuning after each stage, learning rate annealed; when not given, ten
    passes over the training images and at least 1,000 minibatches."""
    seed: int = 0
    """Seed of the task and of the agent."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1 and so on."""
    out: Path | None = None
    """Run folder; a new one under runs/ when not given."""
    n_envs: int = 1
    """Environments that step side by side, each in a process of its own when more than one."""
    store: Path | None = None
    """File that keeps what steps lead to, for all runs that name it; in memory when not given."""
    tensorboard: bool = False
    """Write TensorBoard's files to the run folder."""
    resume: Path | None = None
    """Run folder of a stopped run to go on with, with the settings that it was started with."""

    def check(self) -> None:
        """Check what no environment checks.

        Raises:
            ValueError: If a setting is out of range.
            ImportError: If TensorBoard is asked for and not installed.
        """
        check_algorithm(self.algo)
        for kind, name, valid in (
            ("model", self.model, MODELS),
            ("data set", self.dataset, DATASETS),
            ("reward", self.reward, REWARDS),
        ):
            if name not in valid:
                raise ValueError(f"unknown {kind} {name!r}; valid: {', '.join(valid)}")
        for name in ("episodes", "n_envs"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.tensorboard:
            check_tensorboard()
        if self.final_finetune_steps is not None and self.final_finetune_steps < 0:
            raise ValueError(
                f"final_finetune_steps must be 0 or more, got {self.final_finetune_steps}"
            )


def run(config: Config, console: Console) -> list[Row]:
    """Run the main job and write its folder, or go on with one that was stopped.

    Args:
        config: The settings.
        console: Where progress and the final table go.

    Returns:
        The rows of the final table: baseline, uniform, random and agent.

    Raises:
        ValueError: If a setting is wrong; nothing has been written then.
        FileNotFoundError: If data or checkpoint are not there; likewise.
    """
    if config.resume is not None:
        config, folder = resume_run(config, config.resume)
        if folder.is_finished:
            folder.close()
            rows = read_rows(folder.finished_path)
            print_rows(console, rows)
            return rows
    else:
        folder = RunFolder(config.out or _default_folder(config), config)
    try:
        job = Job(config, console, folder)
    except Exception:
        folder.discard()
        raise
    return _run_job(job, folder, console)


def _run_job(job: Job, folder: RunFolder, console: Console) -> list[Row]:
    """Run a job to its end, or leave a folder with which to go on."""
    try:
        contenders = _contend(job)
        _write_searches(folder, job)
        rows = _score(job, folder, contenders)
        _draw(folder, contenders)
        skipped = job.pruning_env.skipped_layers
        folder.write_text("report.md", format_report(job.config, rows, skipped))
        folder.finish([row._asdict() for row in rows])
    except BaseException as stop:
        with suppress(OSError):  # the disk may be full
            _write_searches(folder, job)
        stop.add_note(resume_hint("experiments.compress", folder.path))
        raise
    finally:
        folder.close()
    print_rows(console, rows)
    console.print(f"run folder: {folder.path}", soft_wrap=True)
    return rows


def _default_folder(config: Config) -> Path:
    stamp = datetime.now().strftime("%Y%m%d-%H%M%S")
    name = f"compress-{config.model}-{config.dataset}-{config.algo}-seed{config.seed}-{stamp}"
    return Path("runs") / name


def _contend(job: Job) -> list[Contender]:
    """Run uniform compression, random search and the agent; the agent goes first."""
    algorithm = job.config.algo
    agent = job.compress(algorithm, algorithm, None)
    _write_searches(job.folder, job)
    spent = (
        agent.pruning.episodes[-1].n_evaluations,
        agent.quantization.episodes[-1].n_evaluations,
    )
    baselines = []
    for name in ("uniform", "random"):
        if name != algorithm:
            baselines.append(job.compress(name, name, spent))
            _write_searches(job.folder, job)
    return [*baselines, agent]


def _write_searches(folder: RunFolder, job: Job) -> None:
    """Write every episode so far, and the best ones."""
    rows = []
    policies: dict[str, dict[str, Any]] = {}
    names = [name for name in ("uniform", "random") if name != job.config.algo]
    for name in [*names, job.config.algo]:
        for stage, value_name in VALUE_NAMES.items():
            episodes = job.searches.get((name, stage), [])
            rows += [{"search": name, "stage": stage} | episode.row() for episode in episodes]
            if any(episode.accuracy is not None for episode in episodes):
                best = best_episode(episodes)
                policies.setdefault(name, {})[stage] = {
                    "layers": best.layers,
                    value_name: best.values,
                    "actions": best.actions,
                    "validation_accuracy": best.accuracy,
                    "episode": best.index,
                }
    folder.write_rows("episodes.csv", rows)
    folder.write_json("policy.json", policies)


def _score(job: Job, folder: RunFolder, contenders: list[Contender]) -> list[Row]:
    """Write every final network to a file and measure it on the test images, once."""
    baseline_path = folder.path / "baseline.safetensors"
    save_checkpoint(job.task.model, baseline_path)
    full = job.pruning_env.unpruned
    full_size = baseline_path.stat().st_size

    def measure(
        name: str, model: nn.Module, macs: int, params: int, size: int, stages: list[Stage]
    ) -> Row:
        return Row(
            network=name,
            validation_accuracy=job.task.accuracy(model, "validation"),
            test_error=1.0 - job.task.accuracy(model, "test"),
            macs=macs / full.macs,
            params=params / full.params,
            size_bytes=size,
            size=size / full_size,
            within_budget=not stages or size <= job.size_budget_bytes,
            n_evaluations=sum(s.episodes[-1].n_evaluations for s in stages),
            seconds=sum(e.seconds for s in stages for e in s.episodes),
        )

    rows = [measure("baseline", job.task.model, full.macs, full.params, full_size, [])]
    for contender in contenders:
        stages = [contender.pruning, contender.quantization]
        model, best = contender.quantization.model, contender.quantization.best
        size = save_packed(folder.path / f"network-{contender.name}.safetensors", model)
        rows.append(
            measure(contender.name, model, best.dense_macs, best.dense_params, size, stages)
        )
    return rows


def _draw(folder: RunFolder, contenders: list[Contender]) -> None:
    labels = {"pruning": "multiply-accumulates per image", "quantization": "bytes (predicted)"}
    for stage, xlabel in labels.items():
        results: dict[str, Stage] = {c.name: getattr(c, stage) for c in contenders}
        rewards = {n: [episode.reward for episode in r.episodes] for n, r in results.items()}
        value = VALUE_NAMES[stage]
        chosen = {name: result.best for name, result in results.items()}
        episodes = {name: result.episodes for name, result in results.items()}
        folder.write_figure(f"reward-{stage}.png", draw_rewards(rewards, f"Search: {stage}"))
        folder.write_figure(
            f"layers-{stage}.png", draw_layers(chosen, value, f"Chosen {value} by layer")
        )
        folder.write_figure(
            f"tradeoff-{stage}.png", draw_tradeoff(episodes, xlabel, f"Every episode: {stage}")
        )


def main() -> None:
    """Run from the command line."""
    run_command(Config, run, __doc__ or "")


if __name__ == "__main__":
    main()
