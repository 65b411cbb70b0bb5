"""Black-box optimizers of other packages, asked for one point at a time.

They are deterministic: the same seed and the same calls give the same points. Shape legend: D
dimensions.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

__all__ = ["CovarianceAdaptation", "Optimizer", "ParzenEstimator"]

Point = NDArray[np.float64]


class Optimizer(Protocol):
    """Proposes points in [-1, 1] and is told their values, the higher the better."""

    def ask(self) -> Point:
        """Return the next point, (D,) in [-1, 1]."""

    def tell(self, number: int, value: float) -> None:
        """Take the value of the point that was asked for as number `number`, from 0."""


class CovarianceAdaptation:
    """CMA-ES of `cma`, with its own handling of bounds and restarts (Auger & Hansen 2005).

    When `cma` says that a search has converged, another begins with generations of twice the size,
    at a random point: of the whole box, or, where there is a point to start around, around that.
    """

    def __init__(
        self,
        n_dimensions: int,
        seed: int,
        sigma0: float,
        popsize: int | None,
        start: Point | None = None,
    ) -> None:
        """Start around a point, or around 0.

        Args:
            n_dimensions: D, at least 2.
            seed: Of the points.
            sigma0: Standard deviation of the first points.
            popsize: Points of a generation before the first restart; the default of `cma` when
                None.
            start: (D,) in [-1, 1], or () for all alike: the first point that is asked for, and the
                mean of the others.

        Raises:
            ValueError: If D is 1, or `start` is no such point.
        """
        if n_dimensions < 2:
            raise ValueError(f"CMA-ES takes at least 2 dimensions, got {n_dimensions}")
        start = _checked_start(start, n_dimensions)
        self._generator = np.random.default_rng(seed)
        self._sigma0 = sigma0
        self.n_restarts = 0
        mean = np.zeros(n_dimensions) if start is None else start
        self._strategy = self._make_strategy(mean, popsize)
        self._start = start
        self._asked: list[tuple[int, Point]] = []
        self._told: list[tuple[Point, float]] = []

    def _make_strategy(self, start: Point, popsize: int | None) -> Any:
        import cma

        # Mirrored points, the default of small generations, cannot be asked for one at a time.
        options: dict[str, Any] = {"bounds": [-1.0, 1.0], "verbose": -9, "CMA_mirrors": 0}
        # `cma` would seed NumPy's global generator. A partial's arguments are copied with it.
        options |= {"seed": np.nan, "randn": partial(_standard_normal, self._generator)}
        if popsize is not None:
            options["popsize"] = popsize
        return cma.CMAEvolutionStrategy(start.tolist(), self._sigma0, options)

    def ask(self) -> Point:
        """Return the next point, (D,) in [-1, 1]."""
        (point,) = self._strategy.ask(number=1)
        if self._start is not None and not self._asked:
            point = self._start.copy()
        self._asked.append((self.n_restarts, point))
        return np.array(point, np.float64)

    def tell(self, number: int, value: float) -> None:
        """Take the value of the point that was asked for as number `number`, from 0."""
        search, point = self._asked[number]
        if search < self.n_restarts:
            return  # the search that asked for it has ended
        self._told.append((point, -value))  # `cma` minimises
        if len(self._told) == self._strategy.popsize:
            self._strategy.tell(*map(list, zip(*self._told, strict=True)))
            self._told.clear()
            if self._strategy.stop():
                self._restart()

    def _restart(self) -> None:
        if self._start is None:
            start = self._generator.uniform(-1.0, 1.0, self._strategy.N)
        else:
            shift = self._sigma0 * self._generator.standard_normal(self._strategy.N)
            start = np.clip(self._start + shift, -1.0, 1.0)
        self._strategy = self._make_strategy(start, 2 * self._strategy.popsize)
        self.n_restarts += 1


def _checked_start(start: Point | None, n_dimensions: int) -> Point | None:
    """Return where to start, (D,), if anywhere.

    Raises:
        ValueError: If it is no such point.
    """
    if start is None:
        return None
    if start.shape not in ((), (n_dimensions,)) or not np.all(abs(start) <= 1.0):
        raise ValueError(f"expected start to be {n_dimensions} actions in [-1, 1], got {start}")
    return np.broadcast_to(start, n_dimensions).copy()


def _standard_normal(generator: np.random.Generator, *shape: int) -> Point:
    return generator.standard_normal(shape)


class ParzenEstimator:
    """TPE of `optuna`, multivariate."""

    def __init__(
        self,
        n_dimensions: int,
        seed: int,
        n_startup: int,
        start: Point | None = None,
        spread: float | None = None,
    ) -> None:
        """Start with `n_startup` points.

        Args:
            n_dimensions: D.
            seed: Of the points.
            n_startup: Points before the first model.
            start: (D,) in [-1, 1], or () for all alike: the first of them; drawn as the others are
                when None.
            spread: Standard deviation of the others around it, or 0; uniform when None.

        Raises:
            ValueError: If `start` is no such point.
            ImportError: If `optuna` is not installed.
        """
        start = _checked_start(start, n_dimensions)
        try:
            import optuna
        except ImportError as error:
            raise ImportError(
                "TPE needs optuna: install compress-env with its extra benchmark, got none"
            ) from error
        sampler = optuna.samplers.TPESampler(
            n_startup_trials=n_startup, multivariate=True, seed=seed
        )
        with _quiet(optuna):
            self._study = optuna.create_study(sampler=sampler, direction="maximize")
        one = optuna.distributions.FloatDistribution(-1.0, 1.0)
        self._space: dict[str, Any] = {f"action_{i:03}": one for i in range(n_dimensions)}
        for point in _first_points(n_dimensions, seed, n_startup, start, spread):
            self._study.enqueue_trial(dict(zip(self._space, point.tolist(), strict=True)))

    def ask(self) -> Point:
        """Return the next point, (D,) in [-1, 1]."""
        parameters = self._study.ask(self._space).params
        return np.array([parameters[name] for name in self._space], np.float64)

    def tell(self, number: int, value: float) -> None:
        """Take the value of the point that was asked for as number `number`, from 0."""
        self._study.tell(number, value)


def _first_points(
    n_dimensions: int, seed: int, n_points: int, start: Point | None, spread: float | None
) -> Iterator[Point]:
    """Yield the points to begin with that are not left to chance, or are drawn around the start."""
    if start is not None:
        yield start
    if spread is None:
        return
    generator = np.random.default_rng(seed)
    mean = np.zeros(n_dimensions) if start is None else start
    for _ in range(n_points - (start is not None)):
        yield np.clip(generator.normal(mean, spread), -1.0, 1.0)


@contextmanager
def _quiet(optuna: Any) -> Iterator[None]:
    """Leave out what `optuna` says of a new study; its verbosity is then what it was."""
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        yield
    finally:
        optuna.logging.set_verbosity(before)
