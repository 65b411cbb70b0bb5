"""Learning rates that follow the rollouts of a search of known length."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["RolloutSchedule"]

_ROUNDING = 1e-6
"""Of a rollout: the share that is left is a floating number."""


@dataclass(frozen=True)
class RolloutSchedule:
    """A learning rate that is divided by ten after given rollouts, and decays after every one.

    A rollout is an episode, one walk through the layers. After n of them the rate is
    ``initial * decay^n / 10^k``, k being the number of `drops` that are at most n.

    Zhan, Lin & Cao 2021 (arXiv 1912.02254) divide by ten at given rollouts and have a decay of
    0.99; that the latter is of the learning rate is our reading **(ours)**.

    Raises:
        ValueError: If a drop is below 1, drops do not ascend, or the decay is not in (0, 1].
    """

    initial: float
    """Rate at the start."""
    n_rollouts: int
    """Episodes of the whole search, in all environments together."""
    drops: tuple[int, ...] = ()
    """Rollouts after which the rate is divided by ten."""
    decay: float = 1.0
    """Factor of the rate after each rollout."""

    def __post_init__(self) -> None:
        """Check drops and decay."""
        if list(self.drops) != sorted(set(self.drops)) or any(drop < 1 for drop in self.drops):
            raise ValueError(
                "drops must be ascending numbers of rollouts, at least 1, got "
                f"{', '.join(map(str, self.drops))}"
            )
        if not 0.0 < self.decay <= 1.0:
            raise ValueError(f"decay must be in (0, 1], got {self.decay}")

    def __call__(self, progress_remaining: float) -> float:
        """Return the rate while a share of the search remains, 1 at its start and 0 at its end."""
        n_done = int((1.0 - progress_remaining) * self.n_rollouts + _ROUNDING)
        n_drops = sum(drop <= n_done for drop in self.drops)
        return float(self.initial * self.decay**n_done / 10.0**n_drops)
