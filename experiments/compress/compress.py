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

from rich.console import Console

from compress_env.data.bundle import DATASETS
from compress_env.envs.base import RewardAt
from compress_env.envs.pruning import PruningMethod
from compress_env.networks.models import check_model_name
from compress_env.quantization.activations import ACTIVATION_BITS
from compress_env.task.rewards import REWARDS
from experiments.common.command import resume_hint, run_command
from experiments.common.progress import check_tensorboard
from experiments.common.run_folder import RunFolder, resume_run
from experiments.compress.outcome import draw_searches, score_networks, write_pareto, write_searches
from experiments.compress.report import Row, format_report, print_rows, read_rows
from experiments.compress.stages import Contender, Job
from experiments.search.algorithms import UNIFORM_BITS, check_algorithm
from experiments.search.policies import read_policy

__all__ = ["Config", "main", "run"]

LOWEST = {"episodes": 1, "n_envs": 1, "train_epochs": 1, "final_finetune_steps": 0}
"""Smallest value of each setting that is a number, where it is given."""


@dataclass(frozen=True)
class Config:
    """Settings of the main job."""

    model: str = "lenet5"
    """Named network."""
    dataset: str = "digits"
    """Named data set."""
    label: str | None = None
    """What tables and figures call the data set; its name when not given."""
    data_root: Path | None = None
    """Folder of the data set's files."""
    download: bool = False
    """Download the data set when it is missing."""
    checkpoint: Path | None = None
    """Weights of the network (safetensors or state_dict); trained by recipe when there is one."""
    train_epochs: int | None = None
    """Train the network for so many epochs first, and keep it in the cache; by its recipe when not
    given."""
    algo: str = "q_critic_ppo"
    """Agent: q_critic_ppo, ppo, kl_ppo, cim_ppo, a2c, ddpg, td3, sac, random or uniform; afie or
    sbpf, which choose pruning rates only and leave the bits to uniform."""
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
    policy: Path | None = None
    """Policy to apply instead of searching: a `policy.json`, of which the entry of `algo` is taken,
    or a file of `pareto/`. The other settings must be those of the run that it is from."""
    baselines: bool = True
    """Run what the agent is compared with: uniform compression, random search, uniform bits."""
    onnx: bool = True
    """Write every final network as ONNX too, and measure that in onnxruntime."""
    activation_bits: int | None = None
    """Bits of layers' inputs in stage 2: 8, or float32 when not given."""
    tensorboard: bool = False
    """Write TensorBoard's files to the run folder."""
    resume: Path | None = None
    """Run folder of a stopped run to go on with, with the settings that it was started with."""

    @property
    def title(self) -> str:
        """What tables and figures call the task.

        Raises:
            ValueError: If the label is no text that can be written.
        """
        label = self.label or self.dataset
        # On an ASCII terminal, a command line's other characters arrive as single bytes.
        readable = label.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
        return f"{self.model} on {readable}"

    def check(self) -> None:
        """Check what no environment checks.

        Raises:
            ValueError: If a setting is out of range.
            ImportError: If TensorBoard is asked for and not installed.
        """
        check_algorithm(self.algo)
        check_model_name(self.model)
        _ = self.title  # which says if it cannot be written
        for kind, name, valid in (
            ("data set", self.dataset, DATASETS),
            ("reward", self.reward, REWARDS),
        ):
            if name not in valid:
                raise ValueError(f"unknown {kind} {name!r}; valid: {', '.join(valid)}")
        for name, lowest in LOWEST.items():
            value = getattr(self, name)
            if value is not None and value < lowest:
                raise ValueError(f"{name} must be at least {lowest}, got {value}")
        if self.activation_bits not in (None, ACTIVATION_BITS):
            got = self.activation_bits
            raise ValueError(f"activation_bits must be {ACTIVATION_BITS}, got {got}")
        if self.train_epochs is not None and self.checkpoint is not None:
            raise ValueError("give train_epochs or a checkpoint, not both")
        if self.tensorboard:
            check_tensorboard()
        if self.policy is not None:
            read_policy(self.policy, self.algo)


def run(config: Config, console: Console) -> list[Row]:
    """Run the main job and write its folder, or go on with one that was stopped.

    Args:
        config: The settings.
        console: Where progress and the final table go.

    Returns:
        The rows of the final table: baseline, uniform, random, uniform bits and agent.

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
        write_searches(folder, job, _names(job.config))
        rows = score_networks(job, folder, contenders)
        draw_searches(folder, job, contenders)
        write_pareto(folder, job)
        skipped = job.pruning_env.skipped_layers, job.unquantized
        folder.write_text("report.md", format_report(job.config, rows, *skipped))
        folder.finish([row._asdict() for row in rows])
    except BaseException as stop:
        with suppress(OSError):  # the disk may be full
            write_searches(folder, job, _names(job.config))
        stop.add_note(resume_hint("experiments.compress", folder.path, job.config))
        raise
    finally:
        folder.close()
    print_rows(console, rows)
    console.print(f"run folder: {folder.path}", soft_wrap=True, markup=False)
    return rows


def _default_folder(config: Config) -> Path:
    stamp = datetime.now().strftime("%Y%m%d-%H%M%S")
    name = f"compress-{config.model}-{config.dataset}-{config.algo}-seed{config.seed}-{stamp}"
    return Path("runs") / name


def _names(config: Config) -> list[str]:
    """Return the contenders in the order of the table."""
    if config.policy is not None:
        return ["policy"]
    if not config.baselines:
        return [config.algo]
    others = [name for name in ("uniform", "random") if name != config.algo]
    return [*others, *_uniform_bits(config), config.algo]


def _uniform_bits(config: Config) -> dict[str, bool]:
    """Return the usual baselines of stage 2, and whether they are free of the size budget.

    They give all layers of the agent's pruned network 8 bits, or the most that meet the budget.
    """
    baselines = {f"{config.algo}-8bit": True, f"{config.algo}-uniform": False}
    if config.algo in UNIFORM_BITS:
        del baselines[f"{config.algo}-uniform"]
    return baselines


def _contend(job: Job) -> list[Contender]:
    """Run the agent, which goes first, and all that it is compared with; or a policy."""
    config, names = job.config, _names(job.config)
    if config.policy is not None:
        return [job.compress("policy", config.algo, None)]
    agent = job.compress(config.algo, config.algo, None)
    write_searches(job.folder, job, names)
    spent = (
        agent.pruning.episodes[-1].n_evaluations,
        agent.quantization.episodes[-1].n_evaluations,
    )
    uniform_bits, baselines = _uniform_bits(config), []
    for name in names[:-1]:
        if name in uniform_bits:
            is_free = uniform_bits[name]
            baselines.append(job.quantize_uniformly(name, agent.pruning, is_free=is_free))
        else:
            baselines.append(job.compress(name, name, spent))
        write_searches(job.folder, job, names)
    return [*baselines, agent]


def main() -> None:
    """Run from the command line."""
    run_command(Config, run, __doc__ or "")
