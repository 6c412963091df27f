"""The exercises of notebooks 05 to 09 with their solutions and wrong answers, and pictures small enough for a notebook."""

import importlib
import io
import runpy
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ddsa_lab.course import ExerciseError
from ddsa_lab.course.gallery import show_figure, small_png

NOTEBOOKS = Path(__file__).resolve().parents[1] / "notebooks"
SOLUTIONS = sorted((NOTEBOOKS / "solutions").glob("0[5-9]_*.py"))


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
    untouched = (lambda *_: ...) if callable(answer) else (..., ...) if isinstance(answer, tuple) else ...
    check(untouched)
    assert "Not solved yet" in capsys.readouterr().out


@pytest.mark.parametrize("path", SOLUTIONS, ids=lambda path: path.stem)
def test_every_exercise_of_a_notebook_has_a_solution(path):
    checks = importlib.import_module(f"ddsa_lab.course.nb{path.stem[:2]}")
    names = {name for name in vars(checks) if name.startswith("check_")}
    solutions = runpy.run_path(str(path))
    source = (NOTEBOOKS / "src" / path.name).read_text(encoding="utf-8")
    assert names == set(solutions["SOLUTIONS"]) == set(solutions["WRONG"]) and len(names) == 3
    assert all(f".{name}(" in source for name in names)


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
