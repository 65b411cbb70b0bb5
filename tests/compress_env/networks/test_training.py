"""Training by a recipe: what a teacher adds to it, what dropout draws, and going on with it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from compress_env.networks.training import Recipe, Training
from compress_env.seeding import random_states
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


class Dropping(PlainNet):
    """Drops images' pixels at random while it is trained."""

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(nn.functional.dropout(images, 0.5, self.training))


def begun(seed: int = 0) -> Training:
    recipe = Recipe(epochs=2, batch_size=32, seed=seed)
    return Training(seeded(Dropping), make_data().train, recipe)


def weights_of(training: Training) -> Tensor:
    """Return the weights after what is left of a training, in one vector."""
    while training.n_done < training.recipe.epochs:
        training.run_epoch()
    return nn.utils.parameters_to_vector(training.model.parameters()).detach()


def test_dropout_follows_the_seed_alone_and_leaves_no_trace() -> None:
    torch.manual_seed(1)
    before = random_states(torch.device("cpu"))
    first = weights_of(begun())
    assert random_states(torch.device("cpu")) == before
    torch.manual_seed(2)
    assert torch.equal(weights_of(begun()), first)
    assert not torch.equal(weights_of(begun(seed=1)), first)


def test_dropout_draws_afresh_in_each_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Tensor] = []
    plain = nn.functional.dropout

    def watched(images: Tensor, p: float, training: bool) -> Tensor:
        seen.append(plain(torch.ones_like(images), p, training))
        return images

    monkeypatch.setattr(nn.functional, "dropout", watched)
    weights_of(begun())
    assert len(seen) == 6
    assert not any(torch.equal(seen[i], seen[j]) for i in range(6) for j in range(i))


def test_resumed_training_with_dropout_comes_out_as_an_unstopped_one() -> None:
    whole, stopped = weights_of(begun()), begun()
    stopped.run_epoch()
    state = stopped.state()
    torch.manual_seed(3)
    resumed = begun()
    resumed.restore(state)
    assert torch.equal(weights_of(resumed), whole)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda state: state.update(epochs=3), "expected 0 to 2 finished epochs, got 3"),
        (lambda state: state.update(epochs=-1), "expected 0 to 2 finished epochs, got -1"),
        (lambda state: state.update(epochs=2), "expected 6 minibatches in 2 epochs, got 3"),
    ],
    ids=["too-many", "negative", "not-its-own"],
)
def test_state_of_no_epoch_of_a_training_is_refused(
    damage: Callable[[dict[str, Any]], None], message: str
) -> None:
    training = begun()
    training.run_epoch()
    state = training.state()
    damage(state)
    with pytest.raises(ValueError, match=message):
        begun().restore(state)
