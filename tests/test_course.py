"""The course: exercises with their solutions and wrong answers, the instruments, the builder, and the notebooks' form."""

import ast
import importlib
import io
import runpy
import statistics
import sys
from pathlib import Path

import nbformat
import numpy as np
import pytest
import torch
from PIL import Image

from ddsa_lab.course import ExerciseError, ask, exercise, fast, number, show, show_matrices, tensor
from ddsa_lab.course.entmax import entmax15, sparsemax
from ddsa_lab.course.gallery import show_figure, small_png
from ddsa_lab.course.instruments import held_out_scores, measured_macs, rainiest_channel
from ddsa_lab.course.live import LiveCurves
from ddsa_lab.data.datasets import held_out_pairs
from ddsa_lab.model.cost import count_macs
from ddsa_lab.model.network import DerainTransformer, NetworkConfig

NOTEBOOKS = Path(__file__).resolve().parents[1] / "notebooks"
SOURCES = sorted((NOTEBOOKS / "src").glob("[0-9]*.py"))
BY_NAME = [pytest.param(path, id=path.stem) for path in SOURCES]

sys.path.insert(0, str(NOTEBOOKS))
import build  # noqa: E402

SOLUTIONS = sorted((NOTEBOOKS / "solutions").glob("0*_*.py"))


def solved() -> list:
    """(checker, right answer, wrong answers) of each exercise."""
    found = []
    for path in SOLUTIONS:
        names = runpy.run_path(str(path))
        checks = importlib.import_module(f"ddsa_lab.course.nb{path.stem[:2]}")
        found += [
            pytest.param(getattr(checks, name), answer, names["WRONG"][name], id=f"{path.stem[:2]}-{name}")
            for name, answer in names["SOLUTIONS"].items()
        ]
    return found


EXERCISES = solved()


@pytest.mark.parametrize(("check", "answer", "wrong"), EXERCISES)
def test_solutions_pass_and_wrong_answers_get_a_sentence(check, answer, wrong, capsys):
    check(answer)
    assert capsys.readouterr().out.startswith("Right. ")
    assert len(wrong) >= 2
    for mistake in wrong:
        with pytest.raises(ExerciseError) as caught:
            check(mistake)
        message = str(caught.value)
        assert 20 < len(message) < 300 and "\n" not in message and not message.endswith(".")
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(("check", "answer", "wrong"), EXERCISES)
def test_untouched_placeholders_run(check, answer, wrong, capsys):
    check((lambda *_: ...) if callable(answer) else ...)
    assert "Not solved yet" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["00-check_worse_than_nothing", "03-check_growth", "04-check_verdicts"])
def test_placeholders_inside_a_tuple_run(name, capsys):
    ((check, answer),) = [param.values[:2] for param in EXERCISES if param.id == name]
    check((...,) * len(answer))
    assert "Not solved yet" in capsys.readouterr().out


@pytest.mark.parametrize("path", BY_NAME)
def test_every_exercise_of_a_notebook_has_a_solution(path):
    checks = importlib.import_module(f"ddsa_lab.course.nb{path.stem[:2]}")
    names = {name for name in vars(checks) if name.startswith("check_")}
    solutions = runpy.run_path(str(NOTEBOOKS / "solutions" / path.name))
    assert names == set(solutions["SOLUTIONS"]) == set(solutions["WRONG"])
    assert all(f".{name}(" in path.read_text(encoding="utf-8") for name in names) and len(names) >= 3


def test_an_exercise_error_is_shown_as_one_line():
    assert ExerciseError("k is 3")._render_traceback_() == ["Not yet: k is 3"]


def test_checkers_explain_what_is_no_number_no_tensor_and_no_function():
    with pytest.raises(ExerciseError, match="must be one number, and str 'x' is none"):
        number("x")
    with pytest.raises(ExerciseError, match=r"shape \(2,\), but \(3,\) is needed"):
        tensor(torch.zeros(2), (3,))
    with pytest.raises(ExerciseError, match="NaN"):
        tensor(torch.tensor([torch.nan]), (1,))
    with pytest.raises(ExerciseError, match="a function is needed"):
        ask(3)
    with pytest.raises(ExerciseError, match="stopped with ZeroDivisionError"):
        ask(lambda: 1 / 0)


def test_an_exercise_keeps_its_name_and_says_right(capsys):
    @exercise
    def check_it(answer):
        return "Well done."

    check_it(1)
    assert capsys.readouterr().out == "Right. Well done.\n" and check_it.__name__ == "check_it"


def test_fast_mode_chooses_the_small_budget(monkeypatch):
    monkeypatch.delenv("DDSA_LAB_FAST", raising=False)
    assert fast(300, 3) == 300
    monkeypatch.setenv("DDSA_LAB_FAST", "1")
    assert fast(300, 3) == 3


# Instruments


def by_bisection(z: torch.Tensor, alpha: float) -> torch.Tensor:
    """alpha-entmax by its definition: find tau such that the row sums to 1."""
    z = (alpha - 1) * z.double()
    low, high = z.amax(-1, keepdim=True) - 1, z.amax(-1, keepdim=True)
    for _ in range(100):
        tau = (low + high) / 2
        large = (z - tau).clamp_min(0).pow(1 / (alpha - 1)).sum(-1, keepdim=True) > 1
        low, high = torch.where(large, tau, low), torch.where(large, high, tau)
    return (z - tau).clamp_min(0).pow(1 / (alpha - 1))


@pytest.mark.parametrize("scale", [0.01, 0.3, 1, 10])
@pytest.mark.parametrize(("function", "alpha"), [(sparsemax, 2.0), (entmax15, 1.5)])
def test_sparse_softmaxes_solve_their_equation(function, alpha, scale):
    z = scale * torch.randn(20, 33, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    torch.testing.assert_close(function(z), by_bisection(z, alpha), atol=1e-9, rtol=0)
    torch.testing.assert_close(function(z + 5), function(z), atol=1e-9, rtol=0)


def test_sparse_softmaxes_in_closed_form():
    t = torch.linspace(-3, 3, 61)
    two = torch.stack([t, torch.zeros_like(t)], dim=-1)
    torch.testing.assert_close(sparsemax(two)[:, 0], ((1 + t) / 2).clamp(0, 1))
    # 1.5-entmax of (t, 0): x^2 + y^2 = 1 and x - y = t/2, so x = t/4 + sqrt(1/2 - t^2/16) while both survive (|t| < 2)
    both = (t / 4 + (0.5 - t.square() / 16).clamp_min(0).sqrt()).square()
    torch.testing.assert_close(
        entmax15(two)[:, 0], torch.where(t.abs() < 2, both, (t > 0).float()), atol=1e-6, rtol=0
    )
    for function in (sparsemax, entmax15):
        torch.testing.assert_close(function(torch.full((4,), 7.0)), torch.full((4,), 0.25))


def test_measured_macs_are_those_counted_by_hand():
    config = NetworkConfig.preset("tiny", width=8, blocks=(1, 1), heads=(1, 2))
    counts = measured_macs(DerainTransformer(config).eval(), 32, 32)
    assert counts[""] == count_macs(config, 32, 32)
    parts = ("stem", "encoder.0", "down.0", "latent", "up.0", "decoder.0", "head")
    assert sum(counts[name] for name in parts) == counts[""]


@pytest.mark.parametrize("sign", [1, -1])
def test_the_rainiest_channel_is_the_planted_one(sign):
    generator = torch.Generator().manual_seed(0)
    streaks = (torch.rand(1, 32, 32, generator=generator) > 0.9).float()
    features = torch.rand(5, 16, 16, generator=generator)
    features[3] = 0.2 - sign * 4 * torch.nn.functional.avg_pool2d(streaks, 2)[0]
    best, correlation, image = rainiest_channel(features, streaks)
    assert best == 3 and correlation == pytest.approx(-sign, abs=1e-4)
    assert image.min() == 0 and image.flatten()[(-sign * features[3]).argmax()] == image.max() == 1


def test_held_out_scores_have_a_row_for_each_network_and_image():
    net = DerainTransformer(NetworkConfig.preset("tiny", width=8, blocks=(1,), heads=(1,))).eval()
    table = held_out_scores({("dual", 0): net, ("dual", 1): net}, held_out_pairs("light", size=32))
    assert len(table) == 8 and set(table.columns) == {"model", "seed", "image", "psnr"}
    first, second = (table[table["seed"] == seed]["psnr"].to_numpy() for seed in (0, 1))
    np.testing.assert_array_equal(first, second)


def test_live_curves_draw_each_training_and_not_too_often(monkeypatch):
    curves = LiveCurves(every=1000)
    drawn = []
    monkeypatch.setattr(curves, "draw", lambda: drawn.append(curves.picture()))
    curves.drawn = 1e12
    for name in ("dense", "dual"):
        add = curves.of(name)
        for step in range(3):
            add(step, {"step": step, "psnr": 20.0 + step, "loss": 0.1})
    assert not drawn
    curves.drawn = -1e12
    add(3, {"step": 3, "psnr": 23.0, "loss": 0.1})
    assert (
        len(drawn) == 1
        and len(np.unique(np.asarray(Image.open(io.BytesIO(drawn[0])).convert("RGB")).reshape(-1, 3), axis=0))
        > 50
    )
    assert {name: len(rows) for name, rows in curves.rows.items()} == {"dense": 3, "dual": 4}


def test_pictures_name_scores_of_images_but_not_of_the_reference(monkeypatch):
    import matplotlib.pyplot as plt

    monkeypatch.setattr(plt, "show", lambda: None)
    clean = torch.full((3, 24, 24), 0.5)
    show({"clean": clean, "off": clean + 0.1, "map": clean[0]}, clean=clean)
    titles = [ax.get_title() for ax in plt.gcf().axes]
    # 128 and 153 of 255 are 126 and 147 in MATLAB luma: 20 log10(255 / 21)
    assert titles[0] == "clean" and "21.69 dB" in titles[1] and titles[2] == "map"
    show_matrices({"z": torch.rand(4, 4), "mask": torch.rand(4, 4) > 0.5})
    assert [ax.get_title() for ax in plt.gcf().axes[:2]] == ["z", "mask"]
    plt.close("all")


# The builder


def test_outputs_keep_the_static_twin_of_a_widget_and_drop_what_shows_nothing():
    picture = io.BytesIO()
    Image.new("RGB", (4, 4), (200, 30, 30)).save(picture, "PNG")
    png = build.base64.b64encode(picture.getvalue()).decode()
    output = nbformat.v4.new_output
    cell = nbformat.v4.new_code_cell(
        "x",
        outputs=[
            output(
                "display_data", {build.WIDGET: {"model_id": "1"}, "image/png": png, "text/plain": "VBox()"}
            ),
            output("display_data", {build.WIDGET: {"model_id": "2"}, "text/plain": "VBox()"}),
            output("stream", name="stderr", text="  10%|#   \r 100%|####"),
            output("stream", name="stderr", text="\r 100%|####\ndone\n"),
        ],
    )
    build.tidy(nbformat.v4.new_notebook(cells=[cell]))
    assert [sorted(o.get("data", {})) for o in cell.outputs] == [["image/png"], []]
    assert cell.outputs[1].text == " 100%|####\ndone\n"
    squeezed = Image.open(io.BytesIO(build.base64.b64decode(cell.outputs[0].data["image/png"])))
    assert squeezed.getpixel((1, 1)) == (200, 30, 30)


def notebook(outputs: str = "", stated: str = "2 minutes to run") -> nbformat.NotebookNode:
    v4 = nbformat.v4
    stream = v4.new_output("stream", text=outputs)
    return v4.new_notebook(cells=[v4.new_markdown_cell(stated), v4.new_code_cell("x", outputs=[stream])])


def test_faults_are_found():
    assert build.faults(notebook(), "small", 359) == []
    assert "more than 3 times" in build.faults(notebook(), "small", 361)[0]
    assert "minutes to run" in build.faults(notebook(stated="soon"), "small", 1)[0]
    assert "bytes" in build.faults(notebook(), "x" * 1_500_001, 1)[0]
    assert "path" in build.faults(notebook(f"{Path.home()}/photo.png"), "small", 1)[0]


def test_a_notebook_that_differs_from_its_source_is_stale(tmp_path, monkeypatch):
    monkeypatch.setattr(build, "HERE", tmp_path)
    source = tmp_path / "00_try.py"
    source.write_text("# %% [markdown]\n# # Title\n\n# %%\n1 + 1\n")
    assert build.stale(source) == "00_try.ipynb is not built"
    built = build.read(source)
    built.cells[1].execution_count = 1
    nbformat.write(built, tmp_path / "00_try.ipynb")
    assert build.stale(source) is None
    source.write_text(source.read_text().replace("1 + 1", "1 + 2"))
    assert build.stale(source) == "00_try.ipynb differs from src/00_try.py"


def test_words_alone_can_be_refreshed_and_code_cannot(tmp_path, monkeypatch):
    monkeypatch.setattr(build, "HERE", tmp_path)
    source = tmp_path / "00_try.py"
    source.write_text("# %% [markdown]\n# Old words\n\n# %%\n1 + 1\n")
    built = build.read(source)
    built.cells[1].execution_count = 1
    built.cells[1].outputs = [nbformat.v4.new_output("stream", text="2")]
    nbformat.write(built, tmp_path / "00_try.ipynb")
    source.write_text(source.read_text().replace("Old", "New"))
    assert build.refresh(source) == [] and build.stale(source) is None
    now = nbformat.read(tmp_path / "00_try.ipynb", as_version=4)
    assert now.cells[0].source == "New words" and now.cells[1].outputs[0].text == "2"
    source.write_text(source.read_text().replace("1 + 1", "1 + 2"))
    assert "has changed" in build.refresh(source)[0]


def test_unknown_names_are_refused():
    with pytest.raises(SystemExit, match="no notebook begins with '77'"):
        build.sources(["77"])
    assert [path.stem[:2] for path in build.sources(["01", "00"])] == ["00", "01"]


# The form of the notebooks


def code_cells(path: Path) -> list[str]:
    return [text for kind, text in build.cells(build.read(path)) if kind == "code"]


@pytest.mark.parametrize("path", BY_NAME)
def test_the_built_notebook_is_up_to_date(path):
    assert build.stale(path) is None


@pytest.mark.parametrize("path", BY_NAME)
def test_code_cells_are_short_and_define_nothing_but_exercises(path):
    cells = code_cells(path)
    lengths = [len([line for line in cell.splitlines() if line.strip()]) for cell in cells]
    assert statistics.median(lengths) <= 6 and max(lengths) <= 20
    for cell in cells:
        kinds = {type(node) for node in ast.walk(ast.parse(cell))}
        assert ast.ClassDef not in kinds
        assert ast.FunctionDef not in kinds or "check_" in cell


@pytest.mark.parametrize("path", BY_NAME)
def test_a_notebook_has_the_parts_that_every_notebook_has(path):
    notebook = build.read(path)
    words = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    code = code_cells(path)
    first = notebook.cells[0].source
    assert first.startswith(f"# {path.stem[:2]} · ") and "What you will be able to do" in first
    assert build.STATED.search(first) and "Memory" in first and "GPU" in first
    assert code[0] == code_cells(SOURCES[0])[0]
    for part in ("**Predict", "ailure case", "**Exercise 3", "Where to go on", "**Measured here:**"):
        assert part in words or (part == "ailure case" and "it fails" in words), part
    assert any("assert " in cell for cell in code)
    assert sum("check_" in cell for cell in code) >= 3


# --- pictures of figures/ ---


def test_pictures_shrink_to_a_page_and_keep_their_looks(tmp_path):
    across = np.linspace(0, 255, 2000).astype(np.uint8)
    wide = np.broadcast_to(across[None, :, None], (400, 2000, 3))
    Image.fromarray(np.ascontiguousarray(wide)).save(tmp_path / "wide.png")
    small = Image.open(io.BytesIO(small_png(tmp_path / "wide.png", width=500)))
    assert small.size == (500, 100)
    np.testing.assert_allclose(np.asarray(small.convert("L"))[50], across[2::4], atol=4)


def test_a_figure_that_is_not_built_says_how(tmp_path, capsys):
    show_figure("sweep", tmp_path)
    assert "ddsa-lab figures sweep" in capsys.readouterr().out
