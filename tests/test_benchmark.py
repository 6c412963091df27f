"""Whole-folder evaluation: same numbers as single calls, nothing scored twice, nothing lost."""

import json
import math
import os
import subprocess
import sys
import time

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from ddsa_lab.errors import LabError
from ddsa_lab.evaluation import benchmark
from ddsa_lab.evaluation.benchmark import INPUT, MemoryPair, beside_published, evaluate_folder, summary
from ddsa_lab.evaluation.metrics import psnr, score
from ddsa_lab.evaluation.published import PUBLISHED, published
from ddsa_lab.evaluation.strips import draw_strip, save_strips
from ddsa_lab.model.network import DerainTransformer, NetworkConfig
from ddsa_lab.model.restore import derain


def smooth(height, width, seed):
    noise = torch.rand(1, 3, height, width, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.avg_pool2d(noise, 5, stride=1, padding=2)[0]


def memory_pair(name, height=20, width=26):
    seed = sum(map(ord, name))
    clean = smooth(height, width, seed)
    generator = torch.Generator().manual_seed(seed + 1)
    return MemoryPair(name, (clean + 0.1 * torch.rand(clean.shape, generator=generator)).clamp(0, 1), clean)


PAIRS = [memory_pair(name) for name in ("a", "b", "c", "d")]


class Counting:
    """A restorer that darkens by a fixed amount and counts its calls."""

    def __init__(self, amount=0.05):
        self.amount, self.calls = amount, 0

    def __call__(self, image):
        self.calls += 1
        return image - self.amount


def save_folder(folder, names=("1", "2", "3"), size=(20, 26)):
    for name in names:
        pair = memory_pair(name, *size)
        for kind, image in (("input", pair.rainy), ("target", pair.clean)):
            (folder / kind).mkdir(parents=True, exist_ok=True)
            array = (image.permute(1, 2, 0) * 255).round().to(torch.uint8).numpy()
            Image.fromarray(array).save(folder / kind / f"{name}.png")
    return folder


def network(seed=0):
    return DerainTransformer(NetworkConfig.preset("tiny"), seed=seed).eval()


def test_one_row_an_image_model_and_protocol_equal_to_single_calls(tmp_path):
    folder = save_folder(tmp_path / "set")
    models = {"first": network(0), "darker": Counting()}
    out = tmp_path / "scores.csv"
    frame = evaluate_folder(models, folder, ("y_uint8", "rgb", "y_full"), out=out, progress=False)
    assert list(frame.columns) == ["image", "model", "protocol", "psnr", "ssim"]
    assert list(frame["image"].unique()) == ["1", "2", "3"]
    assert list(frame["model"].unique()) == [INPUT, "first", "darker"]
    assert len(frame) == 3 * 3 * 3
    rows = frame.set_index(["image", "model", "protocol"])
    for pair in benchmark.find_pairs(folder):
        rainy, clean = pair.load()
        results = {INPUT: rainy, "first": derain(models["first"], rainy), "darker": rainy - 0.05}
        for name, restored in results.items():
            for protocol in ("y_uint8", "rgb", "y_full"):
                row = rows.loc[(pair.name, name, protocol)]
                assert {"psnr": row["psnr"], "ssim": row["ssim"]} == score(restored, clean, protocol)
    pd.testing.assert_frame_equal(pd.read_csv(out, dtype={"image": str}), frame, check_exact=True)
    assert frame.attrs["failed"] == []


def test_finished_rows_are_never_scored_again(tmp_path):
    out = tmp_path / "scores.csv"
    model = Counting()
    first = evaluate_folder({"m": model}, PAIRS, ("rgb",), out=out, progress=False)
    content = out.read_bytes()
    assert model.calls == 4
    again = evaluate_folder({"m": model}, PAIRS, ("rgb",), out=out, progress=False)
    assert model.calls == 4
    assert out.read_bytes() == content
    pd.testing.assert_frame_equal(first, again, check_exact=True)
    # More protocols, models and images are added to what is there.
    more = {"m": model, "n": Counting(0.2)}
    both = evaluate_folder(more, [*PAIRS, memory_pair("e")], ("rgb", "y_full"), out=out, progress=False)
    assert (len(both), model.calls, more["n"].calls) == (5 * 3 * 2, 4 + 5, 5)
    fewer = evaluate_folder({"m": model}, PAIRS[:2], ("rgb",), out=out, progress=False)
    assert (len(fewer), model.calls) == (4, 9)
    # What was left out this time is still known the next time.
    whole = evaluate_folder(more, [*PAIRS, memory_pair("e")], ("rgb", "y_full"), out=out, progress=False)
    assert (model.calls, more["n"].calls) == (9, 5)
    pd.testing.assert_frame_equal(whole, both, check_exact=True)


def test_a_scored_file_that_changes_is_noticed(tmp_path):
    folder, out = save_folder(tmp_path / "set"), tmp_path / "scores.csv"
    evaluate_folder({}, folder, out=out, progress=False)
    Image.new("RGB", (26, 20)).save(folder / "input" / "2.png")
    with pytest.raises(LabError, match="other content under the same name: pair 2"):
        evaluate_folder({}, folder, out=out, progress=False)


@pytest.mark.parametrize("cut", [1, 17, 60])
def test_a_broken_last_line_is_dropped_and_made_again(tmp_path, cut):
    out = tmp_path / "scores.csv"
    whole = evaluate_folder({"m": Counting()}, PAIRS, out=out, progress=False)
    content = out.read_bytes()
    out.write_bytes(content[:-cut])
    model = Counting()
    again = evaluate_folder({"m": model}, PAIRS, out=out, progress=False)
    pd.testing.assert_frame_equal(whole, again, check_exact=True)
    assert out.read_bytes() == content
    assert model.calls == 1


def test_ctrl_c_keeps_what_is_done(tmp_path):
    out = tmp_path / "scores.csv"
    model = Counting()

    def interrupted(image):
        if model.calls == 2:
            raise KeyboardInterrupt
        return model(image)

    interrupted.__qualname__, interrupted.__module__ = Counting.__qualname__, Counting.__module__
    with pytest.raises(KeyboardInterrupt):
        evaluate_folder({"m": interrupted}, PAIRS, out=out, progress=False)
    assert len(pd.read_csv(out)) == 2 * 2 * 2 + 2  # two images done, and the third's input
    rest = Counting()
    frame = evaluate_folder({"m": rest}, PAIRS, out=out, progress=False)
    assert rest.calls == 2
    alone = evaluate_folder({"m": Counting()}, PAIRS, progress=False)
    pd.testing.assert_frame_equal(frame, alone, check_exact=True)


STALLING = """
import sys, time
from pathlib import Path
from ddsa_lab.evaluation.benchmark import evaluate_folder
folder, out, go = map(Path, sys.argv[1:])
done = []
def stalling(image):
    done.append(1)
    while len(done) > 6 and not go.exists():
        time.sleep(0.01)
    return image * 0.9
evaluate_folder({"stalling": stalling}, folder, ("rgb",), out=out, progress=False)
"""


def test_a_killed_evaluation_goes_on_where_it_stopped(tmp_path):
    folder, out = save_folder(tmp_path / "set", [str(n) for n in range(10)]), tmp_path / "scores.csv"
    command = [sys.executable, "-c", STALLING, str(folder), str(out), str(tmp_path / "go")]
    with subprocess.Popen(command) as process:
        try:
            while process.poll() is None and (not out.exists() or out.read_bytes().count(b"\n") < 14):
                time.sleep(0.01)
            with pytest.raises(LabError, match="being written by another"):
                evaluate_folder({"stalling": Counting()}, folder, ("rgb",), out=out, progress=False)
        finally:
            process.kill()
    kept = out.read_bytes()
    assert kept.count(b"\n") == 1 + 6 * 2 + 1  # header, six images, the seventh's input
    (tmp_path / "go").touch()
    subprocess.run(command, check=True, timeout=120)
    assert out.read_bytes().startswith(kept)
    rows = pd.read_csv(out)
    assert len(rows) == 20
    assert not rows.duplicated(["image", "model", "protocol"]).any()


def test_scores_made_otherwise_are_refused_with_the_difference(tmp_path):
    out = tmp_path / "scores.csv"
    evaluate_folder({"net": network(0), "f": Counting()}, PAIRS, ("rgb",), out=out, progress=False)
    content = out.read_bytes()

    def refused(sentence, models=None, pairs=PAIRS, **arguments):
        with pytest.raises(LabError, match=sentence):
            evaluate_folder(
                models or {"net": network(0)}, pairs, ("rgb",), out=out, progress=False, **arguments
            )
        assert out.read_bytes() == content

    refused("crop was 'whole' and is now '480x320'", crop="480x320")
    refused("tile was 0 and is now 64", tile=64)
    refused("other content under the same name: model net", {"net": network(1)})
    changed = network(0)
    next(iter(changed.attention_layers().values())).weights.keep = 0.3
    refused("model net", {"net": changed})
    refused("pair b", pairs=[PAIRS[0], MemoryPair("b", PAIRS[1].rainy, PAIRS[0].clean)])
    refused("other content .*model f", {"f": torch.relu})
    # Nothing of it depends on what is not scored: other models and images are only added.
    evaluate_folder({"new": torch.relu}, [memory_pair("z")], ("rgb",), out=out, progress=False)
    assert out.read_bytes().startswith(content)


def test_foreign_and_damaged_files_are_refused_and_kept(tmp_path):
    out = tmp_path / "scores.csv"
    settings = tmp_path / "scores.settings.json"

    def refused(sentence):
        before = out.read_bytes()
        with pytest.raises(LabError, match=sentence):
            evaluate_folder({"m": Counting()}, PAIRS, out=out, progress=False)
        assert out.read_bytes() == before

    out.write_text("name,score\nx,1\n")
    refused("not a table of scores: its first line is 'name,score'")
    out.write_text("image,model,protocol,psnr,ssim\na,m,rgb,30.0,0.9\n")
    refused("settings.json, .*missing or damaged")
    settings.write_text("{")
    refused("settings.json, .*missing or damaged")
    out.unlink()
    evaluate_folder({"m": Counting()}, PAIRS, out=out, progress=False)
    assert json.loads(settings.read_text())["crop"] == "whole"
    lines = out.read_text().splitlines(keepends=True)
    out.write_text("".join([*lines[:3], "a,m,rgb,3x,0.9\n", *lines[3:]]))
    refused("damaged in row 4")
    with pytest.raises(LabError, match="cannot write"):
        evaluate_folder({"m": Counting()}, PAIRS, out=tmp_path, progress=False)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full to stand for a full disk")
def test_a_full_disk_is_one_sentence_and_loses_nothing(tmp_path, monkeypatch):
    out = tmp_path / "scores.csv"
    evaluate_folder({"m": Counting()}, PAIRS[:2], out=out, progress=False)
    content = out.read_bytes()
    full, real = os.open("/dev/full", os.O_WRONLY), os.write
    monkeypatch.setattr("ddsa_lab.evaluation.ledger.os.write", lambda _file, data: real(full, data))
    with pytest.raises(LabError, match="No space left on device; the scores before are kept"):
        evaluate_folder({"m": Counting()}, PAIRS, out=out, progress=False)
    monkeypatch.undo()
    os.close(full)
    assert out.read_bytes() == content


def test_bad_pairs_are_listed_and_do_not_stop_the_rest(tmp_path, capsys):
    folder = save_folder(tmp_path / "set", ("1", "2", "3", "4"))
    (folder / "input" / "2.png").write_bytes(b"not an image")
    Image.new("RGB", (5, 7)).save(folder / "target" / "3.png")

    def fragile(image):
        return image * math.nan if float(image.mean()) > 0.553 else image

    frame = evaluate_folder({"m": fragile}, folder, ("rgb",), progress=True, out=tmp_path / "scores.csv")
    assert set(frame["image"]) == {"1", "4"}
    failed = {(image, model): reason for image, model, reason in frame.attrs["failed"]}
    assert {("2", ""), ("3", "")} <= set(failed)
    assert "2.png" in failed["2", ""]
    assert "26x20" in failed["3", ""]
    told = capsys.readouterr().err
    assert "pairs could not be scored in full:" in told
    # Once mended, only what is missing is scored.
    save_folder(folder, ("2", "3"))
    frame = evaluate_folder({"m": fragile}, folder, ("rgb",), progress=False, out=tmp_path / "scores.csv")
    assert set(frame["image"]) == {"1", "2", "3", "4"}


def test_a_model_that_fails_on_one_image_is_left_out_there_only():
    def fragile(image):
        return image[:, 1:] if torch.equal(image, PAIRS[1].rainy) else image

    frame = evaluate_folder({"m": fragile, "n": Counting()}, PAIRS, ("rgb",), progress=False)
    assert [(image, model) for image, model, _ in frame.attrs["failed"]] == [("b", "m")]
    assert len(frame) == 4 * 3 - 1
    means = summary(frame)
    assert list(means["images"]) == [3, 3, 3]  # means over the same images
    without_b = frame[(frame["image"] != "b") & (frame["model"] == "n")]
    assert means.set_index("model")["psnr"]["n"] == pytest.approx(without_b["psnr"].mean())


def test_nothing_scored_is_an_error():
    with pytest.raises(LabError, match="none of 1 pairs could be scored; the first: restored has shape"):
        evaluate_folder({}, [MemoryPair("x", torch.zeros(3, 4, 4), torch.zeros(3, 4, 5))], progress=False)


def test_crop_is_top_left_and_follows_the_orientation():
    seen = []

    def watching(image):
        seen.append(tuple(image.shape))
        return image

    pairs = [memory_pair("wide", 321, 481), memory_pair("tall", 481, 321), memory_pair("small", 30, 40)]
    cropped = evaluate_folder({"m": watching}, pairs, ("rgb",), crop="480x320", progress=False)
    assert seen == [(3, 320, 480), (3, 480, 320), (3, 30, 40)]
    wide = cropped.query("image == 'wide' and model == 'input'").iloc[0]
    assert wide["psnr"] == score(pairs[0].rainy[:, :320, :480], pairs[0].clean[:, :320, :480], "rgb")["psnr"]
    whole = evaluate_folder({}, pairs, ("rgb",), crop="whole", progress=False)
    assert whole["psnr"][0] == score(pairs[0].rainy, pairs[0].clean, "rgb")["psnr"] != wide["psnr"]


def test_networks_run_in_eval_mode_and_are_left_as_they_were():
    training = network().train()
    buffers = {name: value.clone() for name, value in training.named_buffers()}
    frame = evaluate_folder({"net": training}, PAIRS, ("rgb",), progress=False)
    assert training.training
    assert all(torch.equal(value, buffers[name]) for name, value in training.named_buffers())
    expected = evaluate_folder({"net": network()}, PAIRS, ("rgb",), progress=False)
    pd.testing.assert_frame_equal(frame, expected, check_exact=True)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"models": {"input": torch.relu}}, "named 'input'"),
        ({"protocols": ("y_unit8",)}, "did you mean 'y_uint8'"),
        ({"protocols": ()}, "no protocol"),
        ({"protocols": ("rgb", "rgb")}, "'rgb' is given twice"),
        ({"pairs": []}, "no pair"),
        ({"pairs": [PAIRS[0], PAIRS[0]]}, "'a' is given twice"),
        ({"crop": "480"}, "crop is '480'"),
        ({"crop": "0x320"}, "crop is '0x320'"),
    ],
)
def test_wrong_arguments_are_one_sentence(arguments, sentence):
    with pytest.raises(LabError, match=sentence):
        evaluate_folder(**{"models": {}, "pairs": PAIRS, "progress": False, **arguments})


def test_names_with_commas_quotes_and_other_letters_come_back(tmp_path):
    names = ['a,b "c"', "дождь 雨", "line\nbreak", "d"]
    pairs = [memory_pair(name) for name in names]
    out = tmp_path / "my scores.csv"
    for _ in range(2):
        frame = evaluate_folder({'x, "y"': torch.relu}, pairs, ("rgb",), out=out, progress=False)
        assert list(frame["image"].unique()) == names
    assert len(pd.read_csv(out)) == 8


def test_summary_means_and_gain():
    frame = evaluate_folder({"m": Counting()}, PAIRS, ("rgb", "y_uint8"), progress=False)
    means = summary(frame)
    assert list(zip(means["model"], means["protocol"])) == [
        ("input", "rgb"), ("m", "rgb"), ("input", "y_uint8"), ("m", "y_uint8"),
    ]  # fmt: skip
    for row in means.itertuples():
        part = frame[(frame["model"] == row.model) & (frame["protocol"] == row.protocol)]
        assert row.psnr == pytest.approx(part["psnr"].mean())
        assert row.ssim == pytest.approx(part["ssim"].mean())
        assert row.images == 4
    assert means["gain"][0] == 0
    assert means["gain"][1] == pytest.approx(means["psnr"][1] - means["psnr"][0])


def test_published_scores_stand_beside_ours_under_their_protocol():
    means = pd.DataFrame(
        [("mine", "y_uint8", 100, 38.0, 0.98, 11.0), ("mine", "rgb", 100, 30.0, 0.9, 5.0)],
        columns=["model", "protocol", "images", "psnr", "ssim", "gain"],
    )
    table = beside_published(means, "Rain100L")
    assert list(table["method"]) == ["untouched input", "PReNet", "mine", "Restormer, trained on Rain13K"]
    assert table["source"][2] == "measured here, y_uint8, 100 images"
    assert all(table["source"].str.len() > 5)
    with pytest.raises(LabError, match="under y_double"):
        beside_published(means, "DID")
    with pytest.raises(LabError, match="did you mean 'Rain100L'"):
        beside_published(means, "Rain100")


def test_published_table_is_whole():
    assert len(PUBLISHED) == 6 * 5 + 6
    spot = {p.method: (p.psnr, p.ssim) for p in published("SPA")}
    assert spot["DRSformer"] == (48.54, 0.9924)
    assert {p.protocol for p in published("DDN")} == {"y_double"}
    assert not any("DDSA" in p.method and "not DDSA" not in p.method for p in PUBLISHED)


def test_strips_show_worst_and_best(tmp_path):
    models = {"dark/er": Counting(), "net": network()}
    frame = evaluate_folder(models, PAIRS, ("rgb",), progress=False)
    paths = save_strips(frame, models, PAIRS, tmp_path / "strips", protocol="rgb", count=1)
    ranked = frame[(frame["model"] == "dark/er")].sort_values("psnr")["image"].tolist()
    names = [path.name for path in paths]
    assert names[:2] == [f"dark_er-worst-1-{ranked[0]}.png", f"dark_er-best-1-{ranked[-1]}.png"]
    assert len(names) == 4 == len(list((tmp_path / "strips").iterdir()))
    every = save_strips(frame, models, PAIRS, tmp_path / "all", protocol="rgb", count=3)
    assert len(every) == 2 * 4  # four images: three worst, one best, none twice
    with pytest.raises(LabError, match="unknown protocol 'y_uint8'"):
        save_strips(frame, models, PAIRS, tmp_path, protocol="y_uint8")


def test_a_strip_holds_the_pixels_of_its_images():
    images = [smooth(50, 220, seed) for seed in range(3)]
    strip = np.asarray(draw_strip(images, ["rainy, 20.00 dB", "x" * 300, "clean"], "name"))
    height = strip.shape[0] - 50
    top = height // 2
    for number, image in enumerate(images):
        left = 8 + number * 228
        pixels = (image.permute(1, 2, 0) * 255).round().to(torch.uint8).numpy()
        assert (strip[top : top + 50, left : left + 220] == pixels).all()
        assert strip[: top - 2, left : left + 220].min() < 128  # a label above
        assert (strip[:top, left - 8 : left] == 255).all()  # and none of it beside
    assert draw_strip([smooth(9, 7, 0)] * 2, ["a", "b"], "c").width > 400
    with pytest.raises(LabError, match="one size"):
        draw_strip([images[0], images[0][:, 1:]], ["a", "b"], "c")


def test_rain100l_input_has_the_published_psnr(shared_data):
    scores = []
    for pair in benchmark.find_pairs(shared_data / "Rain100L" / "test"):
        rainy, clean = pair.load()
        scores.append([psnr(rainy, clean, protocol) for protocol in ("y_uint8", "rgb")])
    assert np.mean(scores, axis=0) == pytest.approx([26.90, 25.52], abs=0.005)


@pytest.mark.slow
def test_rain100l_input_evaluates_as_published(shared_data):
    means = summary(evaluate_folder({}, shared_data / "Rain100L" / "test", progress=False))
    assert means["images"].tolist() == [100, 100]
    assert means["psnr"].tolist() == pytest.approx([26.90, 25.52], abs=0.005)
