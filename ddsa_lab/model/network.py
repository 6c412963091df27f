"""The deraining transformer: a U-shaped stack of attention and feed-forward blocks with a global residual."""

import dataclasses
import hashlib
import math
import reprlib
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad, pixel_shuffle, pixel_unshuffle

from ddsa_lab.errors import LabError, choose
from ddsa_lab.model.attention import MODES, ChannelAttention, keep_count
from ddsa_lab.model.feedforward import FEED_FORWARDS, feed_forward
from ddsa_lab.model.layers import ChannelNorm, Pointwise

MAX_LEVELS = 8  # 128-fold smaller images; bounds what a file's settings can ask for
MAX_FACTOR = 64.0
MAX_NUMBER = 1e9


@dataclass(frozen=True)
class NetworkConfig:
    """What a network is made of; `NetworkConfig.preset("tiny", mode="dense")` starts from a named one.

    Raises:
        LabError: a value is out of range, naming the field.
    """

    width: int = 48  # channels at full resolution; level i has width * 2**i
    # Of each level; the decoder has as many as the encoder, the last level is the latent one.
    blocks: tuple[int, ...] = (4, 6, 6, 8)
    heads: tuple[int, ...] = (1, 2, 4, 8)
    refinement: int = 4  # full-resolution blocks after the decoder
    first: int = 0  # full-resolution blocks before level 1: released DDSA has as many as in refinement
    ffn: str = "sefn"
    ffn_factor: float = 2.66  # hidden channels = int(factor * channels)
    mode: str = "dual"
    keep: float | tuple[float, ...] = 0.7  # one share for all blocks, or one for each block in forward order

    def __post_init__(self) -> None:
        for name in ("blocks", "heads", "keep"):
            if isinstance(getattr(self, name), list):  # as JSON gives them
                object.__setattr__(self, name, tuple(getattr(self, name)))
        if isinstance(self.keep, tuple) and len(self.keep) == 1:
            object.__setattr__(self, "keep", self.keep[0])
        choose("attention mode", self.mode, MODES)
        choose("feed-forward network", self.ffn, FEED_FORWARDS)
        _check_types(self)
        if not 1 <= len(self.blocks) <= MAX_LEVELS or len(self.blocks) != len(self.heads):
            found = f"{len(self.blocks)} and {len(self.heads)}"
            raise LabError(
                f"blocks and heads must have one entry for each of 1 to {MAX_LEVELS} levels, found {found}"
            )
        for name in ("width", "blocks", "heads", "refinement", "first"):
            value, least = getattr(self, name), 0 if name in ("refinement", "first") else 1
            if min(value if isinstance(value, tuple) else (value,)) < least:
                raise LabError(f"{name} must be at least {least}, found {value}")
        if not 0 < self.ffn_factor <= MAX_FACTOR or int(self.ffn_factor * self.width) < 1:
            raise LabError(
                f"ffn_factor must give a hidden channel and be at most {MAX_FACTOR}, found {self.ffn_factor}"
            )
        for level, heads in enumerate(self.heads):
            if self.width * 2**level % heads:
                raise LabError(
                    f"heads {heads} at level {level + 1} do not divide its {self.width * 2**level} channels"
                )
        keeps = self.keep if isinstance(self.keep, tuple) else (self.keep,)
        if len(keeps) not in (1, self.block_count):
            raise LabError(f"keep has {len(keeps)} values, but the network has {self.block_count} blocks")
        for keep in keeps:
            keep_count(keep, 1)

    @property
    def levels(self) -> int:
        return len(self.blocks)

    @property
    def multiple(self) -> int:
        """Images are padded to a multiple of this many pixels a side."""
        return 2 ** (self.levels - 1)

    @property
    def block_count(self) -> int:
        return self.first + sum(self.blocks) + sum(self.blocks[:-1]) + self.refinement

    def stages(self) -> list[tuple[str, int, int, int, int]]:
        """(name, blocks, channels, heads, level) of each stage in forward order; level 0 is full resolution."""
        last = self.levels - 1
        # The top decoder level joins two maps and stays that wide.
        top = 2 * self.width if last else self.width
        rows = [("first", self.first, self.width, self.heads[0], 0)]
        rows += [(f"encoder.{i}", self.blocks[i], self.width * 2**i, self.heads[i], i) for i in range(last)]
        rows += [("latent", self.blocks[last], self.width * 2**last, self.heads[last], last)]
        for i in reversed(range(last)):
            rows += [(f"decoder.{i}", self.blocks[i], self.width * 2**i if i else top, self.heads[i], i)]
        return [*rows, ("refinement", self.refinement, top, self.heads[0], 0)]

    @classmethod
    def preset(cls, name: str, **changes: Any) -> "NetworkConfig":
        """The named preset with some fields changed.

        Raises:
            LabError: an unknown preset or field, naming the valid ones.
        """
        settings = PRESETS[choose("preset", name, PRESETS)]
        return cls.from_dict({**settings, **changes})

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "NetworkConfig":
        """A configuration from plain values, as `to_dict` gives them and JSON keeps them."""
        if not isinstance(values, dict):
            raise LabError(f"network settings are a table of names and values, found {type(values).__name__}")
        for name in values:
            choose("network setting", name, [field.name for field in dataclasses.fields(cls)])
        try:
            return cls(**values)
        except TypeError as error:
            raise LabError(f"network settings of the wrong type: {error}") from error

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


def _check_types(config: NetworkConfig) -> None:
    """Settings come from files too, where a width can be text or 16.5."""
    for name in ("blocks", "heads"):
        if not isinstance(getattr(config, name), tuple):
            raise LabError(
                f"{name} must be a tuple with a number for each level, found {getattr(config, name)!r}"
            )
    for name in ("width", "blocks", "heads", "refinement", "first", "ffn_factor", "keep"):
        kinds, kind = ((int, float), "numbers") if name in ("ffn_factor", "keep") else (int, "whole numbers")
        value = getattr(config, name)
        for number in value if isinstance(value, tuple) else (value,):
            if not isinstance(number, kinds) or isinstance(number, bool) or abs(number) > MAX_NUMBER:
                raise LabError(f"{name} takes {kind}, found {reprlib.repr(number)}")


# Own presets have widths and hidden widths that are multiples of 8, which vector units like.
PRESETS: dict[str, dict[str, Any]] = {
    "tiny": {"width": 16, "blocks": (1, 1, 1, 1), "refinement": 0, "ffn_factor": 2.0},
    # 2.4 million parameters: seven such files in float16, and the package still downloads in a moment.
    "small": {"width": 24, "blocks": (1, 2, 2, 1), "refinement": 0, "ffn_factor": 2.0},
    "idt_ddsa": {"refinement": 4, "first": 4},
    "restormer": {"refinement": 4, "ffn": "gdfn", "mode": "dense"},
    "drsformer": {"refinement": 0, "ffn": "msfn", "mode": "multi"},
}


class Block(nn.Module):
    """x + attention(norm(x)), then x + feed_forward(norm(x))."""

    def __init__(self, channels: int, heads: int, keep: float, config: NetworkConfig):
        super().__init__()
        self.norm1 = ChannelNorm(channels)
        self.attention = ChannelAttention(channels, heads, config.mode, keep)
        self.norm2 = ChannelNorm(channels)
        self.ffn = feed_forward(config.ffn, channels, config.ffn_factor)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.ffn(self.norm2(x))


class Down(nn.Module):
    """Half the size, twice the channels: 3x3 to C/2, then 2x2 pixels become channels."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels // 2, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return pixel_unshuffle(self.conv(x), 2)


class Up(nn.Module):
    """Twice the size, half the channels: 3x3 to 2C, then channels become 2x2 pixels."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, 2 * channels, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return pixel_shuffle(self.conv(x), 2)


class DerainTransformer(nn.Module):
    """Encoder, latent level, decoder with skips, refinement, global residual. Source: arXiv 2308.07781, figure 1.

    (B, 3, H, W) -> (B, 3, H, W) for any H, W >= 1; the output is not clamped.

    Args:
        config: see `NetworkConfig`.
        seed: each tensor starts from a generator seeded by (seed, its name, its shape): networks that differ only in part
            start equal in what they share. No global random state is used.
    """

    def __init__(self, config: NetworkConfig, seed: int = 0):
        super().__init__()
        self.built_with = config
        with torch.random.fork_rng(devices=[]):  # torch's layers draw from the global generator
            self._build(config)
        initialise(self, seed)
        self.to(memory_format=torch.channels_last)

    def _build(self, config: NetworkConfig) -> None:
        width, last = config.width, config.levels - 1
        keeps = iter(config.keep if isinstance(config.keep, tuple) else [config.keep] * config.block_count)
        stages = {
            name: nn.Sequential(*(Block(channels, heads, next(keeps), config) for _ in range(count)))
            for name, count, channels, heads, _ in config.stages()
        }
        self.stem = nn.Conv2d(3, width, 3, padding=1, bias=False)
        self.first = stages["first"]
        self.encoder = nn.ModuleList(stages[f"encoder.{i}"] for i in range(last))
        self.down = nn.ModuleList(Down(width * 2**i) for i in range(last))
        self.latent = stages["latent"]
        self.up = nn.ModuleList(Up(width * 2 ** (i + 1)) for i in range(last))
        # Joined maps are reduced by a 1x1 at every level but the top one.
        self.reduce = nn.ModuleList(
            Pointwise(width * 2 ** (i + 1), width * 2**i) if i else nn.Identity() for i in range(last)
        )
        self.decoder = nn.ModuleList(stages[f"decoder.{i}"] for i in range(last))
        self.refinement = stages["refinement"]
        self.head = nn.Conv2d(2 * width if last else width, 3, 3, padding=1, bias=False)

    @property
    def config(self) -> NetworkConfig:
        """The configuration as it stands now, `keep` and `mode` changed on the built model included."""
        layers = list(self.attention_layers().values())
        modes = {layer.weights.mode for layer in layers}
        keeps = tuple(layer.weights.keep for layer in layers)
        if len(modes) > 1 or self.built_with.mode == "multi":
            return self.built_with
        keep = keeps[0] if len(set(keeps)) == 1 else keeps
        return dataclasses.replace(self.built_with, keep=keep)

    def attention_layers(self) -> dict[str, ChannelAttention]:
        """Every attention layer by name ("encoder.0.0", stage and block), in forward order."""
        stages = {name: self.get_submodule(name) for name, *_ in self.built_with.stages()}
        return {
            f"{name}.{i}": block.attention for name, stage in stages.items() for i, block in enumerate(stage)
        }

    def forward(self, image: Tensor) -> Tensor:
        height, width = image.shape[-2:]
        m = self.built_with.multiple
        x = pad(image, (0, -width % m, 0, -height % m), mode="replicate")
        x = self.stem(x.contiguous(memory_format=torch.channels_last))
        x = self.first(x)
        skips = []
        for stage, down in zip(self.encoder, self.down):
            x = stage(x)
            skips.append(x)
            x = down(x)
        x = self.latent(x)
        for i in reversed(range(len(skips))):
            x = torch.cat([self.up[i](x), skips[i]], dim=1)
            x = self.decoder[i](self.reduce[i](x))
        x = self.head(self.refinement(x))
        return image + x[..., :height, :width]


def initialise(model: nn.Module, seed: int) -> None:
    """Draw every convolution's weights anew: uniform in +-1/sqrt(fan in), torch's own default.

    Each tensor has a generator of its own, seeded by (seed, name, shape), so that equal tensors of
    different networks start equal. Norms, temperatures and branch weights keep their constants.
    """
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d):
            key = f"{seed}/{name}/{tuple(module.weight.shape)}".encode()
            number = int.from_bytes(hashlib.sha256(key).digest()[:8], "little") % 2**63
            bound = 1 / math.sqrt(module.weight[0].numel())
            with torch.no_grad():
                module.weight.uniform_(-bound, bound, generator=torch.Generator().manual_seed(number))
