"""Saving and loading networks: our own files, the shipped weights, and three published layouts.

Nothing is ever unpickled freely: safetensors, or `.pth` read with `weights_only=True`. A published file
carries no settings, so the network is recognised from the names and shapes of its tensors.
"""

import json
import re
import struct
from importlib import resources
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from ddsa_lab.errors import LabError, choose
from ddsa_lab.files import atomic_write
from ddsa_lab.model.network import DerainTransformer, NetworkConfig

FORMAT = "ddsa-lab 1"
MAX_BYTES = 4 << 30  # the released networks take 0.2 GB; what declares more than this is refused unread

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


def save(model: DerainTransformer, path: str | Path, metadata: dict[str, str] | None = None, half: bool = False) -> None:
    """Write `model` as safetensors with its configuration inside, atomically.

    Args:
        model: the network.
        path: file to write; its name should end in ".safetensors".
        metadata: short facts to keep with it (training settings, scores), text to text.
        half: store float16, half the size; loading gives float32 again.
    """
    tensors = {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
    if half:
        tensors = {name: value.half() if value.is_floating_point() else value for name, value in tensors.items()}
    facts = {**(metadata or {}), "format": FORMAT, "config": json.dumps(model.config.to_dict())}
    with atomic_write(path) as temporary:
        save_file(tensors, temporary, metadata=facts)


def shipped_weights() -> list[str]:
    """Names of the trained networks that come with the package, for `load`."""
    folder = resources.files("ddsa_lab") / "weights"
    return sorted(entry.name.removesuffix(".safetensors") for entry in folder.iterdir() if entry.name.endswith(".safetensors"))


def find_weights(name_or_path: str | Path) -> Path:
    """The file behind a shipped name or a path.

    Raises:
        LabError: neither a shipped name nor an existing file.
    """
    path = Path(name_or_path)
    if path.is_file():
        return path
    if path.is_dir():
        raise LabError(f"{path} is a folder, not a checkpoint: name the file in it (such as {path / 'model.safetensors'})")
    if path.suffix in (".safetensors", ".pth", ".pt", ".ckpt") or len(path.parts) > 1:
        raise LabError(f"no checkpoint at {path}")
    choose("weights (neither a shipped name nor a file)", str(name_or_path), shipped_weights())
    return Path(str(resources.files("ddsa_lab") / "weights" / f"{name_or_path}.safetensors"))


def load(name_or_path: str | Path, device: str | torch.device = "cpu") -> DerainTransformer:
    """A trained network, in evaluation mode.

    Args:
        name_or_path: a shipped name (see `shipped_weights`), a file of ours, or a published checkpoint of
            IDT-DDSA, Restormer or DRSformer (safetensors or .pth; without DRSformer's mixture of experts).
        device: where to put it.

    Raises:
        LabError: no such file, a damaged file, or a network that is none of these, naming the tensors that are
            missing, left over or of another shape.
    """
    path = find_weights(name_or_path)
    metadata = read_metadata(path)
    tensors = _read_tensors(path)
    if "config" in metadata:
        try:
            config = NetworkConfig.from_dict(json.loads(metadata["config"]))
        except ValueError as error:
            raise LabError(f"{path}: its network settings cannot be used: {error}") from error
        _refuse_bomb(config, tensors, path)
    else:
        tensors = published_to_ours(tensors)
        config = recognise(tensors, path)
    model = _fill(config, tensors, path)
    model.built_from = dict(metadata)
    return model.eval().to(device)


def read_metadata(path: str | Path) -> dict[str, str]:
    """The text facts in a safetensors header; {} for other files. Reads the header only.

    Raises:
        LabError: the header is damaged or declares an absurd size.
    """
    path = Path(path)
    if path.suffix != ".safetensors":
        return {}
    try:
        with open(path, "rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            if length > min(100 << 20, path.stat().st_size):
                raise LabError(f"{path} is not a whole safetensors file: its header declares {length} bytes")
            facts = json.loads(file.read(length)).get("__metadata__", {})
    except LabError:
        raise
    except OSError as error:
        raise LabError(f"cannot read {path}: {error.strerror}") from error
    except Exception as error:  # every way in which a damaged header can fail to parse means the same
        raise LabError(f"{path} is damaged or no safetensors file (unreadable header)") from error
    if not isinstance(facts, dict) or not all(isinstance(value, str) for value in facts.values()):
        raise LabError(f"{path} is damaged: its metadata are not text")
    return facts


def _read_tensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a file, wrappers and prefixes removed, floating-point ones as float32."""
    if path.stat().st_size > MAX_BYTES:
        raise LabError(f"{path} has {path.stat().st_size / 1e9:.1f} GB; checkpoints above {MAX_BYTES / 1e9:.1f} GB are refused")
    try:
        values = load_file(path) if path.suffix == ".safetensors" else torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, RuntimeError, EOFError, OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise LabError(f"{path} is damaged or incomplete: {_first_line(error)}") from error
    except Exception as error:  # pickle.UnpicklingError and the zip reader's own
        raise LabError(f"{path} is no checkpoint that can be read safely: {_first_line(error)}") from error
    for key in ("params", "state_dict", "model_state_dict"):
        if isinstance(values, dict) and isinstance(values.get(key), dict):
            values = values[key]
    if not isinstance(values, dict) or not values or not all(isinstance(value, Tensor) for value in values.values()):
        raise LabError(f"{path} holds no table of tensors, so it is no network's weights")
    if any(value.is_sparse or value.device.type == "meta" for value in values.values()):
        raise LabError(f"{path} holds tensors without plain values, so it is no network's weights")
    values = {str(name).removeprefix("module.").removeprefix("param."): value for name, value in values.items()}
    return {name: value.float() if value.is_floating_point() else value for name, value in values.items()}


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


def published_to_ours(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Tensors under the names of the published implementations -> under ours; fusion scalars are joined.

    Names that match nothing stay as they are, so that they show as left over.
    """
    ours: dict[str, Tensor] = {}
    branches: dict[str, dict[int, Tensor]] = {}
    for name, value in tensors.items():
        for pattern, replacement in RENAMES:
            name = re.sub(pattern, replacement, name)
        if match := BRANCH.match(name):
            branches.setdefault(match[1], {})[int(match[2] or 0)] = value
        else:
            ours[name] = value
    for name, parts in branches.items():
        ours[name] = torch.cat([parts[i].flatten() for i in sorted(parts)])
    # The released DDSA and DRSformer call their 3x3 alike; only the first has a gate. Restormer says dwconv.
    for name in [name for name in ours if re.search(r"ffn\.dwconv(3x3)?\.", name)]:
        block = name.split(".ffn.")[0]
        ours_name = "depthwise3" if f"{block}.ffn.mix3.weight" in ours else "depthwise"
        ours[f"{block}.ffn.{ours_name}.weight"] = ours.pop(name)
    return ours


def recognise(tensors: dict[str, Tensor], path: Path) -> NetworkConfig:
    """The configuration that tensors under our names belong to, from their names and shapes.

    Raises:
        LabError: they belong to no network known here, saying which marks are missing.
    """
    def count(stage: str) -> int:
        pattern = re.compile(re.escape(stage) + r"\.(\d+)\.")
        return len({match[1] for name in tensors if (match := pattern.match(name))})

    marks = ["stem.weight", "latent.0.attention.temperature", "latent.0.ffn.expand.weight"]
    marks += ["latent.0.attention.qkv.weight"]
    if missing := [mark for mark in marks if mark not in tensors or tensors[mark].dim() < 3]:
        found = ", ".join(sorted(tensors)[:3])
        raise LabError(
            f"{path} is not a network of IDT-DDSA, Restormer, DRSformer or ours: no usable {missing[0]} among its "
            f"{len(tensors)} tensors ({found}, ...)"
        )
    levels = 1
    while count(f"encoder.{levels - 1}"):
        levels += 1
    stages = [f"encoder.{i}" for i in range(levels - 1)] + ["latent"]
    heads = [tensors.get(f"{stage}.0.attention.temperature", torch.ones(1)).shape[0] for stage in stages]
    branch = tensors.get("latent.0.attention.weights.branch")
    mode = "dense" if branch is None else {2: "dual", 4: "multi"}.get(branch.numel(), "dual")
    parts = {"sefn": 3, "msfn": 2, "gdfn": 2}
    ffn = "sefn" if "latent.0.ffn.gate.conv.weight" in tensors else "msfn" if "latent.0.ffn.mix3.weight" in tensors else "gdfn"
    channels, hidden = tensors["latent.0.attention.qkv.weight"].shape[1], tensors["latent.0.ffn.expand.weight"].shape[0] // parts[ffn]
    settings = dict(
        width=tensors["stem.weight"].shape[0], blocks=[count(stage) for stage in stages], heads=heads,
        refinement=count("refinement"), first=count("first"), ffn=ffn, mode=mode, keep=0.7,
        # Released networks use 2.66; others are inferred, aimed between the integers so that int() lands right.
        ffn_factor=2.66 if int(2.66 * channels) == hidden else (hidden + 0.5) / channels,
    )  # fmt: skip
    try:
        config = NetworkConfig.from_dict(settings)
    except LabError as error:
        raise LabError(f"{path} looks like a deraining network but its shapes disagree: {error}") from error
    _refuse_bomb(config, tensors, path)
    return config


def _refuse_bomb(config: NetworkConfig, tensors: dict[str, Tensor], path: Path) -> None:
    """Refuse settings that would build far more than the file holds, before memory is spent."""
    held = sum(value.numel() for value in tensors.values())
    # Each block holds at least 3C^2 of q, k, v.
    needed = sum(blocks * 3 * channels**2 for _, blocks, channels, *_ in config.stages())
    if needed > 2 * held + 1000:
        raise LabError(f"{path} declares a network of over {needed:,} parameters but holds {held:,}")


def _fill(config: NetworkConfig, tensors: dict[str, Tensor], path: Path) -> DerainTransformer:
    """Build the network and load every tensor, or say precisely what does not fit."""
    model = DerainTransformer(config)
    wanted = model.state_dict()
    optional = {name for name in wanted if name.endswith("num_batches_tracked")}
    missing = [name for name in wanted if name not in tensors and name not in optional]
    extra = [name for name in tensors if name not in wanted]
    shapes = [name for name in wanted if name in tensors and wanted[name].shape != tensors[name].shape]
    problems = [
        f"{len(names)} {what} ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})"
        for what, names in (("missing", missing), ("left over", extra), ("of another shape", shapes))
        if names
    ]
    if problems:
        raise LabError(f"{path} does not fit the network it resembles ({config.mode}, {config.ffn}): tensors " + "; ".join(problems))
    if bad := [name for name, value in tensors.items() if not torch.isfinite(value).all()]:
        raise LabError(f"{path} holds values that are not finite in {bad[0]}, so it cannot be used")
    model.load_state_dict(tensors, strict=False)
    return model
