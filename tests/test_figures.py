"""Figures as files: equal bytes when built twice, honest JSON, settings untouched, and what happens when things lack."""

import json
import re

import matplotlib as mpl
import pandas as pd
import pytest
import torch
from PIL import Image

from ddsa_lab.errors import LabError
from ddsa_lab.model.checkpoints import save
from ddsa_lab.model.network import DerainTransformer, NetworkConfig
from ddsa_lab.viz import figures
from ddsa_lab.viz.builders import attributions, sweeps, training, workbench
from ddsa_lab.viz.figures import FIGURES, build, plain
from ddsa_lab.viz.style import DOUBLE


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """An untrained network: figures need not be beautiful here."""
    config = NetworkConfig(width=8, blocks=(1, 1), heads=(1, 2), refinement=0, ffn_factor=1.0)
    path = tmp_path_factory.mktemp("weights") / "dual-mini.safetensors"
    save(DerainTransformer(config, seed=0), path)
    return str(path)


@pytest.fixture
def run(tmp_path):
    """A training run's folder with ten rows."""
    folder = tmp_path / "dual-mini"
    folder.mkdir()
    metrics = pd.DataFrame({"step": range(10, 110, 10), "loss": 0.1, "psnr": 25.0, "val_psnr": float("nan")})
    metrics.loc[9, "val_psnr"] = 26.5
    metrics.to_csv(folder / "metrics.csv", index=False)
    rows = [
        (s, layer, h, 0.2, 0.1) for s in (0, 100) for layer in ("latent.0", "decoder.0.0") for h in (0, 1)
    ]
    pd.DataFrame(rows, columns=["step", "layer", "head", "a", "b"]).to_csv(
        folder / "sparsity.csv", index=False
    )
    return folder


@pytest.fixture
def small(monkeypatch):
    """Little work: few photos, steps and keeps."""
    monkeypatch.setattr(sweeps, "KEEPS", (0.3, 1.0))
    for module in (sweeps, workbench):
        monkeypatch.setattr(module, "HELD_OUT", ("coffee",))
    monkeypatch.setattr(attributions, "STEPS", 2)


def test_every_figure_is_made_twice_alike_and_settings_stay(weights, run, small, tmp_path, monkeypatch):
    from ddsa_lab.viz.builders import attention, comparison

    monkeypatch.setattr(attention, "HELD_OUT", ("coffee",))
    monkeypatch.setattr(comparison, "HELD_OUT", ("coffee",))
    monkeypatch.setattr(comparison, "CASES", (("coffee", "light", 0),))
    before = dict(mpl.rcParams)
    random = torch.get_rng_state()
    first, second = (
        build("all", tmp_path / str(i), progress=False, weights=weights, history=run) for i in (1, 2)
    )
    assert not first.left_out and dict(mpl.rcParams) == before and torch.equal(torch.get_rng_state(), random)
    names = {path.name for path in first.paths}
    assert names >= {f"{name}.{kind}" for name in FIGURES for kind in ("pdf", "png", "json")}
    assert names >= {"table.tex", "table.md", "table.csv"} and len(FIGURES) == 10
    for one, other in zip(first.paths, second.paths):
        assert one.read_bytes() == other.read_bytes(), one.name
    for name in FIGURES:
        _check_files(tmp_path / "1", name)


def _check_files(folder, name):
    facts = json.loads((folder / f"{name}.json").read_text())
    assert facts["command"] == f"ddsa-lab figures {name}" and facts["versions"]["torch"]
    text = (folder / f"{name}.json").read_text() + (folder / f"{name}.pdf").read_bytes().decode("latin-1")
    assert not re.search(r"CreationDate|20[2-9]\d-[01]\d-[0-3]\d|/home/|/root/", text)
    pdf = (folder / f"{name}.pdf").read_bytes()
    assert b"/Type3" not in pdf and (b"/FontFile2" in pdf or b"/Font" not in pdf)
    assert Image.open(folder / f"{name}.png").size[0] <= round(DOUBLE * 200)


def test_json_holds_what_the_table_prints(weights, small, tmp_path, monkeypatch):
    from ddsa_lab.viz.builders import comparison

    monkeypatch.setattr(comparison, "HELD_OUT", ("coffee",))
    build(["table"], tmp_path, progress=False, weights=weights)
    facts = json.loads((tmp_path / "table.json").read_text())
    rows = facts["numbers"]["rows"]
    assert [row["network"] for row in rows] == ["input", "dual-mini"] and rows[0]["GMAC"] is None
    latex = (tmp_path / "table.tex").read_text()
    assert r"\toprule" in latex and f"{rows[1]['light PSNR']:.2f}" in latex
    assert f"{rows[1]['heavy SSIM']:.4f}" in (tmp_path / "table.md").read_text()
    csv = pd.read_csv(tmp_path / "table.csv")
    assert csv["light PSNR"][1] == pytest.approx(rows[1]["light PSNR"], rel=1e-5)
    assert facts["photos"] == {"coffee": "CC0, Rachel Michetti"} and list(facts["weights"]) == ["dual-mini"]


def test_metric_figure_measures_the_offset_it_explains(weights, tmp_path):
    build("metrics", tmp_path, progress=False, weights=weights)
    numbers = json.loads((tmp_path / "metrics.json").read_text())["numbers"]
    assert numbers["luma_offset_db"] == pytest.approx(1.32, abs=0.005)
    assert numbers["measured_offset_db"] == pytest.approx(numbers["luma_offset_db"], abs=1e-4)


def test_cost_figure_gives_scores_only_where_they_can_be_compared(weights, tmp_path):
    build("cost", tmp_path, progress=False, weights=weights)
    facts = json.loads((tmp_path / "cost.json").read_text())
    assert {row["name"]: row["score"] for row in facts["numbers"]["scored"]} == {
        "Restormer": 40.99,
        "DRSformer*": 41.23,
    }
    only = facts["numbers"]["size_only"]
    assert {row["name"] for row in only} == {"tiny", "small", "DDSA, as released"}
    assert not any("score" in row for row in only) and facts["settings"]["protocol"] == "y_uint8"


# --- what lacks


def test_training_figure_without_history_is_left_out_with_a_sentence(weights, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(training, "SHIPPED", "no-such-history.csv")
    monkeypatch.setattr(figures, "FIGURES", {"training": FIGURES["training"]})
    built = build("all", tmp_path, weights=weights)
    assert not built.paths and "give the folder of a training run" in built.left_out["training"]
    assert "left out: training" in capsys.readouterr().err
    with pytest.raises(LabError, match="'training' cannot be built: no training histories"):
        build("training", tmp_path, progress=False, weights=weights)


def test_dense_network_has_no_sweep_and_says_so(tmp_path):
    path = tmp_path / "plain.safetensors"
    save(
        DerainTransformer(NetworkConfig(width=8, blocks=(1, 1), heads=(1, 2), refinement=0, mode="dense")),
        path,
    )
    for name in ("sweep", "attention"):
        with pytest.raises(LabError, match="plain has no"):
            build(name, tmp_path / "out", progress=False, weights=str(path))


def test_wrong_names_paths_and_tables_are_refused(weights, tmp_path):
    with pytest.raises(LabError, match="did you mean 'diagram'"):
        build("diagramm", tmp_path, progress=False)
    with pytest.raises(LabError, match=r"no metrics\.csv"):
        build("training", tmp_path / "out", progress=False, weights=weights, history=tmp_path)
    (tmp_path / "some.csv").write_text("a,b\n1,2\n")
    with pytest.raises(LabError, match="lacks columns network, step"):
        build("training", tmp_path / "out", progress=False, weights=weights, history=tmp_path / "some.csv")
    (tmp_path / "file").write_text("")
    with pytest.raises(LabError, match="cannot write"):
        build("diagram", tmp_path / "file", progress=False)


# --- pieces


def test_compact_history_keeps_means_and_ends(run):
    table = training.compact_history(run, "mine", rows=5)
    assert set(table["network"]) == {"mine"} and list(table.columns) == list(training.COLUMNS)
    psnr = table[table["quantity"] == "psnr"]
    assert len(psnr) == 5 and psnr["step"].max() == 100 and set(psnr["value"]) == {25.0}
    assert list(table[table["quantity"] == "val_psnr"]["value"]) == [26.5]
    assert (
        len(table[table["quantity"] == "a"]) == 4
    )  # two steps of two layers; heads share their layer's weights


def test_histories_of_several_runs_are_joined(run):
    other = run.parent / "dense-mini"
    other.mkdir()
    (other / "metrics.csv").write_text((run / "metrics.csv").read_text())
    assert list(dict.fromkeys(training.find_history(run.parent)["network"])) == ["dense-mini", "dual-mini"]


def test_changes_are_paired_and_draws_count_once():
    table = pd.DataFrame(
        [("top", "x", 0, 30.0), ("top", "y", 0, 40.0), ("random", "x", 0, 28.0), ("random", "x", 1, 29.0), ("random", "y", 0, 39)],
        columns=["select", "image", "draw", "psnr"],
    ).assign(keep=0.5)  # fmt: skip
    before = pd.Series({"x": 31.0, "y": 41.0})
    found = sweeps.changes(table, before, ["keep", "select"]).set_index("select")
    assert found.loc["top", ["mean", "low", "high"]].tolist() == [-1, -1, -1]
    assert found.loc["random", "mean"] == pytest.approx((-2.5 - 2) / 2)
    assert found.loc["random", "low"] == -2.5 and found.loc["random", "high"] == -2


def test_png_above_the_limit_is_reduced(tmp_path, monkeypatch):
    from ddsa_lab.viz.style import style, subplots

    with style():
        figure, ax = subplots((3, 3))
        ax.imshow(torch.rand(300, 300, 3, generator=torch.Generator().manual_seed(0)).numpy())
        full = figures.save_png(figure, tmp_path / "full.png").stat().st_size
        monkeypatch.setattr(figures, "PNG_LIMIT", 1000)
        assert figures.save_png(figure, tmp_path / "small.png").stat().st_size < 0.6 * full
    assert Image.open(tmp_path / "small.png").mode == "P" and Image.open(tmp_path / "full.png").mode == "RGB"


def test_json_values_are_plain():
    frame = pd.DataFrame({"x": [1.23456789, float("nan")]})
    found = plain({"t": torch.tensor([1, 2]), "f": frame, "inf": float("inf"), "n": (True, None, "s")})
    assert found == {"t": [1, 2], "f": [{"x": 1.23457}, {"x": None}], "inf": "inf", "n": [True, None, "s"]}
