"""The main job: prune a network, quantize it, and compare the agent with the baselines.

`python -m experiments.compress` searches pruning rates, applies the best ones and fine-tunes,
searches bits for the pruned network, applies and fine-tunes again, and measures test accuracy
once. Uniform compression and random search with as many network evaluations go the same way.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

import tyro
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from torch import nn

from agents import Random, Uniform
from compress_env.data import DataBundle, load_data
from compress_env.envs.base import LayerwiseCompressionEnv, RewardAt, TaskOptions
from compress_env.envs.pruning import PruningEnv, PruningMethod
from compress_env.envs.quantization import QuantizationEnv
from compress_env.models import load_baseline, save_checkpoint
from compress_env.quantization.packing import pack, save_packed
from compress_env.seeding import derive_generator
from compress_env.task import select_device
from experiments.algorithms import check_algorithm, make_learner
from experiments.figures import draw_layers, draw_rewards, draw_tradeoff
from experiments.report import Row, format_report, print_rows
from experiments.run_folder import RunFolder
from experiments.search import (
    Episode,
    EpisodeLog,
    best_episode,
    replay,
    run_learner,
    run_policy,
)

__all__ = ["Config", "main", "run"]


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

    def check(self) -> None:
        """Check what no environment checks.

        Raises:
            ValueError: If a setting is out of range.
        """
        check_algorithm(self.algo)
        if self.episodes < 1:
            raise ValueError(f"episodes must be at least 1, got {self.episodes}")
        if self.final_finetune_steps is not None and self.final_finetune_steps < 0:
            raise ValueError(
                f"final_finetune_steps must be 0 or more, got {self.final_finetune_steps}"
            )


class Stage(NamedTuple):
    """What a search over one stage left behind."""

    episodes: list[Episode]
    best: Episode
    model: nn.Module
    env: LayerwiseCompressionEnv


class Contender(NamedTuple):
    """One way to choose rates and bits, and what it has come to."""

    name: str
    pruning: Stage
    quantization: Stage


class Job:
    """The main job of one configuration."""

    def __init__(self, config: Config, console: Console) -> None:
        """Load the task and check both budgets before anything is written or trained.

        Raises:
            ValueError: If a name, a budget or another setting is wrong.
            FileNotFoundError: If the data set or the checkpoint is not there.
        """
        config.check()
        self.config = config
        self.console = console
        data = load_data(config.dataset, data_root=config.data_root, download=config.download)
        self.pruning_env = PruningEnv(
            self._baseline(data),
            data,
            device=config.device,
            method=config.method,
            flops_budget=config.flops_budget,
            finetune_steps=config.finetune_steps,
            reward=config.reward,
            reward_at=config.reward_at,
            seed=config.seed,
        )
        self.task = self.pruning_env.task
        self.size_budget_bytes = config.size_budget * len(pack(self.task.model))
        smallest = QuantizationEnv(
            self.pruning_env.smallest_model(), self.task.data, device=self.task.device
        )
        lowest = smallest.unpruned.cost_low / len(pack(self.task.model))
        if not lowest <= config.size_budget <= 1.0:
            raise ValueError(
                f"size_budget must be in [{lowest:.4f}, 1]: the most pruned network at 1 bit "
                f"reaches {lowest:.4f} of the float32 size, got {config.size_budget}"
            )

    def _baseline(self, data: DataBundle) -> nn.Module:
        """Load the network, or train it by its recipe, with a bar."""
        device = select_device(self.config.device)
        with Progress(console=self.console, disable=not self.console.is_terminal) as progress:
            bar = progress.add_task("baseline", visible=False)

            def advance(done: int, total: int) -> None:
                progress.update(bar, completed=done, total=total, visible=True)

            return load_baseline(
                self.config.model,
                data.to(device),
                checkpoint=self.config.checkpoint,
                device=device,
                progress=advance,
            )

    def compress(
        self, name: str, algorithm: str, n_evaluations: tuple[int, int] | None
    ) -> Contender:
        """Run both stages with one algorithm.

        Args:
            name: What the row is called.
            algorithm: Name of the agent.
            n_evaluations: Network evaluations allowed in each stage; by episodes when None.
        """
        limits = n_evaluations or (None, None)
        pruning = self._stage(f"{name}: pruning", self.pruning_env, algorithm, limits[0])
        quantization_env = self._quantization_env(name, pruning.model)
        quantization = self._stage(f"{name}: bits", quantization_env, algorithm, limits[1])
        return Contender(name, pruning, quantization)

    def _quantization_env(self, name: str, model: nn.Module) -> QuantizationEnv:
        """Make the environment of stage 2; its budget is the nearest that the network can meet."""
        options: TaskOptions = {
            "device": self.task.device,
            "finetune_steps": self.config.finetune_steps,
            "reward": self.config.reward,
            "reward_at": self.config.reward_at,
            "seed": self.config.seed,
        }
        free = QuantizationEnv(model, self.task.data, **options).unpruned
        budget, lowest = self.size_budget_bytes / free.cost_high, free.cost_low / free.cost_high
        if budget < lowest:
            self.console.print(f"{name}: too little was pruned for the size budget, even at 1 bit")
        size_budget = min(1.0, max(budget, lowest))
        return QuantizationEnv(model, self.task.data, size_budget=size_budget, **options)

    def _stage(
        self, label: str, env: LayerwiseCompressionEnv, algorithm: str, n_evaluations: int | None
    ) -> Stage:
        """Search, apply the best episode again, and fine-tune its network."""
        episodes = self._search(label, env, algorithm, n_evaluations)
        best = best_episode(episodes)
        replay(env, best)
        model = env.live_model()
        generator = derive_generator(self.config.seed, 2**31, 0)
        with self._status(f"{label}: fine-tuning the best network"):
            self.task.finetune(model, self._final_steps(), generator, anneal=True)
        self.task.reestimate_batch_norm(model, derive_generator(self.config.seed, 2**31, 1))
        return Stage(episodes, best, model, env)

    def _status(self, text: str) -> AbstractContextManager[object]:
        """Show a spinner on a terminal, and nothing elsewhere."""
        return self.console.status(text) if self.console.is_terminal else nullcontext()

    def _final_steps(self) -> int:
        if self.config.final_finetune_steps is not None:
            return self.config.final_finetune_steps
        return max(1000, 10 * len(self.task.data.train) // self.task.config.batch_size)

    def _search(
        self, label: str, env: LayerwiseCompressionEnv, algorithm: str, n_evaluations: int | None
    ) -> list[Episode]:
        env.forget_evaluations()
        total = 1 if algorithm == "uniform" else n_evaluations or self.config.episodes
        with self._progress(label, total) as advance:
            log = EpisodeLog(env, advance)
            if algorithm == "uniform":
                run_policy(Uniform(env.uniform_value() / env.value_scale), log, n_episodes=1)
            elif algorithm == "random":
                policy = Random(env.observation_space, env.action_space, self.config.seed)
                # A random sequence repeats another now and then: allow for many that do.
                limit = 10 * n_evaluations if n_evaluations else self.config.episodes
                run_policy(policy, log, n_episodes=limit, n_evaluations=n_evaluations)
            else:
                n_steps = self.config.episodes * len(env.walk)
                agent = make_learner(algorithm, log, n_steps=n_steps, seed=self.config.seed)
                run_learner(agent, log, self.config.episodes)
        return log.episodes

    @contextmanager
    def _progress(self, label: str, total: int) -> Iterator[Any]:
        """Show a bar on a terminal, and one line per search elsewhere."""
        columns = (
            TextColumn("{task.description:<22}"),
            BarColumn(),
            TextColumn("{task.completed}/{task.total}"),
            TextColumn("best accuracy {task.fields[best]:.4f}"),
            TimeRemainingColumn(),
        )
        best = 0.0
        terminal = self.console.is_terminal
        with Progress(*columns, console=self.console, disable=not terminal) as progress:
            task = progress.add_task(label, total=total, best=best)

            def advance(episode: Episode) -> None:
                nonlocal best
                best = max(best, episode.accuracy or 0.0)
                progress.update(task, advance=1, best=best)

            yield advance
        if not terminal:
            self.console.print(f"{label}: best validation accuracy {best:.4f}")


def run(config: Config, console: Console) -> list[Row]:
    """Run the main job and write its folder.

    Args:
        config: The settings.
        console: Where progress and the final table go.

    Returns:
        The rows of the final table: baseline, uniform, random and agent.

    Raises:
        ValueError: If a setting is wrong; nothing has been written then.
        FileNotFoundError: If data or checkpoint are not there; likewise.
    """
    job = Job(config, console)
    folder = RunFolder(config.out or _default_folder(config), config)
    contenders = _contend(job)
    _write_searches(folder, contenders)
    rows = _score(job, folder, contenders)
    folder.write_rows("table.csv", [row._asdict() for row in rows])
    _draw(folder, contenders)
    folder.write_text("report.md", format_report(config, rows, job.pruning_env.skipped_layers))
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
    spent = (
        agent.pruning.episodes[-1].n_evaluations,
        agent.quantization.episodes[-1].n_evaluations,
    )
    baselines = [
        job.compress(name, name, spent) for name in ("uniform", "random") if name != algorithm
    ]
    return [*baselines, agent]


def _write_searches(folder: RunFolder, contenders: list[Contender]) -> None:
    rows = []
    policies: dict[str, dict[str, Any]] = {}
    for contender in contenders:
        policies[contender.name] = {}
        for stage in ("pruning", "quantization"):
            result: Stage = getattr(contender, stage)
            rows += [
                {"search": contender.name, "stage": stage} | episode.row()
                for episode in result.episodes
            ]
            best = result.best
            policies[contender.name][stage] = {
                "layers": best.layers,
                result.env.value_name: best.values,
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
        value = results[contenders[-1].name].env.value_name
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
    """Run from the command line; a wrong setting ends it with one line."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    logging.getLogger("matplotlib").setLevel(logging.WARNING)
    try:
        run(tyro.cli(Config, description=__doc__), Console())
    except (ValueError, OSError, RuntimeError, ArithmeticError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
