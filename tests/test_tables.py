"""Tables as text: what is printed is what was computed, escaped and aligned."""

import math

import pandas as pd
import pytest

from ddsa_lab.errors import LabError
from ddsa_lab.evaluation.tables import to_latex, to_markdown, write_csv

FRAME = pd.DataFrame(
    {
        "model": ["dual_tiny", "a|b & 50%"],
        "images": [100, 9],
        "psnr": [33.456, math.inf],
        "ssim": [0.98765, math.nan],
        "difference": [0.1, -0.25],
    }
)


def test_markdown():
    assert to_markdown(FRAME).splitlines() == [
        "| model      | images |  psnr |   ssim | difference |",
        "| ---------- | -----: | ----: | -----: | ---------: |",
        "| dual_tiny  |    100 | 33.46 | 0.9877 |     +0.100 |",
        r"| a\|b & 50% |      9 |   inf |      - |     -0.250 |",
    ]


def test_latex():
    text = to_latex(FRAME, caption="100 % of it", label="tab:a")
    assert text.splitlines() == [
        r"\begin{table}",
        r"\centering",
        r"\caption{100 \% of it}",
        r"\label{tab:a}",
        r"\begin{tabular}{lrrrr}",
        r"\toprule",
        r"model & images & psnr & ssim & difference \\",
        r"\midrule",
        r"dual\_tiny & 100 & 33.46 & 0.9877 & +0.100 \\",
        r"a|b \& 50\% & 9 & inf & - & -0.250 \\",
        r"\bottomrule",
        r"\end{tabular}",
        r"\end{table}",
    ]
    assert to_latex(FRAME).startswith(r"\begin{tabular}")


def test_formats():
    assert "33.5 |" in to_markdown(FRAME, {"psnr": ".1f"})
    assert "0.123" in to_markdown(pd.DataFrame({"other": [0.12345]}))
    with pytest.raises(LabError, match="did you mean 'psnr'"):
        to_markdown(FRAME, {"psnrs": ".1f"})


def test_empty_frames_have_a_header():
    empty = FRAME.head(0)
    assert len(to_markdown(empty).splitlines()) == 2
    assert r"\midrule" in to_latex(empty)


def test_csv_keeps_all_digits(tmp_path):
    write_csv(FRAME, tmp_path / "new" / "table.csv")
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "new" / "table.csv"), FRAME, check_exact=True)
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["table.csv"]
