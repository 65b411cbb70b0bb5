"""The settings of the main job."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Annotated, Literal, NamedTuple, get_args

import tyro

from agents.common.schedules import RolloutSchedule
from agents.rules import PRUNING_RULES
from compress_env.data.bundle import DATASETS
from compress_env.envs.options import FinetuneAt, RewardAt
from compress_env.envs.pruning import PruningMethod
from compress_env.names import check_name, nearest
from compress_env.networks.libraries import AUTO
from compress_env.networks.models import check_model_name
from compress_env.pruning.elements import Preset
from compress_env.quantization.activations import ACTIVATION_BITS
from compress_env.task.rewards import REWARDS
from experiments.common.cli.given import HANDED_OVER
from experiments.common.cli.progress import check_tensorboard
from experiments.common.cli.user_code import names_code
from experiments.search.algorithms import LEARNERS, check_algorithm, has_rate
from experiments.search.entrants import BITS_ONLY, POLICIES, PRIOR_RULES, PRUNING_ONLY
from experiments.search.observing import check_shaping
from experiments.search.policies import read_policy

__all__ = ["COMPARED", "DEFAULT_TASK", "Config", "Effort", "own_names"]

Effort = Literal["quick", "normal", "thorough"]
Schedule = Literal["cosine", "constant"]
RULE = "portfolio"
"""What needs no search: the best of several rules, by one episode each."""
EVALUATIONS = {"quick": 100, "normal": 100, "thorough": 300}
"""Network evaluations of a search in each stage, by effort; a quick one has none of its own."""
MIXED_BITS = "8-5bit"
"""8 bits in convolutions and 5 in linear layers (Han, Mao & Dally 2016, arXiv 1510.00149)."""
CHOOSERS = (
    f"Who chooses: {', '.join((*LEARNERS, *POLICIES))}; or AGENT+RULE, such as ppo+l1: a search "
    f"around a rule ({', '.join(PRIOR_RULES)}). portfolio is the best of a few rules. Who knows "
    f"rates alone ({', '.join(PRUNING_ONLY)}) or bits alone ({', '.join(BITS_ONLY)}) leaves the "
    "other to uniform, other rules leave bits to relative_error. When not given: portfolio; or, "
    "with evaluations or more effort, cma_es that starts from it."
)
"""What `--help` says of `algo`."""
COMPARED = ("uniform", RULE, *PRUNING_RULES, "random", "8bit", MIXED_BITS, "uniform-bits")
"""What a search can be compared with: one value for all layers, the rules, random search with as
many evaluations, and the searched pruned network with 8 bits everywhere, 8 in convolutions and 5 in
linear layers, or the most that fit everywhere."""


class GivenBits(NamedTuple):
    """Bits of the searched pruned network that need no search."""

    is_free: bool
    """Whether they are free of the budget."""
    rule: str
    """Who chooses them."""


BITS = {
    "8bit": GivenBits(True, "uniform"),
    MIXED_BITS: GivenBits(True, MIXED_BITS),
    "uniform-bits": GivenBits(False, "uniform"),
}
"""What a search can be compared with that is of this kind, by name."""
DEFAULT_TASK = {"model": "vgg8", "data": "digits16", "macs": 0.1, "size": 0.02}
"""What is done where the command line names neither a network nor images."""
SETTINGS = {"flops_budget": "macs", "params_budget": "params", "size_budget": "size"}
"""What the job calls the budgets of environments."""
LOWEST = {
    "n_envs": 1,
    "train_epochs": 1,
    "final_finetune_steps": 0,
    "evaluations": 1,
    "image_size": 1,
}
"""Smallest value of each setting that is a number, where it is given."""


@dataclass(frozen=True)
class Config:
    """Settings of the main job."""

    model: str | None = None
    """Network: a name (`lenet5`, `torchvision/resnet18`, `timm/NAME`), or FILE.py:NAME of a module,
    its class, or a function that returns it."""
    weights: Path | None = None
    """Weights of the network (safetensors or state_dict)."""
    train_epochs: int | None = None
    """Train the network for so many epochs first; by its recipe when there is one."""
    data: str | None = None
    """Images: a name (`mnist`), a folder (`train/CLASS/IMAGE` beside `val` or `test`, or
    `CLASS/IMAGE`), or FILE.py:NAME of a function that returns a bundle or two data sets."""
    label: str | None = None
    """What tables and figures call the images; their name when not given."""
    image_size: int | None = None
    """Side in pixels to which the images of a folder are scaled."""
    preparation: str = AUTO
    """How images of imagenet or a folder are normalised: auto, as the network's published weights
    expect; imagenet, with its mean and standard deviation; timm/NAME, as timm's weights expect."""
    data_root: Path | None = None
    """Folder of the files of a named data set."""
    download: bool = False
    """Download a named data set when it is missing."""
    macs: float | None = None
    """Highest multiply-accumulates after pruning, a fraction of the unpruned network's."""
    params: float | None = None
    """Highest parameters after pruning, a fraction of the unpruned network's."""
    size: float | None = None
    """Highest bytes after quantization, a fraction of the unpruned network's as float32."""
    effort: Effort = "quick"
    """quick: the best of a few search-free rules; normal and thorough: a search from there, of 100
    and 300 network evaluations in each stage."""
    evaluations: int | None = None
    """Network evaluations of a search in each stage, in place of effort's."""
    algo: Annotated[str | None, tyro.conf.arg(help=CHOOSERS)] = None
    compare: tuple[str, ...] = ("uniform", RULE)
    """What it is compared with: uniform, portfolio, rules by name, random, 8bit, 8-5bit (8 bits in
    convolutions, 5 in linear layers), uniform-bits."""
    agent_rate_drops: tuple[int, ...] = ()
    """Rollouts (episodes) after which a learner's own learning rate is divided by ten."""
    agent_rate_decay: float = 1.0
    """Factor of a learner's own learning rate after each rollout."""
    method: PruningMethod = "magnitude"
    """How channels or elements are selected."""
    variational: Preset = "default"
    """How elements are, where they go: the least salient, or with a probability as in the paper."""
    channel_round: int = 1
    """Counts of channels that stay are multiples of it, where that can be."""
    reward: str = "err"
    """Reward: err, flops, amc_flops or amc_params."""
    reward_at: RewardAt = "episode"
    """Score, and reward, after every layer or once at the end: one evaluation an episode."""
    shaping: float = 0.0
    """Weight of the saliency that decisions lose in the reward of a learner around a rule, as
    credit before the end of an episode; tables tell the reward without it."""
    finetune_steps: int = 20
    """Minibatches of fine-tuning in an episode, or after each layer of it."""
    finetune_at: FinetuneAt = "episode"
    """Fine-tune after every layer or once at the end of an episode."""
    final_finetune_steps: int | None = None
    """Minibatches of fine-tuning after each stage; when not given, ten passes over the training
    images and at least 500 minibatches."""
    distill: float = 0.5
    """Weight of the unpruned network's answers in the loss of the final fine-tunings, in [0, 1]."""
    distill_temperature: float = 4.0
    """What logits are divided by where answers are compared."""
    learning_rate: float = 0.01
    """Step size of fine-tuning."""
    schedule: Schedule = "cosine"
    """How the step size goes in the final fine-tunings, after it has risen for a twentieth of them:
    down to 0 along a cosine, or not at all."""
    batch_size: int = 64
    """Images in a minibatch of fine-tuning."""
    bf16: bool = False
    """Compute in bfloat16 while fine-tuning and scoring."""
    activation_bits: int | None = None
    """Bits of layers' inputs in stage 2: 8, or float32 when not given."""
    seed: int = 0
    """Seed of the task and of the search."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1 and so on."""
    n_envs: int = 1
    """Environments that step side by side, each in a process of its own when more than one."""
    out: Path | None = None
    """Run folder; a new one under runs/ when not given."""
    resume: Path | None = None
    """Run folder of a stopped run to go on with, with the settings that it was started with."""
    store: Path | None = None
    """File that keeps what steps lead to, for all runs that name it; in memory when not given."""
    policy: Path | None = None
    """Policy to apply instead of searching: a `policy.json`, of which the entry of `algo` is taken,
    or a file of `pareto/`. The other settings must be those of the run that it is from."""
    onnx: bool = True
    """Write every final network as ONNX too, and measure that in onnxruntime."""
    tensorboard: bool = False
    """Write TensorBoard's files to the run folder."""

    @property
    def title(self) -> str:
        """What tables and figures call the task.

        Raises:
            ValueError: If the label is no text that can be written.
        """
        label = self.label or _short(self.data or "data")
        # On an ASCII terminal, a command line's other characters arrive as single bytes.
        readable = label.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
        return f"{_short(self.model or 'network')} on {readable}"

    @property
    def default_folder(self) -> Path:
        """A folder under `runs/`, named after task and moment."""
        stamp = datetime.now().strftime("%Y%m%d-%H%M%S")
        title = self.title.replace(" on ", "-").replace("/", "-")
        return Path("runs") / f"compress-{title}-{self.searcher}-seed{self.seed}-{stamp}"

    @property
    def searcher(self) -> str:
        """Name of the agent, or of the rules."""
        is_quick = self.effort == "quick" and self.evaluations is None
        return self.algo or (RULE if is_quick else "cma_es")

    @property
    def n_evaluations(self) -> int:
        """Network evaluations of the search in each stage."""
        return self.evaluations or EVALUATIONS[self.effort]

    @property
    def n_episodes(self) -> int:
        """Episodes of the search in each stage, at most.

        A sequence of decisions repeats another now and then, which is no new evaluation.
        """
        return 10 * self.n_evaluations

    @property
    def prunes(self) -> bool:
        """Whether there is a stage of pruning."""
        return self.macs is not None or self.params is not None

    @property
    def contenders(self) -> list[str]:
        """Names of the contenders in the order of the table, the search last."""
        if self.policy is not None:
            return ["policy"]
        others = [
            name for name in dict.fromkeys(self.compare) if name not in {*BITS, self.searcher}
        ]
        return [*others, *self.given_bits, self.searcher]

    @property
    def given_bits(self) -> dict[str, GivenBits]:
        """Contenders with given bits in all layers."""
        if self.size is None or not self.prunes or self.policy is not None:
            return {}
        return {f"{self.searcher}-{n}": bits for n, bits in BITS.items() if n in self.compare}

    def resolved(self) -> Config:
        """Return the settings with `DEFAULT_TASK` where neither network nor images are named.

        Raises:
            ValueError: If one of the two is named without the other.
        """
        if self.model is not None and self.data is not None:
            return self
        for name, other in (("model", "data"), ("data", "model")):
            if getattr(self, name) is not None:
                raise ValueError(f"--{name} needs --{other} beside it")
        has_budget = self.prunes or self.size is not None
        kept = ("macs", "size") if has_budget else ()
        return replace(self, **{k: v for k, v in DEFAULT_TASK.items() if k not in kept})  # type: ignore[arg-type]

    def check(self) -> None:
        """Check what no environment checks.

        Raises:
            ValueError: If a setting is out of range.
            ImportError: If TensorBoard is asked for and not installed.
        """
        if self.model is None or self.data is None:
            return self.resolved().check()
        if self.algo is not None:
            check_algorithm(self.algo)
        if self.model is not None and not _is_object(self.model):
            check_model_name(self.model)
        _ = self.title  # which says if it cannot be written
        self._check_data()
        self._check_numbers()
        check_shaping(self.searcher, self.shaping)
        check_name("reward", self.reward, REWARDS)
        check_name("effort", self.effort, EVALUATIONS)
        check_name("schedule", self.schedule, get_args(Schedule))
        self._check_rates()
        for name in self.compare:
            check_name("comparison", name, COMPARED)
        if not self.prunes and self.size is None:
            raise ValueError(
                "expected a budget: --macs, --params (both prune) or --size (quantizes), fractions "
                "of the network as it is"
            )
        if self.tensorboard:
            check_tensorboard()
        if self.policy is not None:
            read_policy(self.policy, self.searcher)

    def _check_numbers(self) -> None:
        for name, lowest in LOWEST.items():
            value = getattr(self, name)
            if value is not None and value < lowest:
                raise ValueError(f"{name} must be at least {lowest}, got {value}")
        if self.activation_bits not in (None, ACTIVATION_BITS):
            got = self.activation_bits
            raise ValueError(f"activation_bits must be {ACTIVATION_BITS}, got {got}")
        if not 0.0 <= self.distill <= 1.0:
            raise ValueError(f"distill must be in [0, 1], got {self.distill}")
        if self.train_epochs is not None and self.weights is not None:
            raise ValueError("give train_epochs or weights, not both")

    def _check_rates(self) -> None:
        try:
            RolloutSchedule(1.0, self.n_episodes, self.agent_rate_drops, self.agent_rate_decay)
        except ValueError as error:
            raise ValueError(f"agent_rate_{error}") from None
        if (self.agent_rate_drops or self.agent_rate_decay < 1.0) and not has_rate(self.searcher):
            raise ValueError(
                f"{self.searcher} has no learning rate for agent_rate_drops and agent_rate_decay; "
                f"those that have: {', '.join(filter(has_rate, LEARNERS))}"
            )

    def _check_data(self) -> None:
        """Check the name of a data set, which may also be a folder, or code."""
        data = self.data or ""
        is_named = data in DATASETS or _is_object(data)
        if not is_named and not Path(data).expanduser().is_dir():
            raise ValueError(
                f"no folder and no data set {data!r}{nearest(data, DATASETS)}; names: "
                f"{', '.join(DATASETS)}"
            )


def _is_object(reference: str) -> bool:
    """Tell whether code, or a caller, brings what is named."""
    return names_code(reference) or reference.startswith(HANDED_OVER)


def _short(reference: str) -> str:
    """Return what to call a network or images that a path leads to."""
    if _is_object(reference):
        return reference.rpartition(":")[2]
    return reference if "/" not in reference or ":" in reference else Path(reference).name


@contextmanager
def own_names() -> Iterator[None]:
    """Call budgets in errors as the job's settings are called, not as those of environments."""
    try:
        yield
    except ValueError as error:
        message = re.sub(r"\b(?:flops|params|size)_budget\b", lambda m: SETTINGS[m[0]], str(error))
        raise ValueError(message) from error
