"""Saving and loading networks: our own files, the shipped weights, and three published layouts.

Nothing is ever unpickled freely: safetensors, or `.pth` read with `weights_only=True`. A published file
carries no settings, so the network is recognised from the names and shapes of its tensors.
"""

import json
import zlib
from collections.abc import Mapping
from difflib import get_close_matches
from importlib import resources
from pathlib import Path

import torch
from safetensors.torch import load_file
from safetensors.torch import save as safetensors_bytes
from torch import Tensor

from ddsa_lab.data.decode import shown
from ddsa_lab.errors import LabError, choose
from ddsa_lab.files import atomic_write
from ddsa_lab.model.attention import MULTI_KEEP
from ddsa_lab.model.cost import count_parameters
from ddsa_lab.model.network import DerainTransformer, NetworkConfig
from ddsa_lab.model.published import published_to_ours, recognise
from ddsa_lab.model.untrusted import printable, read_metadata, read_tensors

FORMAT = "ddsa-lab 1"


def save(
    model: DerainTransformer, path: str | Path, metadata: Mapping[str, str] | None = None, half: bool = False
) -> None:
    """Write `model` as safetensors with its configuration and a checksum inside, atomically.

    Args:
        model: the network, its attention in the mode that it was built with.
        path: file to write; its name should end in ".safetensors".
        metadata: short facts to keep with it (training settings, scores), text to text.
        half: store float16, half the size; loading gives float32 again.

    Raises:
        LabError: the network has been changed into what a checkpoint cannot hold, values do not fit float16, or
            the file cannot be written.
    """
    _refuse_changed(model)
    tensors = {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
    if half:
        tensors = {
            name: value.half() if value.is_floating_point() else value for name, value in tensors.items()
        }
        if bad := [name for name, value in tensors.items() if not torch.isfinite(value).all()]:
            raise LabError(f"{bad[0]} holds values that float16 cannot: save with half=False")
    facts = {**(metadata or {}), "format": FORMAT, "config": json.dumps(model.config.to_dict())}
    facts["checksum"] = _checksum(tensors, facts)
    with atomic_write(path) as temporary:
        # Not safetensors' own writer, which does not say what failed (a full disk, say) in a way to act upon.
        temporary.write_bytes(safetensors_bytes(tensors, metadata=facts))


def shipped_weights() -> list[str]:
    """Names of the trained networks that come with the package, for `load`."""
    folder = resources.files("ddsa_lab") / "weights"
    return sorted(
        entry.name.removesuffix(".safetensors")
        for entry in folder.iterdir()
        if entry.name.endswith(".safetensors")
    )


def find_weights(name_or_path: str | Path) -> Path:
    """The file behind a shipped name or a path.

    Raises:
        LabError: neither a shipped name nor an existing file, naming what is called alike.
    """
    path = Path(name_or_path)
    try:
        if path.is_file():
            return path
        if path.is_dir():
            raise LabError(f"{shown(path)} is a folder, not a checkpoint: name the file in it")
    except OSError as error:
        raise LabError(f"cannot read {shown(path)}: {error.strerror}") from error
    if path.suffix in (".safetensors", ".pth", ".pt", ".ckpt") or len(path.parts) > 1:
        beside = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
        near = " or ".join(shown(path.with_name(name)) for name in get_close_matches(path.name, beside))
        raise LabError(f"no checkpoint at {shown(path)}" + (f" (did you mean {near}?)" if near else ""))
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
    tensors = read_tensors(path)
    if "config" in metadata or "checksum" in metadata:
        config = _config_of(metadata, path)
    else:
        tensors = published_to_ours(tensors, path)
        config = recognise(tensors, path)
    _refuse_bomb(config, tensors, path)
    model = _fill(config, tensors, path)
    model.built_from = dict(metadata)
    return model.eval().to(device)


def _config_of(metadata: dict[str, str], path: Path) -> NetworkConfig:
    if metadata.get("format") != FORMAT or "config" not in metadata:
        found = metadata.get("format", "none")[:40]
        raise LabError(
            f"{shown(path)} has the format {found!r}, not {FORMAT!r}: it is damaged, or newer than this version"
        )
    if "checksum" in metadata:
        # Read again as stored: `read_tensors` has made half precision float32.
        facts = {name: text for name, text in metadata.items() if name != "checksum"}
        if _checksum(load_file(path), facts) != metadata["checksum"]:
            raise LabError(f"{shown(path)} is damaged: its checksum differs from that of its content")
    try:
        return NetworkConfig.from_dict(json.loads(metadata["config"]))
    except (ValueError, TypeError, RecursionError) as error:
        raise LabError(f"{shown(path)}: its network settings cannot be used: {error}") from error


def _checksum(tensors: Mapping[str, Tensor], facts: Mapping[str, str]) -> str:
    """CRC-32 of all values and facts. It finds damage; it does not prove who made the file."""
    crc = 0
    for name in sorted(tensors):
        described = f"{name} {tensors[name].dtype} {tuple(tensors[name].shape)}"
        crc = zlib.crc32(described.encode(), crc)
        crc = zlib.crc32(tensors[name].reshape(-1).view(torch.uint8).numpy(), crc)
    return f"{zlib.crc32(json.dumps(dict(sorted(facts.items()))).encode(), crc):08x}"


def _refuse_changed(model: DerainTransformer) -> None:
    """Refuse a network whose attention a checkpoint would give back otherwise than it is."""
    built = model.built_with
    for name, layer in model.attention_layers().items():
        if layer.weights.mode != built.mode:
            raise LabError(
                f"layer {name} is set to {layer.weights.mode!r} in a network built as {built.mode!r}: set it back before saving"
            )
        if built.mode == "multi" and layer.weights.keep != MULTI_KEEP:
            raise LabError(
                f"layer {name} has other keeps than {MULTI_KEEP}, which a 'multi' checkpoint cannot hold"
            )


def _refuse_bomb(config: NetworkConfig, tensors: Mapping[str, Tensor], path: Path) -> None:
    """Refuse settings that would build more than the file holds, before memory is spent."""
    held, needed = sum(value.numel() for value in tensors.values()), count_parameters(config)
    if needed > 1.5 * held + 1000:  # some may be missing, which `_fill` names
        raise LabError(
            f"{shown(path)} declares a network of {_count(needed)} parameters but holds {_count(held)}"
        )


def _count(number: int) -> str:
    return f"{number:,}" if number < 1e15 else "over 10^15"


def _fill(config: NetworkConfig, tensors: Mapping[str, Tensor], path: Path) -> DerainTransformer:
    """Build the network and load every tensor, or say precisely what does not fit."""
    model = DerainTransformer(config)
    wanted = model.state_dict()
    optional = {name for name in wanted if name.endswith("num_batches_tracked")}
    missing = [name for name in wanted if name not in tensors and name not in optional]
    extra = [name for name in tensors if name not in wanted]
    shared = [name for name in wanted if name in tensors]
    problems = [
        f"{len(names)} {what} ({', '.join(map(printable, names[:3]))}{', ...' if len(names) > 3 else ''})"
        for what, names in (
            ("missing", missing),
            ("left over", extra),
            ("of another shape", [name for name in shared if wanted[name].shape != tensors[name].shape]),
            (
                "of whole numbers",
                [n for n in shared if wanted[n].is_floating_point() != tensors[n].is_floating_point()],
            ),
        )
        if names
    ]
    if problems:
        raise LabError(
            f"{shown(path)} does not fit the network it resembles ({config.mode}, {config.ffn}): tensors "
            + "; ".join(problems)
        )
    if bad := [name for name, value in tensors.items() if not torch.isfinite(value).all()]:
        raise LabError(f"{shown(path)} holds values that are not finite in {bad[0]}, so it cannot be used")
    model.load_state_dict(tensors, strict=False)
    return model
