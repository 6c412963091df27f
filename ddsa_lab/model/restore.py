"""Using a network on an image of any size: whole where memory allows, else in blended tiles."""

import math
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import psutil
import torch
from torch import Tensor, nn

from ddsa_lab.errors import LabError
from ddsa_lab.model.network import DerainTransformer

MIN_TILE = 64


def derain(
    model: nn.Module, image: Tensor, tile: int | None = None, overlap: int = 32, progress: bool = False
) -> Tensor:
    """Remove rain from an image.

    Row norms of attention run over all pixels, so a tile has another attention matrix than the whole image and
    the results differ slightly; overlapping tiles are blended with linear ramps, so that no seam shows.

    Args:
        model: network; runs where its parameters are, in evaluation mode.
        image: (3, H, W) or (B, 3, H, W) RGB in [0, 1], any H, W >= 1.
        tile: side of the square tiles in pixels, at least 64; 0 never tiles; None chooses from free memory.
        overlap: pixels that neighbouring tiles share, at most half a tile.
        progress: show a bar with the time left when there is more than one tile.

    Returns:
        Tensor of the image's shape, on the image's device, clamped to [0, 1].

    Raises:
        LabError: a wrong shape, tile or overlap, or too little memory for the smallest tiles.
    """
    if image.dim() not in (3, 4) or image.shape[-3] != 3 or 0 in image.shape:
        raise LabError(f"derain takes an image (3, H, W) or (B, 3, H, W), found shape {tuple(image.shape)}")
    if not image.is_floating_point():
        raise LabError(
            f"derain takes floating-point values in [0, 1], found {image.dtype}: divide 8-bit values by 255"
        )
    check_tiles(tile, overlap)
    parameter = next(model.parameters(), image)
    batch = image.detach().unsqueeze(0) if image.dim() == 3 else image.detach()
    tile = affordable_tile(model, parameter.device, len(batch)) if tile is None else tile
    # Not inference_mode, whose tensors nobody could take a gradient through later.
    with torch.no_grad(), _evaluating(model):
        while True:
            try:
                restored = _restore(model, batch, parameter, tile, overlap, progress)
                return restored[0] if image.dim() == 3 else restored
            except (RuntimeError, MemoryError) as error:
                if not _out_of_memory(error):
                    raise
            # Outside of the handler, whose traceback keeps what the failed run has allocated.
            tile = _smaller_tile(tile, batch, parameter.device)


def _restore(
    model: nn.Module, batch: Tensor, parameter: Tensor, tile: int, overlap: int, progress: bool
) -> Tensor:
    if tile == 0 or max(batch.shape[-2:]) <= tile:
        return model(batch.to(parameter)).to(batch).clamp(0, 1)  # not in place: it may be the image itself
    return _by_tiles(model, batch, parameter, tile, min(overlap, tile // 2), progress)


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode, so that no statistics are updated; afterwards as it was."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


def _out_of_memory(error: Exception) -> bool:
    """Whether memory has run out, on a GPU or (where torch raises a plain RuntimeError) on the CPU."""
    known = isinstance(error, torch.OutOfMemoryError | MemoryError)
    return known or "DefaultCPUAllocator" in str(error)


def _smaller_tile(tile: int, batch: Tensor, device: torch.device) -> int:
    """Half the tile, said on stderr.

    Raises:
        LabError: it is the smallest already.
    """
    longest = max(batch.shape[-2:])
    tile = min(tile or longest, longest)
    if tile <= MIN_TILE:
        raise LabError(f"not enough memory on {device} even for tiles of {MIN_TILE} pixels")
    if device.type == "cuda":
        torch.cuda.empty_cache()
    tile = max(MIN_TILE, tile // 2)
    print(f"out of memory on {device}: going on with tiles of {tile} pixels", file=sys.stderr)
    return tile


def check_tiles(tile: int | None, overlap: int) -> None:
    """Refuse tiles that `derain` does not take.

    Raises:
        LabError: a tile below the smallest, or an overlap that is negative or more than half a tile.
    """
    if tile is not None and tile != 0 and tile < MIN_TILE:
        raise LabError(f"tile is {tile}, but tiles must be at least {MIN_TILE} pixels a side (0: no tiles)")
    if overlap < 0 or (tile and overlap > tile // 2):
        most = f"0 to {tile // 2} for tiles of {tile} pixels" if tile else "0 or more"
        raise LabError(f"overlap is {overlap}, but must be {most}")


def _by_tiles(
    model: nn.Module, batch: Tensor, parameter: Tensor, tile: int, overlap: int, progress: bool
) -> Tensor:
    """Run tile after tile, each weighted by a ramp that sums to one with its neighbours'."""
    height, width = batch.shape[-2:]
    rows, columns = _shares(height, tile, overlap), _shares(width, tile, overlap)
    restored = torch.zeros_like(batch)
    places = [(row, column) for row in rows for column in columns]
    if progress:
        from tqdm.auto import tqdm

        places = tqdm(places, desc="tiles", unit="tile", leave=False)
    for (top, down), (left, across) in places:
        part = (..., slice(top, top + len(down)), slice(left, left + len(across)))
        restored[part] += model(batch[part].to(parameter)).to(batch) * (down[:, None] * across).to(batch)
    return restored.clamp_(0, 1)


def tile_starts(length: int, tile: int, overlap: int) -> list[int]:
    """First pixels of evenly spread tiles that cover `length` pixels and share at least `overlap`."""
    if length <= tile:
        return [0]
    count = math.ceil((length - overlap) / (tile - overlap))
    return [round(i * (length - tile) / (count - 1)) for i in range(count)]


def _shares(length: int, tile: int, overlap: int) -> list[tuple[int, Tensor]]:
    """(first pixel, weights) of each tile along one side: flat inside, linear ramps towards its neighbours.

    All tiles' weights add up to 1 at every pixel; where three tiles meet, too.
    """
    starts, position = tile_starts(length, tile, overlap), torch.arange(length, dtype=torch.float64) + 0.5
    ramps = []
    for i, start in enumerate(starts):
        stop = min(start + tile, length)
        ramp = torch.ones(stop - start, dtype=torch.float64)
        if i > 0:
            ramp = ramp.minimum((position[start:stop] - start) / (starts[i - 1] + tile - start))
        if i + 1 < len(starts):
            ramp = ramp.minimum((stop - position[start:stop]) / (stop - starts[i + 1]))
        ramps.append((start, ramp))
    total = torch.zeros(length, dtype=torch.float64)
    for start, ramp in ramps:
        total[start : start + len(ramp)] += ramp
    return [(start, ramp / total[start : start + len(ramp)]) for start, ramp in ramps]


# Maps of hidden channels that live at once in a feed-forward network, measured (tests/test_restore.py).
_LIVE = {"sefn": 5.0, "gdfn": 5.5, "msfn": 11.5}


def bytes_per_pixel(model: nn.Module) -> int:
    """Peak bytes of activations for each full-resolution pixel in inference, an estimate from above.

    In the widest full-resolution block live, at once: the skip and the running map, the norm's output, and q, k, v
    before and after the depth-wise convolution, or the parts of the feed-forward network.
    """
    if not isinstance(model, DerainTransformer):
        return 16_000
    config = model.built_with
    channels = 2 * config.width if config.levels > 1 else config.width
    hidden = int(config.ffn_factor * channels)
    return int(4 * (3 * channels + max(7 * channels, _LIVE[config.ffn] * hidden)) * 1.25)


def affordable_tile(
    model: nn.Module, device: torch.device, batch: int = 1, share: float = 0.5, limit: float = 1.5e9
) -> int:
    """Side of the largest square tile whose activations fit in `share` of the free memory, a multiple of 64.

    On a CPU at most `limit` bytes are used whatever is free: larger tiles gain nothing there.
    """
    if device.type == "cuda":
        free = torch.cuda.mem_get_info(device)[0] * share
    else:
        free = min(psutil.virtual_memory().available * share, limit)
    side = math.isqrt(int(free / batch / bytes_per_pixel(model)))
    return max(MIN_TILE, side // 64 * 64)
