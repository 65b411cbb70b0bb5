"""The choice of precision and layout, by times that are given."""

from __future__ import annotations

from collections.abc import Callable
from itertools import cycle
from typing import ClassVar

import pytest
import torch
from torch import Tensor

from experiments.train.layout import Layout, fastest
from tests.fakes import PlainNet, make_data, seeded

LAYOUTS = [Layout(False, False), Layout(False, True), Layout(True, False), Layout(True, True)]


def timed(seconds: list[float]) -> Callable[[Callable[[], None]], float]:
    """Return a clock by which the layouts take so long, in the order of `LAYOUTS`."""
    times = cycle(seconds)

    def time(call: Callable[[], None]) -> float:
        call()
        return next(times)

    return time


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        ([1.0, 0.5, 2.0, 3.0], LAYOUTS[1]),
        ([1.0, 0.9, 0.8, 0.7], LAYOUTS[3]),
        ([1.0, 0.97, 1.2, 1.2], LAYOUTS[0]),  # too little to tell
    ],
)
def test_the_fastest_is_taken_if_it_is_much_faster(seconds: list[float], expected: Layout) -> None:
    data = make_data()
    model = seeded(PlainNet)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    assert fastest(model, data, 8, time=timed(seconds)) == expected
    assert all((before[name] == value).all() for name, value in model.state_dict().items())


def test_what_is_given_is_not_timed() -> None:
    data = make_data()

    def never(call: Callable[[], None]) -> float:
        raise AssertionError

    assert fastest(seeded(PlainNet), data, 8, True, False, never) == Layout(True, False)
    slow = timed([1.0, 0.1])
    assert fastest(seeded(PlainNet), data, 8, False, None, slow) == Layout(False, True)


class Narrow(PlainNet):
    """A network that runs out of memory above three images at once."""

    sizes: ClassVar[list[int]] = []

    def forward(self, images: Tensor) -> Tensor:
        self.sizes.append(len(images))
        if len(images) > 3:
            raise torch.OutOfMemoryError(f"{len(images)} images do not fit")
        return super().forward(images)


def test_fewer_images_are_timed_where_they_do_not_fit() -> None:
    quick = timed([1.0, 0.5, 2.0, 3.0])
    assert fastest(seeded(Narrow), make_data(), 12, time=quick) == LAYOUTS[1]
    assert Narrow.sizes[:2] == [12, 6] and set(Narrow.sizes[2:]) == {3}
