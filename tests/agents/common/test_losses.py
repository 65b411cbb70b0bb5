"""Losses and targets against numbers worked by hand."""

import math

import pytest
import torch as th

from agents.common import losses


def test_clipped_surrogate_takes_the_pessimistic_branch() -> None:
    ratio = th.tensor([1.5, 1.5, 0.5, 0.5, 1.1])
    advantages = th.tensor([1.0, -1.0, 1.0, -1.0, 2.0])
    loss = losses.clipped_surrogate_loss(advantages, ratio.log(), th.zeros(5), clip_range=0.2)
    # min terms: 1.2, -1.5, 0.5, -0.8, 2.2
    assert loss.item() == pytest.approx(-(1.2 - 1.5 + 0.5 - 0.8 + 2.2) / 5)


def test_infinite_clip_range_switches_the_clipping_off() -> None:
    ratio = th.tensor([4.0, 0.1])
    loss = losses.clipped_surrogate_loss(
        th.tensor([1.0, -1.0]), ratio.log(), th.zeros(2), clip_range=math.inf
    )
    assert loss.item() == pytest.approx(-(4.0 - 0.1) / 2)


def test_clipped_surrogate_has_no_gradient_beyond_the_clip() -> None:
    log_prob = th.tensor([math.log(1.5), math.log(1.1)], requires_grad=True)
    loss = losses.clipped_surrogate_loss(th.ones(2), log_prob, th.zeros(2), clip_range=0.2)
    (gradient,) = th.autograd.grad(loss, log_prob)
    assert gradient.tolist() == pytest.approx([0.0, -1.1 / 2])


def test_clip_fraction_counts_both_sides() -> None:
    ratio = th.tensor([0.7, 0.9, 1.1, 1.3])
    assert losses.clip_fraction(ratio.log(), th.zeros(4), clip_range=0.2) == pytest.approx(0.5)


def test_regularized_action_clips_the_noise_then_the_action() -> None:
    actions = th.tensor([[0.0, 1.0], [3.5, 1.0]])
    noise = th.tensor([[0.1, -0.9], [0.4, 0.2]])
    low, high = th.tensor([0.0, 0.0]), th.tensor([4.0, 2.0])
    shifted = losses.regularized_action(actions, noise, 0.3, low, high)
    # half widths 2 and 1: 0 + 0.2, 1 - 0.3, 3.5 + 0.6 -> 4, 1 + 0.2
    assert shifted.flatten().tolist() == pytest.approx([0.2, 0.7, 4.0, 1.2])


def test_td_target_bootstraps_unless_done() -> None:
    rewards, next_q_values = th.full((3, 1), 1.0), th.full((3, 1), 2.0)
    dones, discounts = th.tensor([[0.0], [1.0], [0.0]]), th.tensor([[0.9], [0.9], [0.81]])
    target = losses.td_target(rewards, dones, next_q_values, discounts)
    assert target.flatten().tolist() == pytest.approx([2.8, 1.0, 2.62])


def test_q_loss_is_the_mean_square() -> None:
    loss = losses.q_loss(th.tensor([[1.0], [3.0]]), th.tensor([[0.0], [5.0]]))
    assert loss.item() == pytest.approx((1.0 + 4.0) / 2)


def test_imitation_loss_is_relative_to_half_the_box() -> None:
    means, actions = th.tensor([[1.0, 0.0], [0.0, 10.0]]), th.tensor([[0.0, 0.0], [0.0, 0.0]])
    found = losses.imitation_loss(means, actions, th.tensor([1.0, 5.0]))
    assert found.item() == pytest.approx((1.0 + 0.0 + 0.0 + 4.0) / 4)
    with pytest.raises(ValueError, match="shapes must be the same"):
        losses.imitation_loss(means, actions[:1], th.ones(2))


def test_scaling_keeps_signs_and_proportions() -> None:
    scaled = losses.scale_to_unit_rms(th.tensor([3.0, 4.0, -5.0, 0.0]))
    rms = math.sqrt((9 + 16 + 25) / 4)
    assert scaled.tolist() == pytest.approx([3 / rms, 4 / rms, -5 / rms, 0.0])
    assert losses.scale_to_unit_rms(th.zeros(3)).tolist() == [0.0, 0.0, 0.0]


def test_shapes_are_checked_before_broadcasting() -> None:
    column, row = th.zeros(3, 1), th.zeros(3)
    with pytest.raises(ValueError, match="shapes must be the same"):
        losses.q_loss(column, row)
    with pytest.raises(ValueError, match="shapes must be the same"):
        losses.td_target(row, column, column, column)
    with pytest.raises(ValueError, match="shapes must be the same"):
        losses.clipped_surrogate_loss(row, row, column, 0.2)
    with pytest.raises(ValueError, match="shapes must be the same"):
        losses.clip_fraction(row, column, 0.2)
    with pytest.raises(ValueError, match=r"bounds must have shape \(1,\)"):
        losses.regularized_action(column, column, 0.1, th.zeros(2), th.ones(2))


def test_numbers_out_of_range_are_rejected() -> None:
    x = th.zeros(2, 1)
    with pytest.raises(ValueError, match="clip_range must be 0 or more, got -"):
        losses.clipped_surrogate_loss(x, x, x, -0.1)
    with pytest.raises(ValueError, match="noise_clip must be at least 0"):
        losses.regularized_action(x, x, -0.1, th.zeros(1), th.ones(1))
    with pytest.raises(ValueError, match="epsilon must be above 0"):
        losses.scale_to_unit_rms(x, 0.0)
