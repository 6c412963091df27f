"""Published networks recognised: IDT-DDSA, Restormer and DRSformer by the names and shapes of their tensors."""

import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from ddsa_lab.data.decode import shown
from ddsa_lab.errors import LabError
from ddsa_lab.model.attention import MULTI_KEEP
from ddsa_lab.model.network import MAX_LEVELS, NetworkConfig
from ddsa_lab.model.untrusted import printable

# Published name -> ours, applied in this order to every tensor name.
RENAMES = [
    (r"^patch_embed\.proj\.", "stem."),
    (r"^refinement0\.", "first."),
    (r"^output\.", "head."),
    (r"^(encoder|decoder)_level(\d)\.", lambda m: f"{m[1]}.{int(m[2]) - 1}."),
    (r"^down(\d)_\d\.body\.0\.", lambda m: f"down.{int(m[1]) - 1}.conv."),
    (r"^up\d_(\d)\.body\.0\.", lambda m: f"up.{int(m[1]) - 1}.conv."),
    (r"^reduce_chan_level(\d)\.", lambda m: f"reduce.{int(m[1]) - 1}."),
    (r"\.(norm\d)\.body\.", r".\1."),
    (r"attn\.qkv_dwconv\.", "attn.depthwise."),
    (r"attn\.project_out\.", "attn.project."),
    (r"\.attn\.(qkv|depthwise|project|temperature)", r".attention.\1"),
    (r"\.attn\.attn(\d?)$", r".attention.weights.branch\1"),
    (r"ffn\.(conv1x1_in|project_in)\.", "ffn.expand."),
    (r"ffn\.project_out\.", "ffn.project."),
    (r"ffn\.SAlayer\.conv_sa\.0\.", "ffn.gate.conv."),
    (r"ffn\.SAlayer\.conv_sa\.1\.", "ffn.gate.norm."),
    (r"ffn\.dwconv3x3_1\.", "ffn.mix3."),
    (r"ffn\.dwconv5x5_1\.", "ffn.mix5."),
    (r"ffn\.dwconv5x5\.", "ffn.depthwise5."),
]
# Fusion scalars, one tensor each in published files: attn, attn1 (DDSA) or attn1..attn4 (DRSformer).
BRANCH = re.compile(r"^(.*\.attention\.weights\.branch)(\d?)$")


def published_to_ours(tensors: Mapping[str, Tensor], path: Path = Path("the table")) -> dict[str, Tensor]:
    """Tensors under the names of the published implementations -> under ours; fusion scalars are joined.

    Names that match nothing stay as they are, so that they show as left over.

    Args:
        tensors: by published name.
        path: where they come from, for messages.

    Raises:
        LabError: two of them are the same tensor of ours.
    """
    ours: dict[str, Tensor] = {}
    branches: dict[str, dict[int, Tensor]] = {}

    def add(name: str, value: Tensor) -> None:
        if name in ours:
            raise LabError(f"{shown(path)} holds the tensor {printable(name)} twice, under two names")
        ours[name] = value

    for name, value in tensors.items():
        for pattern, replacement in RENAMES:
            name = re.sub(pattern, replacement, name)
        if match := BRANCH.match(name):
            branches.setdefault(match[1], {})[int(match[2] or 0)] = value
        else:
            add(name, value)
    for name, parts in branches.items():
        if sorted(parts) in ([0], [0, 1], [1, 2, 3, 4]):
            add(name, torch.cat([parts[i].flatten() for i in sorted(parts)]))
        else:
            ours.update({f"{name}{i or ''}": value for i, value in parts.items()})
    # The released DDSA and DRSformer call their 3x3 alike; only the second has a mix. Restormer says dwconv.
    for name in [name for name in ours if re.search(r"\.ffn\.dwconv(3x3)?\.weight$", name)]:
        block = name.split(".ffn.")[0]
        ours_name = "depthwise3" if f"{block}.ffn.mix3.weight" in ours else "depthwise"
        add(f"{block}.ffn.{ours_name}.weight", ours.pop(name))
    return ours


def recognise(tensors: Mapping[str, Tensor], path: Path) -> NetworkConfig:
    """The configuration that tensors under our names belong to, from their names and shapes.

    Raises:
        LabError: they belong to no network known here, saying which marks are missing.
    """
    marks = [
        f"latent.0.{part}" for part in ("attention.qkv.weight", "ffn.expand.weight", "attention.temperature")
    ]
    for mark in ["stem.weight", *marks]:
        if mark not in tensors or tensors[mark].dim() < 3 or not tensors[mark].numel():
            raise LabError(
                f"{shown(path)} is not a network of IDT-DDSA, Restormer, DRSformer or ours: no usable {mark} among its "
                f"{len(tensors)} tensors ({', '.join(map(printable, sorted(tensors)[:3]))}, ...)"
            )
    levels = 1
    while levels <= MAX_LEVELS and _count(tensors, f"encoder.{levels - 1}"):
        levels += 1
    stages = [f"encoder.{i}" for i in range(levels - 1)] + ["latent"]
    temperatures = [tensors.get(f"{stage}.0.attention.temperature", torch.ones(1)) for stage in stages]
    ffn, parts = _feed_forward(tensors)
    channels = tensors["latent.0.attention.qkv.weight"].shape[1]
    hidden = tensors["latent.0.ffn.expand.weight"].shape[0] // parts
    try:
        return NetworkConfig(
            width=tensors["stem.weight"].shape[0],
            blocks=tuple(_count(tensors, stage) for stage in stages),
            heads=tuple(temperature.numel() for temperature in temperatures),
            refinement=_count(tensors, "refinement"),
            first=_count(tensors, "first"),
            ffn=ffn,
            # Released networks use 2.66; others are inferred, aimed between the integers so that int() lands right.
            ffn_factor=2.66 if int(2.66 * channels) == hidden else (hidden + 0.5) / channels,
            mode=_mode(tensors),
        )
    except LabError as error:
        raise LabError(
            f"{shown(path)} looks like a deraining network but its shapes disagree: {error}"
        ) from error


def _count(tensors: Mapping[str, Tensor], stage: str) -> int:
    pattern = re.compile(re.escape(stage) + r"\.(\d+)\.")
    return len({match[1] for name in tensors if (match := pattern.match(name))})


def _feed_forward(tensors: Mapping[str, Tensor]) -> tuple[str, int]:
    """(name, parts into which it splits what `expand` gives)."""
    if "latent.0.ffn.gate.conv.weight" in tensors:
        return "sefn", 3
    return ("msfn" if "latent.0.ffn.mix3.weight" in tensors else "gdfn"), 2


def _mode(tensors: Mapping[str, Tensor]) -> str:
    branch = tensors.get("latent.0.attention.weights.branch")
    if branch is None:
        return "dense"
    return "multi" if branch.numel() == len(MULTI_KEEP) else "dual"
