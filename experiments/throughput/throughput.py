"""What a step costs beyond its training and scoring, and what a store and parallel actors save.

- `step`: `env.step` against a bare loop that runs the same minibatches and the same validation
  images on the same network, and where the rest goes, phase by phase.
- `store`: the same search by PPO and by QCriticPPO without a store, with one that is empty at first
  (cold), and with one that has every step (warm).
- `actors`: QCriticPPO with one and with two worker processes, without a store.
- `loader`: images a second from a folder that is read when needed, against a bare `DataLoader` over
  the same files; it needs no network, and is measured when asked for.
- `candidates`: several pruned networks fine-tuned and scored one by one and in one pass; for a GPU,
  and so not among the default parts.

Every comparison is made in one process, the things compared taking turns.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from rich.console import Console
from torch import nn

from compress_env.data.bundle import DataBundle, load_data
from compress_env.envs.options import FinetuneAt, RewardAt, StoreOption
from compress_env.envs.pruning import PruningEnv, PruningMethod
from compress_env.networks.libraries import AUTO, choose_preparation
from compress_env.networks.models import build_model, load_baseline
from compress_env.task.task import FinetuneConfig, select_device
from experiments.common.checks import check_lowest
from experiments.common.cli.command import run_command, run_measurement
from experiments.common.cli.say import say
from experiments.common.drawing.outputs import format_markdown
from experiments.common.inputs import data_digest, network_digest
from experiments.common.run_folder import RunFolder
from experiments.common.stored import check_name
from experiments.throughput.candidates import time_candidates
from experiments.throughput.loading import CALLS, time_loading
from experiments.throughput.timing import (
    Rows,
    branching_episodes,
    new_episodes,
    time_actors,
    time_episodes,
    time_steps,
    time_stores,
)

__all__ = ["Config", "main", "run"]

Part = Literal["step", "store", "episodes", "actors", "loader", "candidates"]
EPISODES = {"all-new": new_episodes, "with-common-beginnings": branching_episodes}
TITLES = {
    "step": "A step, medians in milliseconds; ratio = step / bare loop",
    "store": "Searches with and without a store",
    "episodes": "The same random episodes with and without a store; ratio = time / without",
    "actors": "QCriticPPO with worker processes, without a store",
    "loader": "Images from disk; ratio = ours / bare DataLoader",
    "candidates": "Pruned networks fine-tuned and scored one by one and in one pass",
}
COLUMNS: dict[str, dict[str, str]] = {
    "step": {"phase": "{phase}"},
    "store": {
        "agent, store": "{algorithm}, {store}",
        "steps/s": "{steps_per_s:.1f}",
        "times none": "{speedup:.2f}",
        "hits %": "{hits:.0f}",
    },
    "episodes": {
        "episodes, store": "{episodes}, {store}",
        "ms a step": "{step_ms:.1f}",
        "ratio": "{ratio:.2f}",
        "median": "{median_ratio:.2f}",
        "hits %": "{hits:.0f}",
    },
    "actors": {
        "workers x threads": "{workers} x {threads}",
        "steps/s": "{steps_per_s:.1f}",
        "times one": "{speedup:.2f}",
    },
    "loader": {
        "calls": "{calls}",
        "workers": "{workers}",
        "images/s": "{ours_per_s:.0f}",
        "bare DataLoader, images/s": "{bare_per_s:.0f}",
        "ratio": "{ratio:.2f}",
    },
    "candidates": {
        "candidates, way": "{at_once}, {way}",
        "candidates/s": "{candidates_per_s:.2f}",
        "times one by one": "{speedup:.2f}",
        "accuracy": "{accuracy:.3f}",
    },
}
"""What the columns of each part's table hold, of the rows that `_summary` gives."""


@dataclass(frozen=True)
class Config:
    """Settings of the measurements."""

    parts: tuple[Part, ...] = ("step", "store", "episodes", "actors")
    """What to measure."""
    model: str = "lenet5"
    """Named network."""
    dataset: str = "mnist"
    """Named data set."""
    data_root: Path | None = None
    """Folder of the data set's files."""
    download: bool = False
    """Download the data set when it is missing."""
    preparation: str = AUTO
    """How images of imagenet or a folder are normalised: auto, as the network's published weights
    expect; imagenet, with its mean and standard deviation; timm/NAME, as timm's weights expect."""
    checkpoint: Path | None = None
    """Weights of the network; trained by recipe when there is one."""
    random_weights: bool = False
    """Time a network that has not been trained, whose steps take as long."""
    methods: tuple[PruningMethod, ...] = ("magnitude", "channel")
    """Pruning methods of the part `step`; the others take the last one."""
    flops_budget: float | None = None
    """Highest multiply-accumulates, a fraction of the unpruned network's."""
    steps: int = 60
    """Environment steps to time per method, at least 30 for a ratio worth quoting."""
    search_steps: int = 1600
    """Environment steps of each search in the part `store`."""
    episodes: int = 30
    """Episodes of each kind in the part `episodes`, the first of which is not counted."""
    actor_steps: int = 160
    """Environment steps of each search in the part `actors`."""
    candidates: tuple[int, ...] = (4, 16)
    """Networks at once in the part `candidates`."""
    candidate_rounds: int = 2
    """How often that part draws so many networks."""
    algo: tuple[str, ...] = ("ppo", "q_critic_ppo")
    """Agents of the part `store`."""
    finetune_steps: int = 20
    """Minibatches of fine-tuning in each step."""
    finetune_at: FinetuneAt = "layer"
    """Fine-tune after every `layer`, or at the end of each `episode`."""
    reward_at: RewardAt = "layer"
    """Score after every `layer`, or at the end of each `episode`."""
    channels_last: bool = False
    """Keep networks and images in the channels-last memory format."""
    bf16: bool = False
    """Compute the forward pass in bfloat16."""
    images: int = 6400
    """Images that each loader reads in a round of the part `loader`, from `train` in the data root
    or from the data root itself."""
    image_size: int | None = None
    """Side in pixels to which images are scaled, where the data set allows it."""
    rounds: int = 5
    """Rounds of the part `loader`, after one that is not counted."""
    seed: int = 0
    """Seed of the task, of the random actions and of the agents."""
    device: str = "auto"
    """auto, cpu, cuda and so on."""
    out: Path | None = None
    """Run folder; a new one under runs/ when not given."""
    store: Path | None = None
    """New file for the store that is measured; in the run folder when not given."""
    resume: Path | None = None
    """Run folder of a stopped measurement to go on with."""

    def check(self) -> None:
        """Check what no environment checks.

        Raises:
            ValueError: If a setting is out of range.
        """
        check_lowest(
            self, 1, "steps", "search_steps", "actor_steps", "images", "rounds", "candidate_rounds"
        )
        if "loader" in self.parts and self.data_root is None:
            raise ValueError("the part loader needs --data-root, a tree of images")
        check_lowest(self, 2, "episodes")
        if not self.methods or not self.parts:
            raise ValueError("expected at least one method and one part, got none")
        if not self.candidates or min(self.candidates) < 1:
            raise ValueError(f"candidates must be 1 or more, got {self.candidates}")
        if self.store is not None and self.store.exists():
            raise ValueError(f"a cold store must be a new file, but {str(self.store)!r} is there")


class Measurement:
    """Makes the environments of one configuration and times them."""

    def __init__(self, config: Config, folder: RunFolder) -> None:
        """Load network and data.

        Raises:
            ValueError: If a setting is wrong.
            FileNotFoundError: If data or checkpoint are not there.
        """
        config.check()
        self.config = config
        self.folder = folder
        if set(config.parts) != {"loader"}:
            self._network = self._load_network()

    def _load_network(self) -> tuple[nn.Module, DataBundle]:
        config = self.config
        data = load_data(
            config.dataset,
            data_root=config.data_root,
            download=config.download,
            size=config.image_size,
            preparation=choose_preparation(config.preparation, config.model, config.dataset),
        )
        model = self._load_model(data)
        self.folder.hold_to({"network": network_digest(model), "data": data_digest(data)})
        return model, data

    def _load_model(self, data: DataBundle) -> nn.Module:
        config, device = self.config, select_device(self.config.device)
        if config.random_weights:
            with torch.random.fork_rng():
                torch.manual_seed(config.seed)
                return build_model(config.model, data.num_classes, data.image_shape)
        return load_baseline(
            config.model, data.to(device), checkpoint=config.checkpoint, device=device
        ).cpu()

    def _env(self, method: PruningMethod, store: StoreOption) -> PruningEnv:
        config = self.config
        settings = FinetuneConfig(channels_last=config.channels_last, bf16=config.bf16)
        return PruningEnv(
            *self._network,
            device=config.device,
            method=method,
            flops_budget=config.flops_budget,
            finetune_steps=config.finetune_steps,
            finetune_at=config.finetune_at,
            reward_at=config.reward_at,
            finetune_config=settings,
            seed=config.seed,
            store=store,
        )

    def measure(self, part: Part) -> Rows:
        """Run all timings of a part, but for those that a stopped measurement has left."""
        config = self.config
        cases: dict[Part, tuple[Callable[[Any], Rows], Sequence[Any]]] = {
            "step": (self._time_steps, config.methods),
            "store": (self._time_stores, config.algo),
            "episodes": (self._time_episodes, list(EPISODES)),
            "actors": (self._time_actors, ["all"]),
            "loader": (self._time_loading, list(CALLS)),
            "candidates": (self._time_candidates, config.candidates),
        }
        measure, mine = cases[part]
        timed = [self._once(f"{part}-{case}", partial(measure, case)) for case in mine]
        return [row for rows in timed for row in rows]

    def _once(self, name: str, measure: Callable[[], Rows]) -> Rows:
        """Measure and keep the rows, or return those that were kept."""
        kept = self.folder.read_state(name)
        if kept is not None:
            with self.folder.using(name):
                return list(kept["rows"])
        rows = measure()
        self.folder.write_state(name, {"rows": rows})
        return rows

    def _time_steps(self, method: PruningMethod) -> Rows:
        env, twin = self._env(method, "memory"), self._env(method, "memory")
        return time_steps(env, twin, self.config.steps, self.config.seed)

    def _time_stores(self, algorithm: str) -> Rows:
        method = self.config.methods[-1]
        path = self.config.store or self.folder.state_path / f"{check_name(algorithm)}.sqlite"
        if self.config.store is None:
            path.unlink(missing_ok=True)  # of a measurement that was stopped
        envs = {
            "none": self._env(method, None),
            "cold": self._env(method, path),
            "warm": self._env(method, path),
        }
        return time_stores(envs, algorithm, self.config.search_steps, self.config.seed)

    def _time_episodes(self, kind: str) -> Rows:
        method = self.config.methods[0]
        path = self.folder.state_path / f"{kind}.sqlite"
        path.unlink(missing_ok=True)  # of a measurement that was stopped
        stores: dict[str, StoreOption] = {"none": None, "memory": "memory", "file": path}
        envs = {name: self._env(method, store) for name, store in stores.items()}
        rng = np.random.default_rng(self.config.seed)
        episodes = EPISODES[kind](self.config.episodes, len(envs["none"].walk), rng)
        rows = time_episodes(envs, self._env(method, None), episodes)
        for env in envs.values():
            env.close()
        return [{"episodes": kind} | row for row in rows]

    def _time_loading(self, calls: str) -> Rows:
        config = self.config
        assert config.data_root is not None  # which `check` has seen to
        root = config.data_root.expanduser()
        row = time_loading(
            root / "train" if (root / "train").is_dir() else root,
            calls,
            n_images=config.images,
            n_rounds=config.rounds,
            size=config.image_size,
            device=select_device(config.device),
            seed=config.seed,
        )
        return [row]

    def _time_actors(self, _: str) -> Rows:
        # One worker gets one core, as each of two does; and then both.
        settings = ((1, 1), (1, 2), (2, 1))
        env = self._env(self.config.methods[-1], None)
        return time_actors(env, settings, self.config.actor_steps, self.config.seed)

    def _time_candidates(self, n: int) -> Rows:
        env = self._env(self.config.methods[0], None)
        return time_candidates(env, n, self.config.candidate_rounds, self.config.seed)


def summarize_steps(rows: Rows) -> pd.DataFrame:
    """Return medians in milliseconds by method, the ratio of step to bare loop, peaks in MiB."""
    by_method = pd.DataFrame(rows).drop(columns="layer").groupby("method", sort=False)
    medians = by_method.median() * 1e3
    medians.insert(2, "ratio", medians["step_s"] / medians["bare_s"])
    for name in map(str, medians.columns):
        if name.endswith("_mib"):
            medians[name] = by_method[name].max()
    return medians.rename(columns=lambda name: name.removesuffix("_s"))


def _summary(part: Part, rows: Rows) -> pd.DataFrame:
    """Return what a part's table tells, line by line."""
    table = pd.DataFrame(rows)
    if part == "step":
        medians = summarize_steps(rows).map("{:.2f}".format)
        return medians.T.rename_axis("phase").reset_index()
    if part == "episodes":
        table["step_ms"] = 1e3 * table["seconds"] / table["steps"]
    elif part == "loader":
        return table
    elif part == "candidates":
        one = table[table["way"] == "one by one"].set_index("at_once")["candidates_per_s"]
        table["speedup"] = table["candidates_per_s"] / table["at_once"].map(one)
    elif part == "store":
        none = table[table["store"] == "none"].set_index("algorithm")["seconds"]
        table["speedup"] = table["algorithm"].map(none) / table["seconds"]
    else:
        table["speedup"] = table["steps_per_s"] / table["steps_per_s"].iloc[0]
    return table.assign(hits=100 * table.get("hit_rate", 0.0))


def format_table(part: Part, rows: Rows) -> str:
    """Format what a part has measured as a Markdown table."""
    summary = _summary(part, rows)
    columns = COLUMNS[part]
    if part == "step":
        columns = columns | {name: f"{{{name}}}" for name in summary.columns[1:]}
    lines = [
        tuple(text.format_map(row).replace("nan", "-") for text in columns.values())
        for row in summary.to_dict("records")
    ]
    return format_markdown(tuple(columns), lines)


def run(config: Config, console: Console) -> dict[Part, Rows]:
    """Time what is asked for, write the run folder and print the tables.

    Returns:
        The rows of each part.

    Raises:
        ValueError: If a setting is wrong.
        FileNotFoundError: If data or checkpoint are not there.
    """
    return run_measurement("throughput", config, console, Measurement, _measure)


def _measure(measurement: Measurement, console: Console) -> dict[Part, Rows]:
    folder, parts = measurement.folder, measurement.config.parts
    results: dict[Part, Rows] = {}
    texts = []
    for part in parts:
        results[part] = measurement.measure(part)
        folder.write_rows(f"{part}.csv", results[part])
        texts.append(f"{TITLES[part]}:\n\n{format_table(part, results[part])}\n")
        say(console, texts[-1])
    folder.write_text("throughput.md", "\n".join(texts))
    folder.finish([{"part": part} | row for part in parts for row in results[part]])
    return results


def main() -> None:
    """Run from the command line."""
    run_command(Config, run, __doc__ or "")
