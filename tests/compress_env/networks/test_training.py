"""Training by a recipe: what a teacher adds to it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from compress_env.networks.training import Recipe, Training
from tests.fakes import PlainNet, make_data, read_all, seeded


class Stubborn(nn.Module):
    """Answers the same, whatever it sees."""

    def forward(self, images: Tensor) -> Tensor:
        return 8.0 * torch.eye(3)[1].expand(len(images), 3)


def answers_after(distill: float) -> Tensor:
    """Return the classes that a network tells of the test images after it was taught."""
    data, model = make_data(), seeded(PlainNet)
    recipe = Recipe(epochs=6, batch_size=16, learning_rate=0.1)
    training = Training(model, data.train, recipe, teacher=Stubborn(), distill=distill)
    while training.n_done < recipe.epochs:
        training.run_epoch()
    images, _ = read_all(data.test)
    with torch.no_grad():
        answers: Tensor = model.eval()(images).argmax(1)
    return answers


def test_a_teacher_of_full_weight_is_all_that_counts() -> None:
    assert (answers_after(1.0) == 1).all()


def test_a_teacher_without_weight_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(Stubborn, "forward")
    assert len(set(answers_after(0.0).tolist())) > 1
