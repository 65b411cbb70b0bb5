"""The page of a run: its sentence, what it holds, and that nothing on it comes from elsewhere."""

from __future__ import annotations

import re
from dataclasses import replace
from html import unescape
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from matplotlib.figure import Figure as Drawing
from torch import nn

from compress_env.envs.pruning import PruningEnv
from compress_env.networks.models import build_model, save_checkpoint
from compress_env.quantization.export import export_onnx
from compress_env.quantization.fake_quant import attach, bake
from compress_env.quantization.packing import save
from experiments.common.drawing.svg import to_svg
from experiments.compress.outcome.page import (
    Figure,
    Page,
    format_headline,
    format_page,
    format_snippets,
)
from experiments.compress.outcome.report import Row, format_noise, with_ratios
from tests.fakes import make_data, seeded

BASELINE = Row("baseline", 0.92, 0.088, 1.0, 1.0, 1.0, 1.0, 1000, 1.0, 1000, True, 0, 0.0)
CHOSEN = Row("ppo", 0.91, 0.092, 0.49, 0.4, 0.5, 0.4, 90, 0.09, 500, True, 12, 3.0)


@pytest.mark.parametrize(
    ("changes", "macs", "sentence"),
    [
        (
            {"latency_1": 0.61, "torch_latency_1": 0.8},
            "dense",
            "At 49 % of the multiply-accumulates and 9 % of the bytes the network gets 90.8 % "
            "right, 0.4 points less than before; one image takes 61 % of the time in onnxruntime.",
        ),
        (
            {"torch_latency_1": 1.2, "size": 1.0},
            "dense",
            "At 49 % of the multiply-accumulates the network gets 90.8 % right, 0.4 points less "
            "than before; one image takes 120 % of the time in PyTorch.",
        ),
        (
            {"macs": 1.0, "size": 0.041, "test_error": 0.08, "latency_1": 0.998},
            "dense",
            "At 4.1 % of the bytes the network gets 92.0 % right, 0.8 points more than before; one "
            "image takes as long as before in onnxruntime.",
        ),
        (
            {"test_error": 0.0882, "size": 0.996},
            "sparse",
            "At 40 % of the multiply-accumulates by non-zero weights and 99.6 % of the bytes the "
            "network gets 91.2 % right, as much as before.",
        ),
        (
            {"macs": 1.0, "size": 1.0},
            "dense",
            "At the same cost the network gets 90.8 % right, 0.4 points less than before.",
        ),
    ],
    ids=["both", "only pruned", "only quantized, better", "sparse, equal", "nothing"],
)
def test_sentence(changes: dict[str, Any], macs: str, sentence: str) -> None:
    assert format_headline(BASELINE, CHOSEN._replace(**changes), macs) == sentence


def draw(title: str) -> Drawing:
    figure = Drawing()
    figure.subplots().plot([1, 2], [3, 4], "o")
    figure.suptitle(title)
    return figure


PAGE = Page(
    title="<script>net</script> & data",
    rows=with_ratios(
        [
            BASELINE._replace(torch_latency_1_ms=2.0, torch_latency_1_iqr_ms=0.1),
            CHOSEN._replace(network="uniform", test_error=0.09, within_budget=False),
            CHOSEN._replace(torch_latency_1_ms=1.0, torch_latency_1_iqr_ms=0.2),
        ]
    ),
    chosen="ppo",
    macs="dense",
    budgets={"multiply-accumulates": 0.5, "bytes": 0.1},
    removed="input channels",
    rates={"conv2": 0.25},
    bits={"conv1": 4, "conv2": 6},
    unpruned={"<script>conv9": "reads <script>", "conv8": "reads <script>"},
    unquantized={},
    figures=[
        Figure(to_svg(lambda: draw("<script> $x_$"), "a", '"<script>"'), "One <script>."),
        Figure(to_svg(lambda: draw("b"), "b", "b"), "Two."),
    ],
    notes=["A note with <script>."],
    snippets=format_snippets("network-ppo", "MyNet()", (1, 32, 32), has_onnx=True),
    settings={"label": "<script>"},
)


class Reader(HTMLParser):
    """Collects the tags, the addresses and the text of a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.addresses: list[str] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        named = {"src", "href", "xlink:href", "action", "data", "srcset", "poster"}
        self.addresses += [value or "" for name, value in attrs if name in named]

    def handle_data(self, data: str) -> None:
        self.text += data


def test_texts_are_escaped_and_nothing_comes_from_elsewhere() -> None:
    text = format_page(PAGE)
    page = Reader(text)
    assert not {"script", "link", "img", "iframe", "object"} & set(page.tags)
    assert all(address.startswith(("#", "data:")) for address in page.addresses)
    assert "@import" not in text and text.count("url(") == text.count("url(#")
    assert page.text.count("<script>") == 8 and "<script> $x_$" in page.text
    assert "\x00" not in text and "NaN" not in text


def test_page_shows_tables_layers_and_reasons() -> None:
    text = format_page(PAGE)
    page = Reader(text)
    assert text.count('class="chosen"') == 2 + 1  # of networks, times and files
    for shown in ("49.00", "1.000 ± 0.200", "50.0", "25 %", "input channels removed"):
        assert shown in page.text
    assert "reads <script>: <script>conv9, conv8" in page.text
    assert "Not quantized, but stored as float32: nothing." in page.text
    assert "network-ppo.cenv" in page.text and "network-ppo.onnx" in page.text
    assert 'name="viewport"' in text and "prefers-color-scheme: dark" in text


def test_verdict_names_what_is_no_worse() -> None:
    text = Reader(format_page(PAGE)).text.replace("\u00a0", " ")
    assert "It keeps to what was allowed: at most 50 % of the multiply-accumulates and 10 %" in text
    assert "No worse" not in text
    rows = [row._replace(within_budget=True) for row in PAGE.rows]
    assert "No worse in error, multiply-accumulates and bytes: uniform." in Reader(
        format_page(replace(PAGE, rows=rows))
    ).text.replace("\u00a0", " ")
    rows = [row._replace(within_budget=row.network == "baseline") for row in PAGE.rows]
    assert "It does not keep to" in format_page(replace(PAGE, rows=rows))


def test_times_that_tell_little_are_named() -> None:
    quiet = BASELINE._replace(torch_latency_1_ms=2.0, torch_latency_1_iqr_ms=0.1)
    assert format_noise([quiet, CHOSEN]) == []
    busy = CHOSEN._replace(torch_latency_1_ms=2.0, torch_latency_1_iqr_ms=1.0)
    (note,) = format_noise([quiet, busy])
    assert note == "The machine was busy, and these times tell little: PyTorch, 1 image."


@pytest.mark.parametrize("stage", ["rates", "bits"])
def test_run_of_one_stage_shows_what_it_decided(stage: str) -> None:
    changes: dict[str, Any] = {stage: {}, "rows": [BASELINE, CHOSEN], "figures": []}
    page = replace(PAGE, snippets={}, **changes)
    text = Reader(format_page(page)).text
    assert ("bits per weight" in text) == (stage == "rates")
    assert ("removed" in text) == (stage == "bits")
    assert "Time" not in text and "Use the network" not in text


def test_equal_figures_give_equal_texts_in_the_colour_of_the_page() -> None:
    first, second = (to_svg(lambda: draw("t"), "a", "d") for _ in range(2))
    assert first == second
    assert first.startswith("<svg ") and first.endswith("</svg>")
    assert "currentColor" in first and "#000000" not in first and "<style" not in first
    assert first != to_svg(lambda: draw("t"), "b", "d")  # no two figures share a name inside


@pytest.mark.parametrize("build", ["build_model('lenet5', 3, (1, 32, 32))", "Own()"])
def test_code_on_the_page_loads_the_network(
    build: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lenet = seeded(lambda: build_model("lenet5", 3, (1, 32, 32)))
    env = PruningEnv(lenet, make_data(side=32), finetune_steps=0, device="cpu")
    model = env.smallest_model().eval()
    attach(cast(nn.Linear, model.get_submodule("fc1")), 3)
    save(tmp_path / "network-x.cenv", model)
    export_onnx(tmp_path / "network-x.onnx", model, torch.zeros(1, 1, 32, 32))
    bake(model)
    save_checkpoint(model, tmp_path / "network-x.safetensors")
    snippets = format_snippets("network-x", build, (1, 32, 32), has_onnx=True)
    text = format_page(replace(PAGE, snippets=snippets))
    blocks = re.findall(r'<code class="python">(.*?)</code>', text, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    own = {"Own": lambda: build_model("lenet5", 3, (1, 32, 32))}
    names: tuple[dict[str, Any], ...] = ({**own}, {**own}, {**own})
    packed, floats, onnx = names
    for block, namespace in zip(blocks, names, strict=True):
        exec(unescape(block), namespace)
    with torch.no_grad():
        wanted = model(torch.from_numpy(onnx["images"]))
        for network in (packed["network"], floats["network"]):
            assert torch.equal(network(torch.from_numpy(onnx["images"])), wanted)
    torch.testing.assert_close(torch.from_numpy(onnx["logits"]), wanted, rtol=0.0, atol=1e-5)
