"""Information dropout on whole networks: its noise, its information, and the experiment."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from compress_env.pruning.variational import InformationDropout
from experiments.information_dropout.information_dropout import Config, run
from experiments.information_dropout.measures import (
    find_regions,
    fit_noise,
    ks_distance,
    masked_mean,
    pixel_information,
    sample_noise,
)
from experiments.information_dropout.report import format_report
from tests.fakes import quiet, stop_after_state


def small(out: Path) -> Config:
    return Config(seeds=(0, 1), epochs=2, noise_samples=400, out=out)


@pytest.mark.parametrize("alpha", [0.05, 0.35, 0.7])
def test_moments_find_the_log_normal(alpha: float) -> None:
    rng = np.random.default_rng(0)
    fit = fit_noise(rng.lognormal(-(alpha**2) / 2, alpha, 40_000), alpha)
    assert fit.fitted_sigma == pytest.approx(alpha, rel=0.05)
    assert fit.fitted_mu == pytest.approx(fit.true_mu, abs=0.02)
    assert fit.ks_fitted < 0.02
    assert fit.p_true > 0.01


def test_another_distribution_is_told_from_a_log_normal() -> None:
    samples = np.random.default_rng(0).uniform(0.5, 1.5, 10_000)
    fit = fit_noise(samples, 0.3)
    assert fit.p_true < 1e-6
    assert ks_distance(samples, 0.0, 0.3) > 0.05


def test_sampled_noise_is_that_of_the_units() -> None:
    dropout = InformationDropout(2, dim=1).eval()
    with torch.no_grad():
        dropout.offset.copy_(torch.tensor([-2.0, 2.0]))
    features = torch.tensor([[[[3.0]], [[-1.0]]]])
    noise = sample_noise(dropout, features, 20_000, seed=1)
    assert noise.shape == (20_000, 2, 1, 1)
    widths = noise.log().std(0).flatten()
    torch.testing.assert_close(widths, dropout.alpha(features).flatten(), rtol=0.03, atol=0.0)
    torch.testing.assert_close(noise.mean(0).flatten(), torch.ones(2), rtol=0.02, atol=0.0)
    assert torch.equal(noise, sample_noise(dropout, features, 20_000, seed=1))
    assert not dropout.training


def test_information_of_a_pixel_is_the_sum_over_channels() -> None:
    layer = nn.Conv2d(1, 3, 3, padding=1)
    dropout = InformationDropout(3, dim=1)
    found = pixel_information(layer, dropout, torch.rand(2, 1, 5, 4))
    torch.testing.assert_close(found, torch.full((2, 5, 4), 3 * math.log(2.0)))


def test_a_layer_that_shrinks_the_image_is_refused() -> None:
    with pytest.raises(ValueError, match=r"must keep the size .* got \(3, 3\) from \(5, 5\)"):
        pixel_information(nn.Conv2d(1, 2, 3), InformationDropout(2, 1), torch.rand(1, 1, 5, 5))


def test_regions_of_an_image() -> None:
    image = torch.full((1, 1, 7, 7), -1.0)
    image[0, 0, 1, 1] = 1.0  # a stroke
    image[0, 0, 1, 2] = -0.5  # its grey edge
    regions = find_regions(image, reach=1)
    assert regions.strokes.nonzero().tolist() == [[0, 1, 1]]
    assert int(regions.background.sum()) == 48
    far = regions.far[0]
    assert not far[0].any() and not far[:, 6].any()  # the padding is seen
    assert not far[:3, :4].any()
    assert far[3:6, 1:6].all() and far[1:6, 4:6].all()


def test_mean_over_no_pixels_is_nan() -> None:
    values = torch.arange(8.0).reshape(2, 2, 2)
    mask = torch.tensor([[[True, False], [False, True]], [[False, False], [False, False]]])
    means = masked_mean(values, mask)
    assert means[0] == 1.5
    assert means[1].isnan()


@pytest.mark.usefixtures("small_studies")
def test_a_stopped_experiment_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = run(small(tmp_path / "whole"), quiet())
    assert (whole["information_strokes"] > 0).all()
    assert whole["test_accuracy"].between(0, 1).all()
    assert len(pd.read_csv(tmp_path / "whole" / "noise.csv")) == 2 * 2 * 4
    assert {p.name for p in (tmp_path / "whole").iterdir()} == {
        "config.json",
        "information.png",
        "information_dropout.md",
        "noise.csv",
        "noise.png",
        "table.csv",
        "weights.png",
    }
    stop_after_state(monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        run(small(tmp_path / "stopped"), quiet())
    stopped = run(Config(resume=tmp_path / "stopped"), quiet())
    pd.testing.assert_frame_equal(stopped, whole)
    with pytest.raises(ValueError, match="nothing left to measure"):
        run(Config(resume=tmp_path / "stopped"), quiet())


@pytest.mark.usefixtures("small_studies", "blank_figures")
def test_a_strong_price_makes_units_noisier(tmp_path: Path) -> None:
    kept = {
        weight: run(
            Config(seeds=(0,), epochs=20, kl_weight=weight, out=tmp_path / str(weight)), quiet()
        )["information_background"][0]
        for weight in (0.0, 10.0)
    }
    assert kept[10.0] < 0.7 * kept[0.0]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"seeds": ()}, r"expected seeds that differ, at least one, got \(\)"),
        ({"epochs": -1}, "epochs must be 0 or more"),
        ({"kl_weight": -1.0}, "kl_weight must be 0 or more"),
        ({"noise_samples": 1}, "noise_samples must be 100 or more"),
        ({"data": "digits"}, "first layer must keep the size of its images"),
    ],
    ids=["seeds", "epochs", "kl_weight", "samples", "network"],
)
def test_wrong_settings_are_refused(
    settings: dict[str, object], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        run(Config(out=tmp_path / "out", **settings), quiet())  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("ratios", "verdict"),
    [
        ([2.0, 2.1], "holds"),
        ([0.5, 0.51], "fails"),
        ([0.5, 2.0], "undecided"),
        ([2.0], "one seed"),
    ],
)
def test_the_verdict_follows_the_interval(ratios: list[float], verdict: str) -> None:
    names = ("test_accuracy", "information_strokes", "information_background", "information_far")
    others = (*names, "ratio_far", "images_higher", "pooled_mean", "pooled_ks")
    rows = pd.DataFrame([{"ratio": ratio} | dict.fromkeys(others, 1.0) for ratio in ratios])
    fit = fit_noise(np.random.default_rng(0).lognormal(-0.02, 0.2, 100), 0.2)
    report = format_report(rows, pd.DataFrame([fit._asdict()]), "title")
    assert f"rather than the background: {verdict}" in report
