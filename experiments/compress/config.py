"""The settings of the main job."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from compress_env.data.bundle import DATASETS
from compress_env.envs.base import RewardAt
from compress_env.envs.pruning import PruningMethod
from compress_env.networks.models import check_model_name
from compress_env.quantization.activations import ACTIVATION_BITS
from compress_env.task.rewards import REWARDS
from experiments.common.progress import check_tensorboard
from experiments.search.algorithms import check_algorithm
from experiments.search.policies import read_policy

__all__ = ["Config"]

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
