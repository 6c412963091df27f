"""Charts and images: what is drawn is what was given, settings stay as they were, and grey readers can follow."""

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from ddsa_lab.analysis.targets import Window
from ddsa_lab.errors import LabError
from ddsa_lab.viz import diagram, images, plots
from ddsa_lab.viz.style import MODE_STYLES, SELECT_STYLES, STYLE, mode_of, style


@pytest.fixture
def ax():
    with style():
        yield Figure(figsize=(plots.SINGLE, 2.4)).subplots()


def texts(ax):
    return [text.get_text() for text in ax.texts]


def luminance(colour):
    """CIE lightness L*, what a grey print keeps of a colour."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in mpl.colors.to_rgb(colour)]
    y = np.dot(linear, (0.2126, 0.7152, 0.0722))
    return 116 * y ** (1 / 3) - 16 if y > 0.008856 else 903.3 * y


# --- style


def test_style_leaves_settings_as_they_were_also_after_an_exception():
    before = dict(mpl.rcParams)
    mpl.rcParams["lines.linewidth"] = 7.5
    try:
        with pytest.raises(ZeroDivisionError), style():
            assert mpl.rcParams["lines.linewidth"] != 7.5 and mpl.rcParams["pdf.fonttype"] == 42
            raise ZeroDivisionError
        assert mpl.rcParams["lines.linewidth"] == 7.5
    finally:
        mpl.rcParams["lines.linewidth"] = before["lines.linewidth"]
    assert dict(mpl.rcParams) == before


def test_style_file_is_read_without_complaint(caplog):
    settings = mpl.rc_params_from_file(STYLE, use_default_template=False)
    assert (
        not caplog.records
        and settings["text.usetex"] is False
        and settings["font.sans-serif"][0] == "DejaVu Sans"
    )


@pytest.mark.parametrize("styles", [MODE_STYLES, SELECT_STYLES])
def test_styles_differ_in_marker_and_line_and_the_main_ones_in_grey(styles):
    for key in ("marker", "linestyle", "color"):
        assert len({str(look[key]) for look in styles.values()}) == len(styles)
    light = sorted(luminance(styles[name]["color"]) for name in list(styles)[:3])
    assert min(np.diff(light)) > 15


def test_modes_of_names():
    assert [mode_of(n) for n in ("dual-tiny", "dense", "input", "mine")] == [
        "dual",
        "dense",
        "input",
        "input",
    ]


# --- charts


def test_attention_matrix_shows_the_matrix(ax):
    matrix = torch.rand(5, 5, generator=torch.Generator().manual_seed(0))
    assert plots.attention_matrix(matrix, ax, "weights") is ax
    np.testing.assert_allclose(ax.collections[0].get_array().reshape(5, 5), matrix)
    assert ax.get_title() == "weights" and ax.yaxis_inverted()
    with pytest.raises(LabError, match="choose image and head"):
        plots.attention_matrix(torch.rand(1, 2, 5, 5), ax)


def test_kept_mask_overlay_marks_exactly_the_dropped_keys(ax):
    mask = torch.tensor([[True, False], [True, True]])
    plots.kept_mask(mask, ax, overlay=True)
    np.testing.assert_allclose(ax.collections[0].get_offsets(), [[1.5, 0.5]])


def test_sparsity_line_runs_through_the_means_of_heads(ax):
    table = pd.DataFrame(
        {"layer": ["b", "b", "a"], "depth": [1, 1, 0], "head": [0, 1, 0], "effective_k": [4.0, 6.0, 2.0]}
    )
    plots.sparsity_over_depth(table, ax)
    np.testing.assert_allclose(ax.lines[0].get_xydata(), [[0, 2], [1, 5]])
    assert len(ax.collections[0].get_offsets()) == 3
    assert [label.get_text() for label in ax.get_xticklabels()] == ["a", "b"]
    with pytest.raises(LabError, match="effective_k"):
        plots.sparsity_over_depth(table, ax, "efective_k")


def test_sweep_curves_draw_means_within_their_intervals(ax):
    table = pd.DataFrame(
        {
            "keep": [0.5, 1.0] * 2,
            "select": ["top"] * 2 + ["random"] * 2,
            "mean": [1, 2, 0, 2],
            "low": 0,
            "high": 3,
        }
    )
    plots.sweep_curves(table, ax, trained_at=0.7)
    np.testing.assert_allclose(ax.lines[0].get_xydata(), [[0.5, 1], [1, 2]])
    assert ax.lines[0].get_color() == SELECT_STYLES["top"]["color"]
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["strongest keys", "random keys"]
    assert len(ax.collections) == 2 and "trained with 0.7" in texts(ax)


def test_training_curves_take_rows_or_tables_and_skip_gaps(ax):
    rows = [{"step": 1, "psnr": 20.0}, {"step": 2, "psnr": None}, {"step": 3, "psnr": 24.0}]
    plots.training_curves({"dual-tiny": rows, "dense-tiny": pd.DataFrame(rows)}, ax, smooth=1)
    for line in ax.lines:
        np.testing.assert_allclose(line.get_xydata(), [[1, 20], [3, 24]])
    assert [line.get_color() for line in ax.lines] == [MODE_STYLES[m]["color"] for m in ("dual", "dense")]
    with pytest.raises(LabError, match="psnr"):
        plots.training_curves({"x": rows}, ax, "psnrr")


def test_running_mean_keeps_a_constant(ax):
    plots.training_curves({"x": [{"step": i, "psnr": 5.0} for i in range(20)]}, ax, smooth=9)
    assert set(ax.lines[1].get_ydata()) == {5.0}


def test_bubble_area_is_proportional_to_multiply_adds(ax):
    table = pd.DataFrame(
        {"name": ["s", "l"], "parameters": [1e6, 2e6], "macs": [1e10, 4e10], "score": [30.0, 31]}
    )
    plots.bubbles(table, ax)
    small, large = (c.get_sizes()[0] for c in ax.collections)
    assert large == pytest.approx(4 * small) and texts(ax) == ["s", "l"]
    np.testing.assert_allclose(ax.collections[1].get_offsets(), [[2, 31]])


def test_protocol_bars_end_at_their_values_and_print_them(ax):
    plots.protocol_bars({"one": 30.004, "two": 31.327}, ax, ["One", "Two"])
    ends = [bar.get_x() + bar.get_width() for bar in ax.patches]
    assert ends == pytest.approx([30.004, 31.327]) and texts(ax) == ["30.00 dB", "31.33 dB"]


# --- images


def test_zoom_shows_the_window_and_refuses_one_outside(ax):
    image = torch.rand(3, 20, 30, generator=torch.Generator().manual_seed(0))
    images.zoom(image, ax, Window(4, 5, 6, 7))
    np.testing.assert_array_equal(
        ax.images[0].get_array(), (image[:, 4:10, 5:12] * 255).round().byte().permute(1, 2, 0)
    )
    with pytest.raises(LabError, match="not inside the 20 x 30"):
        images.zoom(image, ax, Window(15, 0, 6, 7))


def test_error_map_is_the_mean_error_on_a_fixed_scale(ax):
    clean = torch.full((3, 4, 4), 0.5)
    restored = clean.clone()
    restored[0, 1, 2] += 0.3
    images.error_map(restored, clean, ax, limit=0.2)
    shown = np.asarray(ax.images[0].get_array())
    assert shown[1, 2] == pytest.approx(0.1) and shown.sum() == pytest.approx(0.1)
    assert ax.images[0].get_clim() == (0, 0.2)
    with pytest.raises(LabError, match="clean is"):
        images.error_map(restored, clean[:, 1:], ax)


def test_heat_map_is_strongest_where_the_heat_is(ax):
    heat = torch.zeros(8, 8)
    heat[2, 3] = 4
    images.heat_map(heat, ax, under=torch.rand(3, 8, 8))
    shown = np.asarray(ax.images[1].get_array())
    assert shown[2, 3] == 1 and shown.sum() == 1
    images.heat_map(torch.zeros(8, 8), ax)  # nothing to show is no error


def test_signed_map_has_white_at_nothing(ax):
    images.signed_map(torch.tensor([[-1.0, 0.0], [0.0, 3.0]]), ax)
    low, high = ax.images[0].get_clim()
    assert low == -high < 0


# --- the block diagram


def test_diagram_shows_every_part_and_nothing_sticks_out():
    with style():
        figure = Figure(figsize=(plots.DOUBLE, 4.75))
        upper, lower = figure.subplots(2, 1)
        diagram.dual_attention(upper)
        diagram.spatial_feed_forward(lower)
        renderer = FigureCanvasAgg(figure).get_renderer()
        figure.draw_without_rendering()
    assert texts(upper).count("softmax") == 2 and texts(lower).count("3×3 depth-wise") == 3
    for ax in (upper, lower):
        frame = ax.get_window_extent(renderer)
        boxes = [text.get_window_extent(renderer) for text in ax.texts if text.get_text()]
        assert all(
            frame.x0 <= b.x0 and b.x1 <= frame.x1 and frame.y0 <= b.y0 and b.y1 <= frame.y1 for b in boxes
        )
        crossing = [
            (i, j) for i, a in enumerate(boxes) for j, b in enumerate(boxes) if i < j and a.overlaps(b)
        ]
        assert not crossing
