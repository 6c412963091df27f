"""Using a network on an image of any size: whole where memory allows, else in blended tiles."""

import math

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
        model: network in evaluation mode; runs where its parameters are.
        image: (3, H, W) or (B, 3, H, W) RGB in [0, 1], any H, W >= 1.
        tile: side of the square tiles in pixels, at least 64; 0 never tiles; None chooses from free memory.
        overlap: pixels that neighbouring tiles share, fewer than half a tile.
        progress: show a bar with the time left when there is more than one tile.

    Returns:
        Tensor of the image's shape, on the image's device, clamped to [0, 1].

    Raises:
        LabError: a wrong shape, tile or overlap.
    """
    if image.dim() not in (3, 4) or image.shape[-3] != 3 or 0 in image.shape:
        raise LabError(f"derain takes an image (3, H, W) or (B, 3, H, W), found shape {tuple(image.shape)}")
    check_tiles(tile, overlap)
    parameter = next(model.parameters(), image)
    tile = affordable_tile(model, parameter.device) if tile is None else tile
    batch = image.detach().unsqueeze(0) if image.dim() == 3 else image.detach()
    with torch.inference_mode():
        while True:
            try:
                if tile == 0 or max(batch.shape[-2:]) <= tile:
                    restored = model(batch.to(parameter)).to(image).clamp_(0, 1)
                else:
                    restored = _by_tiles(model, batch, parameter, tile, min(overlap, tile // 2 - 1), progress)
                break
            except torch.OutOfMemoryError:
                if tile == MIN_TILE:
                    raise LabError(
                        f"not enough memory on {parameter.device} even for tiles of {MIN_TILE} pixels"
                    ) from None
                torch.cuda.empty_cache()
                tile = max(MIN_TILE, (tile or max(batch.shape[-2:])) // 2)
                print(f"out of memory on {parameter.device}: going on with tiles of {tile} pixels")
    return restored[0] if image.dim() == 3 else restored


def check_tiles(tile: int | None, overlap: int) -> None:
    """Refuse tiles that `derain` does not take.

    Raises:
        LabError: a tile below the smallest, or an overlap that is negative or half a tile and more.
    """
    if tile is not None and tile != 0 and tile < MIN_TILE:
        raise LabError(f"tile is {tile}, but tiles must be at least {MIN_TILE} pixels a side (0: no tiles)")
    if overlap < 0 or (tile and overlap > tile // 2 - 1):
        most = f"0 to {tile // 2 - 1} for tiles of {tile} pixels" if tile else "0 or more"
        raise LabError(f"overlap is {overlap}, but must be {most}")


def _by_tiles(
    model: nn.Module, batch: Tensor, parameter: Tensor, tile: int, overlap: int, progress: bool
) -> Tensor:
    """Run tile after tile, each weighted by a ramp that sums to one with its neighbours'."""
    height, width = batch.shape[-2:]
    rows, columns = tile_starts(height, tile, overlap), tile_starts(width, tile, overlap)
    restored = torch.zeros_like(batch)
    places = [(top, left) for top in rows for left in columns]
    if progress:
        from tqdm.auto import tqdm

        places = tqdm(places, desc="tiles", unit="tile", leave=False)
    for top, left in places:
        bottom, right = min(top + tile, height), min(left + tile, width)
        part = model(batch[..., top:bottom, left:right].to(parameter)).to(batch)
        weight = (
            _ramp(rows, top, bottom, height, tile)[:, None]
            * _ramp(columns, left, right, width, tile)[None, :]
        )
        restored[..., top:bottom, left:right] += part * weight.to(batch)
    return restored.clamp_(0, 1)


def tile_starts(length: int, tile: int, overlap: int) -> list[int]:
    """First pixels of evenly spread tiles that cover `length` pixels and share at least `overlap`."""
    if length <= tile:
        return [0]
    count = math.ceil((length - overlap) / (tile - overlap))
    return [round(i * (length - tile) / (count - 1)) for i in range(count)]


def _ramp(starts: list[int], start: int, stop: int, length: int, tile: int) -> Tensor:
    """This tile's weight along one side: 1 inside, linear where it meets a neighbour; all tiles' sum is 1."""
    position = torch.arange(start, stop) + 0.5
    i = starts.index(start)
    ramp = torch.ones(stop - start)
    if i > 0:
        shared = starts[i - 1] + tile - start
        ramp = ramp.minimum((position - start) / shared)
    if i + 1 < len(starts):
        shared = stop - starts[i + 1]
        ramp = ramp.minimum((stop - position) / shared)
    return ramp


def bytes_per_pixel(model: nn.Module) -> int:
    """Peak bytes of activations for each full-resolution pixel in inference, an estimate from above.

    In the widest full-resolution block live, at once: the skip and the running map, the norm's output, q, k, v
    before and after the depth-wise convolution; or the three parts of the feed-forward network.
    """
    if not isinstance(model, DerainTransformer):
        return 16_000
    config = model.built_with
    channels = 2 * config.width if config.levels > 1 else config.width
    hidden = config.ffn_factor * channels
    return int(4 * (3 * channels + max(7 * channels, 5 * hidden)) * 1.25)


def affordable_tile(model: nn.Module, device: torch.device, share: float = 0.5, limit: float = 1.5e9) -> int:
    """Side of the largest square tile whose activations fit in `share` of the free memory, a multiple of 64.

    On a CPU at most `limit` bytes are used whatever is free: larger tiles gain nothing there.
    """
    if device.type == "cuda":
        free = torch.cuda.mem_get_info(device)[0] * share
    else:
        free = min(psutil.virtual_memory().available * share, limit)
    side = math.isqrt(int(free / bytes_per_pixel(model)))
    return max(MIN_TILE, side // 64 * 64)
