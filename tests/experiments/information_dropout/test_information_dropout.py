"""Information dropout on whole networks: its noise, its information, and the experiment."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor, nn

from compress_env.networks.models import MODELS, build_model
from compress_env.pruning.elements import dropout_behind
from compress_env.pruning.variational import InformationDropout
from experiments.common.run_folder import RunFolder
from experiments.information_dropout.controls import with_shuffled_labels
from experiments.information_dropout.information_dropout import Config, Experiment, run
from experiments.information_dropout.measures import (
    find_regions,
    fit_noise,
    ks_distance,
    masked_mean,
    pixel_information,
    sample_noise,
)
from experiments.information_dropout.report import format_report
from tests.fakes import PlainNet, make_data, quiet, stop_after_state


class SoftNet(PlainNet):
    """A network whose first layer is followed by a softplus module."""

    def __init__(self, n_classes: int = 3, channels: int = 1, side: int = 8) -> None:
        super().__init__(n_classes, channels, side)
        self.soft = nn.Softplus()

    def forward(self, images: Tensor) -> Tensor:
        hidden = self.pool(self.soft(self.conv1(images)))
        hidden = self.pool(torch.relu(self.conv2(hidden)))
        return self.fc2(torch.relu(self.fc1(hidden.flatten(1))))  # type: ignore[no-any-return]


@pytest.fixture
def _softplus(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the network with softplus be a small one too."""
    monkeypatch.setitem(MODELS, "lenet5_softplus", lambda n, shape: SoftNet(n, shape[0], shape[1]))


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


@pytest.mark.usefixtures("small_studies", "_softplus")
@pytest.mark.slow
def test_a_stopped_experiment_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = run(small(tmp_path / "whole"), quiet())
    assert (whole["information_strokes"] > 0).all()
    assert whole["test_accuracy"].between(0, 1).all()
    assert whole.groupby(["model", "kind"]).size().tolist() == [2] * 6
    assert len(pd.read_csv(tmp_path / "whole" / "noise.csv")) == 2 * 2 * 2 * 4
    assert {p.name for p in (tmp_path / "whole").iterdir()} == {
        "config.json",
        "information_dropout.md",
        "noise.csv",
        "table.csv",
        *(
            f"{name}-{model}.png"
            for name in ("information", "noise", "weights")
            for model in ("lenet5", "lenet5_softplus")
        ),
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
            Config(
                model="lenet5", seeds=(0,), epochs=20, kl_weight=weight, out=tmp_path / str(weight)
            ),
            quiet(),
        )["information_background"][0]
        for weight in (0.0, 0.1)
    }
    assert kept[0.1] < 0.7 * kept[0.0]


@pytest.mark.usefixtures("small_studies")
def test_controls_know_nothing_of_the_images(tmp_path: Path) -> None:
    config = Config(model="lenet5", seeds=(0,), epochs=20, out=tmp_path / "out")
    accuracy = run(config, quiet()).set_index("kind")["test_accuracy"]
    assert accuracy["trained"] > accuracy[["shuffled_labels", "untrained"]].max() + 0.1
    experiment = Experiment(config, RunFolder(tmp_path / "other", config))
    with experiment._network("lenet5", 0, "untrained") as (task, network, first):
        weights = dict(network.named_parameters())
        for name, value in task.model.named_parameters():
            assert torch.equal(weights[name], value)
        assert first.dropout.offset.abs().max() > 0.0


def test_shuffled_labels_stay_with_their_images() -> None:
    source = make_data().train
    shuffled = with_shuffled_labels(source, torch.Generator().manual_seed(0))
    assert shuffled.labels.tolist() != source.labels.tolist()
    assert shuffled.labels.bincount().tolist() == source.labels.bincount().tolist()
    order = [torch.tensor([3, 1]), torch.tensor([5])]
    for picked, own, other in zip(
        order, shuffled.batches(order), source.batches(order), strict=True
    ):
        assert torch.equal(own[0], other[0])
        assert torch.equal(own[1], shuffled.labels[picked])
    part = shuffled.subset(torch.tensor([4, 2]))
    assert part.labels.tolist() == shuffled.labels[[4, 2]].tolist()
    assert part.digest() != source.subset(torch.tensor([4, 2])).digest()


def test_the_prior_of_a_softplus_sees_what_the_softplus_returns(tmp_path: Path) -> None:
    config = Config(data="mnist", model="lenet5_softplus", out=tmp_path)
    model = build_model("lenet5_softplus", 10, (1, 28, 28)).eval()
    image = torch.randn(1, 1, 28, 28)
    with dropout_behind(model, "conv1", image, config.alpha) as dropout:
        model.eval()(image)
        seen = nn.Sequential(model.conv1, model.softplus1)  # type: ignore[arg-type]
        information = pixel_information(seen, dropout, image)
        torch.testing.assert_close(information.sum(), dropout.divergence)


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
    ("ratios", "others", "verdict"),
    [
        ([2.0, 2.1], [1.0, 1.1], "holds, and more"),
        ([2.0, 2.1], [2.0, 2.2], "not due to digits"),
        ([0.5, 0.51], [1.0, 1.1], "fails"),
        ([0.5, 2.0], [1.0, 1.1], "undecided"),
        ([2.0], [1.0], "one seed"),
    ],
)
def test_the_verdict_follows_the_intervals(
    ratios: list[float], others: list[float], verdict: str
) -> None:
    names = ("test_accuracy", "information_strokes", "information_background", "information_far")
    filled = dict.fromkeys((*names, "ratio_far", "images_higher", "pooled_mean", "pooled_ks"), 1.0)
    rows = pd.DataFrame(
        {"model": "a", "kind": kind, "seed": seed, "ratio": ratio} | filled
        for kind, values in (("trained", ratios), ("untrained", others))
        for seed, ratio in enumerate(values)
    )
    fit = fit_noise(np.random.default_rng(0).lognormal(-0.02, 0.2, 100), 0.2)
    report = format_report(rows, pd.DataFrame([{"model": "a"} | fit._asdict()]), "title")
    assert verdict in report
