"""Photos in and out: every format, depth, size and orientation comes back as it should, or as one sentence."""

import builtins
import io
import os
import struct
import zlib

import numpy as np
import pytest
import tifffile
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms, ImageOps

from ddsa_lab.data import images
from ddsa_lab.data.images import list_images, load_image, read_photo, save_image, to_uint8
from ddsa_lab.errors import LabError


def noise(*shape, bits=8, seed=0):
    rng = np.random.default_rng(seed)
    return rng.integers(0, 1 << bits, shape, dtype=np.uint8 if bits == 8 else np.uint16)


def smooth(height=48, width=64):
    y, x = np.mgrid[:height, :width]
    return np.stack([x * 255 // width, y * 255 // height, (x + y) * 255 // (height + width)], -1).astype(
        np.uint8
    )


def as_samples(photo, scale=255):
    return (photo.pixels.permute(1, 2, 0).double() * scale).round().numpy()


def png16(path, samples):
    """An independent 16-bit PNG: unfiltered rows, chunks by hand."""
    height, width, channels = samples.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in samples)
    chunks = [
        (b"IHDR", struct.pack(">IIBBBBB", width, height, 16, {1: 0, 2: 4, 3: 2, 4: 6}[channels], 0, 0, 0))
    ]
    chunks += [(b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    data = b"\x89PNG\r\n\x1a\n"
    for kind, body in chunks:
        data += struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".tif", ".tiff"])
@pytest.mark.parametrize("size", [(1, 1), (1, 7), (5, 1), (33, 47)])
def test_lossless_formats_return_what_was_written(tmp_path, suffix, size):
    image = torch.from_numpy(noise(*size, 3)).permute(2, 0, 1) / 255
    path = tmp_path / f"wet day, 雨の日 ñ{suffix}"
    save_image(image, path)
    torch.testing.assert_close(load_image(path), image.float(), rtol=0, atol=0)


@settings(max_examples=40, deadline=None)
@given(height=st.integers(1, 40), width=st.integers(1, 40), channels=st.integers(1, 4), bits=st.sampled_from([8, 16]),
       suffix=st.sampled_from([".png", ".tif"]))  # fmt: skip
def test_read_then_save_keeps_every_sample(tmp_path_factory, height, width, channels, bits, suffix):
    folder = tmp_path_factory.mktemp("keep")
    samples = noise(height, width, channels, bits=bits, seed=height * width)
    source = folder / "source.png"
    if bits == 16:
        png16(source, samples)
    else:
        Image.fromarray(samples[..., 0] if channels == 1 else samples).save(source)
    photo = read_photo(source)
    assert (photo.bits, photo.grey, photo.alpha is None) == (bits, channels < 3, channels % 2 == 1)
    save_image(photo.pixels, folder / f"saved{suffix}", like=photo)
    again = read_photo(folder / f"saved{suffix}")
    widened = bits == 16 and channels == 2 and suffix == ".tif"  # no reader knows 16-bit grey TIFF with alpha
    assert (again.bits, again.grey) == (bits, channels < 3 and not widened)
    scale = 255 if bits == 8 else 65535
    np.testing.assert_array_equal(as_samples(again, scale)[..., 0], samples[..., 0])
    if channels >= 3:
        np.testing.assert_array_equal(as_samples(again, scale), samples[..., :3])
    if channels % 2 == 0:
        np.testing.assert_array_equal((again.alpha[0].double() * scale).round().numpy(), samples[..., -1])


@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "CMYK", "P", "1", "LA"])
def test_colour_modes_agree_with_pillow(tmp_path, mode):
    source = Image.fromarray(smooth()).convert(mode)
    path = tmp_path / ("a.tif" if mode == "CMYK" else "a.png")
    source.save(path)
    photo = read_photo(path)
    np.testing.assert_array_equal(as_samples(photo), np.asarray(source.convert("RGB")))
    assert photo.grey == (mode in ("L", "1", "LA"))
    assert any("palette" in note for note in photo.notes) == (mode == "P")
    assert any("CMYK" in note for note in photo.notes) == (mode == "CMYK")


def test_palette_with_transparency_has_alpha(tmp_path):
    image = Image.fromarray(smooth()).quantize(8)
    image.save(tmp_path / "a.png", transparency=3)
    photo = read_photo(tmp_path / "a.png")
    np.testing.assert_array_equal(photo.alpha[0].numpy(), (np.asarray(image) != 3).astype(np.float32))


def test_cmyk_jpeg_uses_its_profile_or_the_plain_conversion(tmp_path):
    source = Image.fromarray(smooth()).convert("CMYK")
    source.save(tmp_path / "a.jpg", quality=95)
    photo = read_photo(tmp_path / "a.jpg")
    assert photo.format == "JPEG" and photo.icc is None
    assert np.abs(as_samples(photo) - smooth()).mean() < 4


@pytest.mark.parametrize(
    "options",
    [{}, {"byteorder": ">"}, {"compression": "zlib"}, {"compression": "zlib", "predictor": True}, {"tile": (16, 16)},
     {"planarconfig": "separate"}, {"planarconfig": "separate", "compression": "zlib"},
     {"byteorder": ">", "compression": "zlib", "rowsperstrip": 3}],
    ids=str,
)  # fmt: skip
@pytest.mark.parametrize("channels", [3, 4])
def test_sixteen_bit_tiff_at_full_depth(tmp_path, options, channels):
    samples = noise(19, 33, channels, bits=16)
    stored = np.moveaxis(samples, -1, 0) if "planarconfig" in options else samples
    extra = ["unassalpha"] if channels == 4 else None
    tifffile.imwrite(tmp_path / "a.tif", stored, photometric="rgb", extrasamples=extra, **options)
    photo = read_photo(tmp_path / "a.tif")
    assert photo.bits == 16 and photo.notes == ()
    np.testing.assert_array_equal(as_samples(photo, 65535), samples[..., :3])


def test_sixteen_bit_grey_tiff_and_lzw(tmp_path):
    samples = noise(9, 11, bits=16)
    Image.fromarray(samples).save(tmp_path / "grey.tif", compression="tiff_lzw")
    photo = read_photo(tmp_path / "grey.tif")
    assert photo.grey and photo.bits == 16
    np.testing.assert_array_equal(as_samples(photo, 65535)[..., 1], samples)


def test_sixteen_bits_become_eight_where_the_format_cannot(tmp_path):
    photo = read_photo(png16(tmp_path / "a.png", noise(8, 8, 3, bits=16)))
    save_image(photo.pixels, tmp_path / "b.webp", like=photo)
    assert read_photo(tmp_path / "b.webp").bits == 8


def test_float_tiff_is_refused_in_words(tmp_path):
    Image.fromarray(np.ones((4, 4), np.float32)).save(tmp_path / "f.tif")
    with pytest.raises(LabError, match=r"f\.tif has 32 bits a sample"):
        read_photo(tmp_path / "f.tif")


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp", ".tif"])
def test_orientation_is_followed_and_dropped_and_other_exif_kept(tmp_path, orientation, suffix):
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = orientation, "Maker"
    Image.fromarray(smooth(20, 30)).save(tmp_path / f"a{suffix}", exif=exif)
    with Image.open(tmp_path / f"a{suffix}") as image:
        expected = np.asarray(ImageOps.exif_transpose(image))
    photo = read_photo(tmp_path / f"a{suffix}")
    np.testing.assert_array_equal(as_samples(photo), expected)
    assert any("upright" in note for note in photo.notes) == (orientation > 1)
    for target in ("b.png", "b.jpg", "b.webp", "b.tif"):
        save_image(photo.pixels, tmp_path / target, like=photo)
        with Image.open(tmp_path / target) as image:
            kept = image.getexif()
            assert kept.get(0x0112, 1) == 1 and kept[0x010F] == "Maker", target
            assert image.size == (expected.shape[1], expected.shape[0])


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp", ".tif"])
@pytest.mark.parametrize("bits", [8, 16])
def test_colour_profile_is_kept(tmp_path, suffix, bits):
    icc = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    photo = images.Photo(torch.rand(3, 8, 8), None, False, bits, "PNG", icc=icc)
    save_image(photo.pixels, tmp_path / f"a{suffix}", like=photo)
    assert read_photo(tmp_path / f"a{suffix}").icc == icc


def test_a_grey_profile_does_not_end_on_colour_samples(tmp_path):
    icc = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    icc[16:20] = b"GRAY"
    photo = images.Photo(torch.rand(3, 8, 8), None, False, 8, "PNG", icc=bytes(icc))
    save_image(photo.pixels, tmp_path / "a.png", like=photo)
    assert read_photo(tmp_path / "a.png").icc is None


def test_exif_and_profile_survive_a_sixteen_bit_png(tmp_path):
    exif = Image.Exif()
    exif[0x010F] = "Maker"
    photo = images.Photo(torch.rand(3, 8, 8), None, False, 16, "PNG", exif=exif.tobytes())
    save_image(photo.pixels, tmp_path / "a.png", like=photo)
    with Image.open(tmp_path / "a.png") as image:
        assert image.getexif()[0x010F] == "Maker"


def test_alpha_is_kept_where_the_format_can(tmp_path):
    rgba = noise(12, 13, 4)
    Image.fromarray(rgba).save(tmp_path / "a.png")
    photo = read_photo(tmp_path / "a.png")
    for suffix in (".png", ".tif", ".webp"):
        save_image(photo.pixels, tmp_path / f"b{suffix}", like=photo)
        again = read_photo(tmp_path / f"b{suffix}")
        torch.testing.assert_close(again.alpha, photo.alpha, rtol=0, atol=0)
    save_image(photo.pixels, tmp_path / "b.jpg", like=photo)
    assert read_photo(tmp_path / "b.jpg").alpha is None


@pytest.mark.parametrize("suffix", [".gif", ".webp", ".png", ".tif"])
def test_first_frame_of_several_is_read_and_said(tmp_path, suffix):
    frames = [Image.fromarray(np.full((8, 8, 3), value, np.uint8)) for value in (10, 200, 90)]
    lossless = {"lossless": True} if suffix == ".webp" else {}
    frames[0].save(tmp_path / f"a{suffix}", save_all=True, append_images=frames[1:], **lossless)
    photo = read_photo(tmp_path / f"a{suffix}")
    assert any("first frame" in note for note in photo.notes)
    assert (as_samples(photo) == 10).all()


def test_jpeg_is_written_at_quality_95_without_subsampling(tmp_path):
    save_image(torch.from_numpy(smooth()).permute(2, 0, 1) / 255, tmp_path / "a.jpg")
    with Image.open(tmp_path / "a.jpg") as image:
        assert [layer[1:3] for layer in image.layer] == [(1, 1)] * 3
        own = {k: list(v) for k, v in image.quantization.items()}
    buffer = io.BytesIO()
    Image.fromarray(smooth()).save(buffer, "JPEG", quality=95, subsampling=0)
    assert own == {k: list(v) for k, v in Image.open(buffer).quantization.items()}


def test_a_size_bomb_is_refused_by_its_header(tmp_path):
    bomb = bytearray(png16(tmp_path / "bomb.png", noise(2, 2, 3, bits=16)).read_bytes())
    bomb[16:24] = struct.pack(">II", 60000, 60000)
    bomb[29:33] = struct.pack(">I", zlib.crc32(bomb[12:29]))
    (tmp_path / "bomb.png").write_bytes(bomb)
    with pytest.raises(LabError, match=r"bomb\.png declares 60000x60000 pixels \(3600 megapixels\)"):
        read_photo(tmp_path / "bomb.png")
    save_image(torch.rand(3, 40, 50), tmp_path / "fine.png")
    with pytest.raises(LabError, match=r"more than the 0\.001 accepted"):
        read_photo(tmp_path / "fine.png", megapixels=0.001)
    assert Image.MAX_IMAGE_PIXELS is not None


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp", ".tif", ".bmp", ".gif"])
@pytest.mark.parametrize("bits", [8, 16])
def test_a_photo_larger_than_pillows_own_limit_opens(tmp_path, monkeypatch, suffix, bits):
    photo = images.Photo(torch.rand(3, 40, 50), None, False, bits, "PNG")
    if suffix == ".gif":
        Image.fromarray(smooth(40, 50)).save(tmp_path / "a.gif")
    else:
        save_image(photo.pixels, tmp_path / f"a{suffix}", like=photo)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    assert load_image(tmp_path / f"a{suffix}").shape == (3, 40, 50)


@pytest.mark.parametrize("content, sentence", [
    (None, "no image at"), (b"", "is empty"), (b"hello", "is not an image that can be read"),
    (b"\x89PNG\r\n\x1a\n" + b"\0" * 40, "is "),
])  # fmt: skip
def test_bad_files_are_named_in_one_sentence(tmp_path, content, sentence):
    path = tmp_path / "bad one.png"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(LabError, match=r"bad one\.png") as error:
        read_photo(path)
    assert sentence in str(error.value) and "\n" not in str(error.value)


def test_folders_pipes_and_locked_files_are_named(tmp_path):
    with pytest.raises(LabError, match="is a folder"):
        read_photo(tmp_path)
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(LabError, match="pipe or device"):
        read_photo(tmp_path / "pipe.png")


def test_heic_without_its_reader_says_what_to_install(tmp_path, monkeypatch):
    (tmp_path / "a.heic").write_bytes(b"\0\0\0\x18ftypheic" + b"\0" * 40)
    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name == "pillow_heif":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(LabError, match="pip install pillow-heif"):
        read_photo(tmp_path / "a.heic")
    with pytest.raises(LabError, match="pip install pillow-heif"):
        save_image(torch.rand(3, 8, 8), tmp_path / "b.heic")
    assert not list(tmp_path.glob("*b*"))


def test_heic_round_trip(tmp_path):
    pytest.importorskip("pillow_heif", reason="the optional HEIC reader is not installed")
    image = torch.from_numpy(smooth()).permute(2, 0, 1) / 255
    save_image(image, tmp_path / "a.heic")
    photo = read_photo(tmp_path / "a.heic")
    assert photo.format == "HEIF" and (photo.pixels - image).abs().mean() < 0.02


@pytest.mark.parametrize("image, sentence", [
    (torch.rand(4, 8, 8), r"shape \(3, H, W\)"), (torch.rand(1, 3, 8, 8), r"shape \(3, H, W\)"),
    (torch.rand(3, 0, 8), r"shape \(3, H, W\)"), (torch.full((3, 8, 8), torch.nan), "no numbers"),
])  # fmt: skip
def test_images_that_cannot_be_saved(tmp_path, image, sentence):
    with pytest.raises(LabError, match=sentence):
        save_image(image, tmp_path / "a.png")
    assert not list(tmp_path.iterdir())


def test_unknown_suffix_sides_and_sizes(tmp_path):
    with pytest.raises(LabError, match=r"\.png"):
        save_image(torch.rand(3, 8, 8), tmp_path / "a.pgn")
    with pytest.raises(LabError, match="WEBP holds at most 16383"):
        save_image(torch.zeros(3, 1, 16384), tmp_path / "a.webp")
    alpha = images.Photo(torch.rand(3, 4, 4), torch.rand(1, 4, 4), False, 8, "PNG")
    with pytest.raises(LabError, match="alpha of its source 4x4"):
        save_image(torch.rand(3, 8, 8), tmp_path / "a.png", like=alpha)


def test_a_failed_save_leaves_the_old_file(tmp_path, monkeypatch):
    save_image(torch.zeros(3, 8, 8), tmp_path / "a.png")
    before = (tmp_path / "a.png").read_bytes()

    def full(*args):
        args[1].write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(images, "_encode", full)
    with pytest.raises(LabError, match="No space left"):
        save_image(torch.ones(3, 8, 8), tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes() == before and len(list(tmp_path.iterdir())) == 1


def test_listing_is_natural_and_skips_what_is_no_image(tmp_path):
    for name in (
        "img10.png",
        "img2.PNG",
        "img1.jpg",
        "notes.txt",
        ".hidden.png",
        "sub/b.png",
        "sub/deep/a.tif",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert [path.name for path in list_images(tmp_path)] == ["img1.jpg", "img2.PNG", "img10.png"]
    found = [str(path.relative_to(tmp_path)) for path in list_images(tmp_path, recursive=True)]
    assert sorted(found) == ["img1.jpg", "img10.png", "img2.PNG", "sub/b.png", "sub/deep/a.tif"]
    with pytest.raises(LabError, match="not there"):
        list_images(tmp_path / "missing")
    with pytest.raises(LabError, match="is a file"):
        list_images(tmp_path / "notes.txt")


def test_to_uint8_clamps_and_rounds():
    image = torch.tensor([-0.2, 0.0, 0.4999 / 255, 0.5001 / 255, 1.0, 3.0]).view(1, 1, 6).expand(3, 1, 6)
    assert to_uint8(image)[0, :, 0].tolist() == [0, 0, 0, 1, 255, 255]


@pytest.mark.slow
def test_24_megapixels(tmp_path):
    image = torch.rand(3, 400, 600).repeat(1, 10, 10)
    save_image(image, tmp_path / "large.jpg")
    assert load_image(tmp_path / "large.jpg").shape == (3, 4000, 6000)


def test_a_folder_that_cannot_be_read_is_named(tmp_path, monkeypatch):
    def refuse(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("os.scandir", refuse)
    with pytest.raises(LabError, match="cannot be read: Permission denied"):
        list_images(tmp_path)
