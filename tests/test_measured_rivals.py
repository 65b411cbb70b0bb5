"""The page of rivals says what its cells have measured."""

import pandas as pd

from tests.pages import PAGES, ROOT


def test_rows_are_told_as_they_were_measured() -> None:
    rows = pd.read_csv(ROOT / "results" / "rivals-resnet20" / "sweep.csv").set_index("agent")
    errors = [f"{100 * rows['test_error'][agent]:.2f} % by" for agent in ("uniform", "tp_l2")]
    shares = [f"{100 * rows['bytes_share'][agent]:.1f}" for agent in ("uniform", "tp_l2")]
    page = " ".join(PAGES["rivals.md"].split())
    assert f"{errors[0]} `uniform` and {errors[1]} `tp_l2`" in page
    assert f"itself is wrong about {100 * rows['baseline_test_error']['uniform']:.2f} %" in page
    assert f"at {shares[0]} and {shares[1]} % of the bytes" in page
