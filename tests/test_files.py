"""Folders of photos through a network: where results go, what is kept, what cannot go wrong."""

import errno
import io
import multiprocessing
import random
import re
import resource
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ddsa_lab.data.images import Photo, read_photo, save_image
from ddsa_lab.errors import LabError
from ddsa_lab.model import files
from ddsa_lab.model.checkpoints import load, save
from ddsa_lab.model.files import derain_photos, make_plan
from ddsa_lab.model.network import DerainTransformer, NetworkConfig
from ddsa_lab.model.restore import derain

CONFIG = NetworkConfig(width=8, blocks=(1,), heads=(1,), refinement=0, ffn_factor=1.0)


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "net.safetensors"
    save(DerainTransformer(CONFIG), path)
    return path


def picture(path, height=12, width=17, seed=0, mode="RGB", **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    channels = {"L": (), "RGB": (3,), "RGBA": (4,)}[mode]
    values = np.random.default_rng(seed).integers(0, 256, (height, width, *channels), dtype=np.uint8)
    Image.fromarray(values).save(path, **options)
    return path


def tree(folder):
    """Every file below, hidden ones included, with its content."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


class TestWhere:
    def test_beside_the_photo(self, tmp_path, weights, capsys):
        photo = picture(tmp_path / "Ein Bild 雨.PNG")
        assert derain_photos([photo], weights=weights) == 0
        result = tmp_path / "Ein Bild 雨_derained.PNG"
        assert result.name in capsys.readouterr().out
        expected = derain(load(weights), read_photo(photo).pixels)
        torch.testing.assert_close(read_photo(result).pixels, expected, atol=0.5 / 255 + 1e-6, rtol=0)

    def test_a_folder_keeps_its_structure(self, tmp_path, weights):
        for name in ("a.png", "inner/b.jpg", "inner/deeper/c.webp"):
            picture(tmp_path / "photos" / name)
        (tmp_path / "photos" / "notes.txt").write_text("no photo")
        assert derain_photos([tmp_path / "photos"], weights=weights) == 0
        assert set(tree(tmp_path / "photos_derained")) == {"a.png", "inner/b.jpg", "inner/deeper/c.webp"}
        assert derain_photos([tmp_path / "photos"], tmp_path / "new" / "out", weights=weights) == 0
        assert tree(tmp_path / "new" / "out") == tree(tmp_path / "photos_derained")

    def test_the_current_folder(self, tmp_path, monkeypatch):
        picture(tmp_path / "photos" / "a.png")
        monkeypatch.chdir(tmp_path / "photos")
        assert list(make_plan([Path(".")], None).tasks) == [tmp_path / "photos_derained" / "a.png"]

    def test_a_named_file(self, tmp_path, weights):
        photo = picture(tmp_path / "a.png")
        assert derain_photos([photo], tmp_path / "to.jpg", weights=weights) == 0
        assert Image.open(tmp_path / "to.jpg").format == "JPEG"

    def test_several_folders_stay_apart(self, tmp_path):
        one, two = picture(tmp_path / "one" / "a.png"), picture(tmp_path / "two" / "a.png")
        plan = make_plan([one.parent, two.parent], tmp_path / "out")
        assert plan.tasks == {
            tmp_path / "out" / "one" / "a.png": one,
            tmp_path / "out" / "two" / "a.png": two,
        }

    def test_two_photos_for_one_result(self, tmp_path):
        one, two = picture(tmp_path / "one" / "a.png"), picture(tmp_path / "two" / "a.png")
        plan = make_plan([one, two, one], tmp_path / "out")
        assert list(plan.tasks.values()) == [one]
        ((photo, reason),) = plan.failed
        assert photo == two
        assert "would both be written" in reason

    def test_the_photo_itself_is_never_the_result(self, tmp_path, weights):
        photo = picture(tmp_path / "a.png")
        before = photo.read_bytes()
        assert list(make_plan([tmp_path], tmp_path).tasks) == [tmp_path / "a_derained.png"]
        with pytest.raises(LabError, match="would replace the photo"):
            derain_photos([photo], photo, weights=weights, overwrite=True)
        (tmp_path / "link").symlink_to(tmp_path)
        with pytest.raises(LabError, match="would replace the photo"):
            derain_photos([photo], tmp_path / "link" / "a.png", weights=weights, overwrite=True)
        assert photo.read_bytes() == before

    def test_what_is_only_read_is_written_as_png(self, tmp_path, weights):
        photo = picture(tmp_path / "a.gif", mode="L")
        assert derain_photos([photo], weights=weights) == 0
        assert Image.open(tmp_path / "a_derained.png").format == "PNG"

    @pytest.mark.parametrize("out", ["a.png", "a.gif", "text"])
    def test_wrong_out(self, tmp_path, out):
        picture(tmp_path / "in" / "a.png")
        (tmp_path / "text").write_text("")
        with pytest.raises(LabError, match=r"folder|written"):
            make_plan([tmp_path / "in"], tmp_path / out)


class TestKept:
    def test_nothing_is_overwritten_unless_asked(self, tmp_path, weights, capsys):
        photo = picture(tmp_path / "a.png")
        result = tmp_path / "a_derained.png"
        result.write_text("mine")
        assert derain_photos([photo], weights=weights) == 0
        assert result.read_text() == "mine"
        assert "1 already there and kept (--overwrite replaces them)" in capsys.readouterr().out
        assert derain_photos([photo], weights=weights, overwrite=True) == 0
        assert Image.open(result).size == (17, 12)

    def test_results_of_an_earlier_run_are_no_photos(self, tmp_path, weights, capsys):
        photos = [picture(tmp_path / "p" / name) for name in ("a.png", "b.jpg", "my_derained.png")]
        assert derain_photos(photos, weights=weights) == 0
        first = tree(tmp_path)
        assert "p/my_derained_derained.png" in first  # its name alone makes no photo a result
        everything = sorted((tmp_path / "p").iterdir())
        assert derain_photos(everything, weights=weights) == 0
        assert derain_photos([tmp_path / "p"], tmp_path / "p", weights=weights) == 0
        assert tree(tmp_path) == first
        assert "3 left out as results of an earlier run" in capsys.readouterr().out

    def test_an_output_folder_inside_the_input(self, tmp_path, weights):
        picture(tmp_path / "p" / "a.png")
        for _ in range(2):
            assert derain_photos([tmp_path / "p"], tmp_path / "p" / "done", weights=weights) == 0
        assert set(tree(tmp_path)) == {"p/a.png", "p/done/a.png"}
        picture(tmp_path / "p" / "x" / "a.png")
        picture(tmp_path / "p" / "x_derained" / "a.png")
        assert [path.parent.name for path in make_plan([tmp_path / "p"], None).tasks.values()] == [
            "p",
            "done",
            "x",
        ]

    def test_format_alpha_profile_depth_and_orientation(self, tmp_path, weights, capsys):
        exif = Image.Exif()
        exif[0x0112], exif[0x010F] = 6, "Camera"
        profile = b"\0" * 16 + b"RGB " + b"\0" * 108
        picture(tmp_path / "p" / "turned.jpg", exif=exif, icc_profile=profile)
        picture(tmp_path / "p" / "alpha.png", mode="RGBA")
        picture(tmp_path / "p" / "grey.png", mode="L")
        pixels = torch.rand(3, 9, 9)
        save_image(
            pixels, tmp_path / "p" / "deep.tif", like=Photo(pixels, None, grey=False, bits=16, format="TIFF")
        )
        assert derain_photos([tmp_path / "p"], weights=weights) == 0
        out = tmp_path / "p_derained"
        turned = Image.open(out / "turned.jpg")
        assert (turned.format, turned.size) == ("JPEG", (12, 17))
        assert (turned.getexif().get(0x010F), turned.getexif().get(0x0112)) == ("Camera", None)
        assert turned.info["icc_profile"] == profile
        alpha = [np.asarray(Image.open(f / "alpha.png"))[..., 3] for f in (out, tmp_path / "p")]
        assert (alpha[0] == alpha[1]).all()
        assert Image.open(out / "grey.png").mode == "L"
        assert read_photo(out / "deep.tif").bits == 16
        told = capsys.readouterr().out
        assert re.search(r"turned\.jpg \(turned upright", told)
        assert re.search(r"alpha\.png \(alpha kept", told)

    def test_alpha_that_cannot_be_kept_is_said(self, tmp_path, weights, capsys):
        photo = picture(tmp_path / "a.png", mode="RGBA")
        assert derain_photos([photo], tmp_path / "b.jpg", weights=weights) == 0
        assert "alpha cannot be kept in .jpg" in capsys.readouterr().out


class TestFailures:
    def test_bad_files_are_reported_at_the_end_and_stop_nothing(self, tmp_path, weights, capsys):
        picture(tmp_path / "p" / "a.png")
        (tmp_path / "p" / "b.jpg").write_text("no photo")
        (tmp_path / "p" / "c.png").write_bytes(picture(tmp_path / "p" / "d.png").read_bytes()[:80])
        assert derain_photos([tmp_path / "p", tmp_path / "missing.png"], weights=weights) == 1
        assert set(tree(tmp_path / "p_derained")) == {"a.png", "d.png"}
        told = capsys.readouterr()
        assert "2 derained" in told.out
        assert "3 failed" in told.out
        assert [line.split(": ")[0] for line in told.err.splitlines()] == ["failed"] * 3
        for name in ("b.jpg", "c.png", "missing.png"):
            assert name in told.err

    def test_one_bad_photo_alone_is_an_error(self, tmp_path, weights):
        (tmp_path / "a.png").write_text("no photo")
        with pytest.raises(LabError, match=r"a\.png is not an image"):
            derain_photos([tmp_path / "a.png"], weights=weights)
        with pytest.raises(LabError, match="no image at"):
            derain_photos([tmp_path / "b.png"], weights=weights)

    def test_no_photos(self, tmp_path, weights):
        with pytest.raises(LabError, match="no images in"):
            derain_photos([tmp_path], weights=weights)

    def test_wrong_settings_before_any_work(self, tmp_path, weights):
        photo = picture(tmp_path / "a.png")
        for options in ({"tile": 3}, {"overlap": -1}, {"weights": "no-such"}):
            with pytest.raises(LabError):
                derain_photos([photo], **{"weights": weights, **options})
        assert list(tree(tmp_path)) == ["a.png"]

    def test_interrupted(self, tmp_path, weights, monkeypatch):
        """What was done is kept, nothing else is left, and the same command goes on."""
        for name in "abc":
            picture(tmp_path / "p" / f"{name}.png")
        whole, calls = files.save_image, []

        def interrupted(image, path, like):
            calls.append(path)
            if len(calls) == 2:
                raise KeyboardInterrupt
            whole(image, path, like)

        monkeypatch.setattr(files, "save_image", interrupted)
        with pytest.raises(KeyboardInterrupt):
            derain_photos([tmp_path / "p"], weights=weights)
        assert list(tree(tmp_path / "p_derained")) == ["a.png"]
        assert derain_photos([tmp_path / "p"], weights=weights) == 0
        assert list(tree(tmp_path / "p_derained")) == ["a.png", "b.png", "c.png"]
        assert [path.stem for path in calls] == ["a", "b", "b", "c"]

    def test_full_disk_stops_at_once(self, tmp_path, weights, monkeypatch):
        for name in "abc":
            picture(tmp_path / "p" / f"{name}.png")
        calls = []

        def full(image, path, like):
            calls.append(path)
            try:
                raise OSError(errno.ENOSPC, "No space left on device")
            except OSError as error:
                raise LabError(f"cannot write {path}: {error.strerror}") from error

        monkeypatch.setattr(files, "save_image", full)
        with pytest.raises(LabError, match="No space left"):
            derain_photos([tmp_path / "p"], weights=weights)
        assert len(calls) == 1

    @pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp", ".tif", ".bmp"])
    def test_a_write_that_ends_short_is_noticed(self, tmp_path, suffix):
        """The system writes what fits below the limit, and only the next write fails, as on a full disk."""
        path, image = tmp_path / f"a{suffix}", torch.rand(3, 64, 64)
        save_image(image, path)
        size = path.stat().st_size
        path.unlink()
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        for limit in (size - 1, size // 2, 10):
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limits[1]))
            try:
                with pytest.raises(LabError, match="cannot write"):
                    save_image(image, path)
            finally:
                resource.setrlimit(resource.RLIMIT_FSIZE, limits)
            assert not tree(tmp_path)

    def test_an_output_folder_that_cannot_be_made(self, tmp_path, weights):
        photo = picture(tmp_path / "a.png")
        (tmp_path / "file.txt").write_text("")
        for out in (tmp_path / "file.txt" / "below", tmp_path / "file.txt"):
            with pytest.raises(LabError, match=r"cannot write|is a file"):
                derain_photos([photo], out, weights=weights)


class TestTogether:
    def test_two_runs_on_one_folder_share_the_work(self, tmp_path, weights, monkeypatch):
        for i in range(8):
            picture(tmp_path / "p" / f"{i}.png", seed=i)
        done = []

        def counted(model, image, *rest, **options):
            done.append(float(image.sum()))
            return derain(model, image, *rest, **options)

        monkeypatch.setattr(files, "derain", counted)
        with ThreadPoolExecutor(2) as pool:
            runs = [pool.submit(derain_photos, [tmp_path / "p"], weights=weights) for _ in range(2)]
            assert [run.result() for run in runs] == [0, 0]
        assert set(tree(tmp_path / "p_derained")) == {f"{i}.png" for i in range(8)}
        assert len(done) == len(set(done)) == 8

    def test_a_photo_that_another_process_has_claimed_is_left_to_it(self, tmp_path, weights):
        picture(tmp_path / "p" / "a.png")
        picture(tmp_path / "p" / "b.png")
        (tmp_path / "p_derained").mkdir()
        with files._claimed(tmp_path / "p_derained" / "a.png") as mine:
            assert mine
            assert derain_photos([tmp_path / "p"], weights=weights) == 0
            assert not (tmp_path / "p_derained" / "a.png").exists()
        assert derain_photos([tmp_path / "p"], weights=weights) == 0
        assert list(tree(tmp_path / "p_derained")) == ["a.png", "b.png"]

    def test_a_claim_left_by_a_killed_process_stops_nobody(self, tmp_path, weights):
        photo = picture(tmp_path / "a.png")
        (tmp_path / ".a_derained.png.claim").touch()
        assert derain_photos([photo], weights=weights) == 0
        assert list(tree(tmp_path)) == ["a.png", "a_derained.png"]


@pytest.mark.parametrize("kills", [3, pytest.param(30, marks=pytest.mark.slow)])
def test_killed_at_random_moments_no_result_is_partial(tmp_path, weights, kills):
    count, chance = 3 * kills, random.Random(1)
    for i in range(count):
        picture(tmp_path / "p" / f"{i}.png", 300, 400, seed=i)
    assert derain_photos([tmp_path / "p"], tmp_path / "unbroken", weights=weights) == 0
    whole = tree(tmp_path / "unbroken")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["ddsa_lab.model.files"])
    broken_off = 0
    for _ in range(kills):
        before = len(list((tmp_path / "out").glob("[0-9]*.png")))
        child = context.Process(
            target=derain_photos, args=([tmp_path / "p"], tmp_path / "out"), kwargs={"weights": weights}
        )
        child.start()
        while child.is_alive() and len(list((tmp_path / "out").glob("[0-9]*.png"))) == before:
            time.sleep(0.001)
        time.sleep(chance.random() * 0.05)
        broken_off += child.is_alive()
        child.kill()
        child.join()
        found = {path.name: path.read_bytes() for path in (tmp_path / "out").glob("[0-9]*.png")}
        assert found == {name: whole[name] for name in found}
    assert broken_off > kills / 2
    assert derain_photos([tmp_path / "p"], tmp_path / "out", weights=weights) == 0
    assert {name: data for name, data in tree(tmp_path / "out").items() if name in whole} == whole


def test_names_that_the_terminal_cannot_show(tmp_path, weights, monkeypatch):
    photo = picture(tmp_path / "雨.png")
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="ascii"))
    assert derain_photos([photo], weights=weights) == 0
    sys.stdout.flush()
    assert b"?.png" in raw.getvalue()


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="peak memory is read from /proc")
def test_24_megapixels_within_3_gb(tmp_path):
    y, x = np.ogrid[:4000, :6000]
    photo = np.stack(np.broadcast_arrays((x + y) % 256, (x // 8) % 256, (y // 4) % 256), axis=-1)
    Image.fromarray(photo.astype(np.uint8)).save(tmp_path / "large.jpg")
    save(DerainTransformer(NetworkConfig.preset("tiny")), tmp_path / "tiny.safetensors")
    code = (
        "import re, sys; from ddsa_lab.cli import main\n"
        "code = main(['derain', sys.argv[1], '--weights', sys.argv[2], '--device', 'cpu'])\n"
        "print(code, re.search(r'VmHWM:\\s+(\\d+)', open('/proc/self/status').read())[1])"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "large.jpg"), str(tmp_path / "tiny.safetensors")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    code, peak = done.stdout.splitlines()[-1].split()
    assert code == "0"
    assert int(peak) * 1024 < 3e9
    assert Image.open(tmp_path / "large_derained.jpg").size == (6000, 4000)
