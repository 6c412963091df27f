"""Restoring images of any size: tiles, seams, memory."""

import subprocess
import sys
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from ddsa_lab.errors import LabError
from ddsa_lab.model import restore
from ddsa_lab.model.network import DerainTransformer, NetworkConfig
from ddsa_lab.model.restore import check_tiles, derain, tile_starts

CONFIG = NetworkConfig(width=8, blocks=(1, 1), heads=(1, 2), refinement=0, ffn_factor=2.0)


@pytest.fixture(scope="module")
def model():
    return DerainTransformer(CONFIG).eval()


def image(height, width, seed=0, batch=()):
    return torch.rand(*batch, 3, height, width, generator=torch.Generator().manual_seed(seed))


def smooth(height, width):
    """Waves far longer than a pixel, on which a seam would stand out."""
    y, x = torch.arange(height)[:, None] / 40, torch.arange(width) / 55
    return torch.stack([0.5 + 0.3 * torch.sin(y * (c + 1) + x) * torch.cos(x - c) for c in range(3)])


class Recording(nn.Module):
    """Gives its input back and remembers its size."""

    def __init__(self):
        super().__init__()
        self.sizes = []

    def forward(self, x):
        self.sizes.append(tuple(x.shape))
        return x


class TestTiles:
    @settings(max_examples=80, deadline=None)
    @given(length=st.integers(1, 1500), tile=st.integers(64, 400), data=st.data())
    def test_shares_cover_every_pixel_and_add_up_to_one(self, length, tile, data):
        overlap = data.draw(st.integers(0, tile // 2))
        total = torch.zeros(length, dtype=torch.float64)
        for start, weights in restore._shares(length, tile, overlap):
            assert 0 < len(weights) <= tile
            assert weights.min() > 0
            total[start : start + len(weights)] += weights
        torch.testing.assert_close(total, torch.ones_like(total), atol=1e-12, rtol=0)
        starts = tile_starts(length, tile, overlap)
        assert all(after - before <= tile - overlap for before, after in pairwise(starts))

    def test_three_tiles_that_meet(self):
        """481 pixels by tiles of 256: the first and the third overlap too, and must not be counted double."""
        starts = tile_starts(481, 256, 32)
        assert starts[2] < starts[0] + 256
        assert float(derain(nn.Identity(), torch.full((3, 481, 70), 0.5), 256).max()) == pytest.approx(
            0.5, abs=1e-6
        )

    @pytest.mark.parametrize("size", [(1, 1), (1, 500), (500, 1), (64, 65), (97, 131), (98, 98), (200, 161)])
    @pytest.mark.parametrize("overlap", [0, 16, 32])
    def test_a_network_that_changes_nothing_gives_the_image_back(self, size, overlap):
        x = image(*size)
        torch.testing.assert_close(derain(Recording(), x, tile=64, overlap=overlap), x, atol=1e-6, rtol=0)

    def test_no_tile_is_larger_than_asked(self):
        recorder = Recording()
        derain(recorder, image(150, 200), tile=64, overlap=8)
        assert {size[-2:] for size in recorder.sizes} == {(64, 64)}
        recorder = Recording()
        derain(recorder, image(150, 200), tile=0)
        assert recorder.sizes == [(1, 3, 150, 200)]

    @pytest.mark.parametrize(("tile", "overlap"), [(1, 0), (63, 0), (-64, 0), (64, 33), (64, -1), (None, -1)])
    def test_wrong_tiles(self, tile, overlap):
        with pytest.raises(LabError, match=r"tile|overlap"):
            check_tiles(tile, overlap)


class Shifted(nn.Module):
    """Gives every tile another brightness, as attention over a tile's own pixels may."""

    def forward(self, x):
        return x + 0.3 * (0.5 - x.mean((-2, -1), keepdim=True))


def steps(model, overlap):
    """Mean step from column to column of (tiled - whole): at the borders of tiles, and elsewhere."""
    x = smooth(192, 288)
    change = derain(model, x, tile=96, overlap=overlap) - derain(model, x, tile=0)
    assert float(change.abs().max()) > 1e-5  # tiles do change the result, so there is something to see
    step = (change[..., 1:] - change[..., :-1]).abs().mean((0, 1))
    ends = {b for start in tile_starts(288, 96, overlap) for b in (start, start + 96) if 0 < b < 288}
    border = torch.zeros(len(step), dtype=torch.bool)
    border[[end - 1 for end in ends]] = True
    return step[border], step[~border]


class TestSeams:
    def test_borders_of_tiles_do_not_show(self, model):
        """Neighbouring pixels differ no more where a tile begins or ends than elsewhere."""
        for network in (model, Shifted()):
            across, within = steps(network, overlap=24)
            assert across.max() <= within.max()

    def test_without_overlap_they_show(self):
        across, within = steps(Shifted(), overlap=0)
        assert across.min() > 10 * within.max()

    def test_difference_to_the_whole_image_is_small_and_reported(self, record_property):
        shipped = DerainTransformer(NetworkConfig.preset("tiny")).eval()
        x = smooth(256, 256)
        difference = (derain(shipped, x, tile=128) - derain(shipped, x, tile=0)).abs()
        record_property("tiled against whole, largest", float(difference.max()))
        record_property("tiled against whole, mean", float(difference.mean()))
        print(
            f"tiles of 128 against the whole 256x256: largest {difference.max():.4f}, mean {difference.mean():.5f}"
        )
        assert 0 < difference.mean() < 0.02


class TestImages:
    @settings(max_examples=25, deadline=None)
    @given(height=st.integers(1, 40), width=st.integers(1, 40))
    def test_any_size(self, model, height, width):
        restored = derain(model, image(height, width))
        assert restored.shape == (3, height, width)
        assert restored.min() >= 0
        assert restored.max() <= 1

    @pytest.mark.parametrize("tile", [0, 64])
    def test_a_batch_is_restored_image_by_image(self, model, tile):
        batch = image(70, 90, batch=(3,))
        together = derain(model, batch, tile)
        apart = torch.stack([derain(model, x, tile) for x in batch])
        torch.testing.assert_close(together, apart, atol=1e-5, rtol=0)

    @pytest.mark.parametrize(
        "wrong",
        [
            torch.rand(1, 8, 8),
            torch.rand(8, 8),
            torch.rand(3, 0, 8),
            torch.rand(1, 1, 3, 8, 8),
            torch.rand(0, 3, 8, 8),
        ],
    )
    def test_wrong_shapes(self, model, wrong):
        with pytest.raises(LabError, match="found shape"):
            derain(model, wrong)

    def test_whole_numbers_are_refused(self, model):
        with pytest.raises(LabError, match="divide 8-bit values by 255"):
            derain(model, torch.zeros(3, 8, 8, dtype=torch.uint8))

    def test_the_image_and_the_network_stay_as_they_were(self):
        model = DerainTransformer(CONFIG).train()
        model.head.eval()
        before = {name: value.clone() for name, value in model.state_dict().items()}
        x = image(20, 20) * 3 - 1
        kept = x.clone()
        derain(model, x)
        derain(nn.Identity(), x, tile=0)
        assert torch.equal(x, kept)
        assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
        assert model.training
        assert not model.head.training

    def test_a_result_can_be_used_in_a_graph(self, model):
        restored = derain(model, image(8, 8))
        weight = torch.ones(1, requires_grad=True)
        (restored * weight).sum().backward()
        assert weight.grad is not None

    def test_other_precision(self, model):
        x = image(16, 16)
        double = derain(model, x.double())
        assert double.dtype == torch.float64
        torch.testing.assert_close(double.float(), derain(model, x))


class Full(nn.Module):
    """A network that runs out of memory above a size."""

    def __init__(self, largest, error):
        super().__init__()
        self.largest, self.error = largest, error

    def forward(self, x):
        if max(x.shape[-2:]) > self.largest:
            raise self.error
        return x


class TestMemory:
    @pytest.mark.parametrize(
        "error",
        [
            torch.OutOfMemoryError("CUDA out of memory"),
            MemoryError(),
            RuntimeError("DefaultCPUAllocator: can't allocate memory"),
        ],
    )
    def test_smaller_tiles_where_memory_runs_out(self, error, capsys):
        x = image(300, 310)
        torch.testing.assert_close(derain(Full(80, error), x, tile=0), x)
        told = capsys.readouterr()
        assert told.out == ""
        assert told.err.splitlines()[-1] == "out of memory on cpu: going on with tiles of 77 pixels"

    def test_not_even_the_smallest(self):
        with pytest.raises(LabError, match="even for tiles of 64"):
            derain(Full(10, MemoryError()), image(300, 300), tile=0)

    def test_other_errors_are_not_swallowed(self):
        with pytest.raises(RuntimeError, match="something else"):
            derain(Full(0, RuntimeError("something else")), image(9, 9))

    def test_tile_follows_memory(self, monkeypatch):
        model, cpu = DerainTransformer(NetworkConfig.preset("tiny")), torch.device("cpu")
        sides = [restore.affordable_tile(model, cpu, limit=limit) for limit in (1e6, 1e8, 4e8)]
        assert sides[0] == restore.MIN_TILE < sides[1] < sides[2]
        assert all(side % 64 == 0 for side in sides)
        assert restore.affordable_tile(model, cpu, batch=4, limit=4e8) == sides[1]

    @pytest.mark.skipif(not sys.platform.startswith("linux"), reason="peak memory is read from /proc")
    @pytest.mark.parametrize(
        ("preset", "side", "ffn"), [("tiny", 512, "sefn"), ("small", 320, "sefn"), ("tiny", 384, "msfn")]
    )
    def test_estimate_is_above_the_measured_peak_and_not_far(self, preset, side, ffn):
        code = (
            "import re, torch, ddsa_lab as lab\n"
            "from ddsa_lab.model.restore import bytes_per_pixel\n"
            f"model = lab.DerainTransformer(lab.NetworkConfig.preset({preset!r}, ffn={ffn!r})).eval()\n"
            # getrusage would give the peak of the process that started this one
            "peak = lambda: int(re.search(r'VmHWM:\\s+(\\d+)', open('/proc/self/status').read())[1]) * 1024\n"
            f"lab.derain(model, torch.rand(3, 32, 32)); image = torch.rand(3, {side}, {side}); before = peak()\n"
            "lab.derain(model, image, tile=0)\n"
            f"print((peak() - before) / {side}**2 / bytes_per_pixel(model))"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert 0.5 < float(done.stdout) < 1.0
