"""Noise of information dropout, and its divergence from the priors, by hand."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from compress_env.pruning.variational import (
    ALPHA_MAX,
    kl_log_normal,
    kl_log_uniform,
    log_normal_moments,
    noise_of,
    normal_from_moments,
)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class TestNoise:
    def test_by_hand(self) -> None:
        noise = noise_of(torch.tensor([0.5, 0.5]), torch.tensor([0.0, 1.0]))
        expected = [math.exp(-0.125), math.exp(0.375)]
        torch.testing.assert_close(noise, torch.tensor(expected))

    @pytest.mark.parametrize("alpha", [0.1, 0.35, 0.7])
    def test_mean_is_one_and_variance_as_stated(self, alpha: float) -> None:
        xi = torch.randn(1_000_000, generator=generator(), dtype=torch.float64)
        noise = noise_of(torch.tensor(alpha, dtype=torch.float64), xi)
        assert noise.mean().item() == pytest.approx(1.0, abs=4 * noise.std().item() / 1000)
        assert noise.var().item() == pytest.approx(math.expm1(alpha**2), rel=0.02)

    @given(mu=st.floats(-2, 2), sigma=st.floats(0.01, 1.5))
    def test_moments_invert_to_the_normal(self, mu: float, sigma: float) -> None:
        assert normal_from_moments(*log_normal_moments(mu, sigma)) == pytest.approx((mu, sigma))

    def test_moments_by_hand(self) -> None:
        mean, variance = log_normal_moments(0.0, 1.0)
        assert mean == pytest.approx(math.sqrt(math.e))
        assert variance == pytest.approx((math.e - 1) * math.e)
        with pytest.raises(ValueError, match="expected mean > 0"):
            normal_from_moments(0.0, 1.0)


class TestDivergence:
    def test_log_uniform_is_zero_at_the_largest_width(self) -> None:
        alpha = torch.tensor([ALPHA_MAX, ALPHA_MAX / math.e])
        torch.testing.assert_close(kl_log_uniform(alpha), torch.tensor([0.0, 1.0]))

    def test_log_uniform_is_a_difference_of_entropies(self) -> None:
        """Up to a constant it is minus the entropy of log eps, a normal of that width."""
        widths = torch.tensor([0.1, 0.3, 0.6], dtype=torch.float64)
        entropies = torch.distributions.Normal(0.0, widths).entropy()  # type: ignore[no-untyped-call]
        constants = kl_log_uniform(widths) + entropies
        torch.testing.assert_close(constants, constants[:1].expand(3))

    @given(
        alpha=st.floats(0.05, 0.7),
        feature=st.floats(0.05, 5.0),
        mu=st.floats(-1, 1),
        sigma=st.floats(0.2, 2.0),
    )
    def test_log_normal_is_that_of_the_normals_under_it(
        self, alpha: float, feature: float, mu: float, sigma: float
    ) -> None:
        values = [torch.tensor(x, dtype=torch.float64) for x in (alpha, feature, mu, sigma)]
        mean = math.log(feature) - alpha**2 / 2
        posterior = torch.distributions.Normal(torch.tensor(mean, dtype=torch.float64), values[0])
        prior = torch.distributions.Normal(values[2], values[3])
        expected = torch.distributions.kl_divergence(posterior, prior)
        torch.testing.assert_close(kl_log_normal(*values), expected)

    def test_log_normal_agrees_with_samples(self) -> None:
        alpha, feature, mu, sigma = 0.4, 1.5, -0.2, 0.8
        xi = torch.randn(400_000, generator=generator(), dtype=torch.float64)
        samples = feature * noise_of(torch.tensor(alpha, dtype=torch.float64), xi)
        posterior = torch.distributions.LogNormal(math.log(feature) - alpha**2 / 2, alpha)
        prior = torch.distributions.LogNormal(mu, sigma)
        ratio = posterior.log_prob(samples) - prior.log_prob(samples)  # type: ignore[no-untyped-call]
        exact = kl_log_normal(*map(torch.tensor, (alpha, feature, mu, sigma))).item()
        error = 4 * ratio.std().item() / math.sqrt(len(ratio))
        assert ratio.mean().item() == pytest.approx(exact, abs=error)

    def test_log_normal_is_zero_where_prior_and_posterior_agree(self) -> None:
        alpha = torch.tensor(0.5)
        zero = kl_log_normal(alpha, torch.tensor(2.0), torch.tensor(2.0).log() - 0.125, alpha)
        assert zero.item() == pytest.approx(0.0, abs=1e-6)
