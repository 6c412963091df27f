"""Tables of tensors from files that nobody vouches for: read within bounds, and never executed.

safetensors holds no code. A `.pth` is a pickle: torch reads it with `weights_only=True`, which refuses code but
still allocates what a file asks for, so what it may name is checked before.
"""

import json
import pickletools
import re
import struct
import zipfile
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from ddsa_lab.data.decode import shown
from ddsa_lab.errors import LabError

MAX_BYTES = 1 << 30  # the released networks take 0.2 GB; what declares more than this is refused unread
MAX_HEADER = 10 << 20
MAX_TENSORS = 20_000  # the released networks have about 1000
MAX_VALUES = 100_000_000  # all tensors together; the released networks have 0.04e9
FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)

# Where training code keeps the weights in its checkpoints, averaged ones first.
_WRAPPERS = ("params_ema", "params", "state_dict", "model_state_dict")
_PREFIX = re.compile(
    r"^(?:module\.|_orig_mod\.|param\.)+"
)  # of DataParallel, torch.compile and reference files
# What a table of tensors needs. torch allows more, `bytearray(10**11)` for one.
_HARMLESS = re.compile(
    r"(collections OrderedDict|torch\._utils _rebuild_(tensor_v2|parameter)|torch \w+Storage|torch (Size|device))"
)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a safetensors or `.pth` file, wrappers and prefixes removed, floating-point ones as float32.

    Raises:
        LabError: the file is damaged, too large, holds more than tensors, or declares more than it holds.
    """
    kind = _kind(path)
    try:
        if kind == "safetensors":
            read_metadata(path)  # bounds its header
            declared, values = path.stat().st_size, load_file(path)
        else:
            declared = _check_pickles(path, kind)
            values = torch.load(path, map_location="cpu", weights_only=True)
    except (LabError, KeyboardInterrupt):
        raise
    except Exception as error:  # the readers fail on damaged files with any kind of error
        raise LabError(
            f"{shown(path)} is damaged, incomplete or no checkpoint ({_first_line(error)})"
        ) from error
    return _plain(_unwrapped(values, path), declared, path)


def read_metadata(path: str | Path) -> dict[str, str]:
    """The text facts in a safetensors header; {} for other files. Reads the header only.

    Raises:
        LabError: the header is damaged or declares an absurd size.
    """
    path = Path(path)
    if _kind(path) != "safetensors":
        return {}
    try:
        with open(path, "rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            if length > min(MAX_HEADER, path.stat().st_size - 8):
                raise LabError(
                    f"{shown(path)} is no whole safetensors file: its header declares {length} bytes"
                )
            header = json.loads(file.read(length))
        facts = header.get("__metadata__", {})
    except LabError:
        raise
    except OSError as error:
        raise LabError(f"cannot read {shown(path)}: {error.strerror}") from error
    except Exception as error:  # every way in which a damaged header can fail to parse means the same
        raise LabError(f"{shown(path)} is damaged: its safetensors header cannot be read") from error
    if len(header) > MAX_TENSORS:
        raise LabError(f"{shown(path)} holds {len(header):,} tensors; more than {MAX_TENSORS:,} are refused")
    if not isinstance(facts, dict) or not all(isinstance(value, str) for value in facts.values()):
        raise LabError(f"{shown(path)} is damaged: its metadata are not text")
    return facts


def printable(name: str) -> str:
    """A tensor's name fit for a message: short, and without control characters."""
    return ascii(name)[1:-1] if len(name) <= 80 else ascii(name[:77])[1:-1] + "..."


def _kind(path: Path) -> str:
    """ "safetensors", "zip" (.pth since 2020) or "pickle" (.pth before), by content."""
    try:
        with open(path, "rb") as file:
            head = file.read(9)
        size = path.stat().st_size
    except OSError as error:
        raise LabError(f"cannot read {shown(path)}: {error.strerror}") from error
    if size == 0:
        raise LabError(f"{shown(path)} is empty")
    if size > MAX_BYTES:
        raise LabError(
            f"{shown(path)} has {size / 1e9:.1f} GB; checkpoints above {MAX_BYTES / 1e9:.1f} GB are refused"
        )
    # First, since the header's length, which stands before the brace, can begin with any bytes.
    if head[8:9] == b"{":
        return "safetensors"
    if head.startswith(b"PK"):
        return "zip"
    if head.startswith(b"\x80"):
        return "pickle"
    if path.suffix == ".safetensors":
        raise LabError(f"{shown(path)} is damaged or no safetensors file: its header cannot be read")
    raise LabError(f"{shown(path)} is no checkpoint: neither safetensors nor a .pth that torch has saved")


def _check_pickles(path: Path, kind: str) -> int:
    """Refuse a `.pth` that names more than tensors need; return how many bytes it unpacks to."""
    if kind == "pickle":
        with open(path, "rb") as file:
            for _ in range(5):  # magic number, version, system, tensors, keys; the values follow
                _check_pickle(file, path)
        return path.stat().st_size
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
        total = sum(entry.file_size for entry in entries)
        if total > MAX_BYTES:
            raise LabError(
                f"{shown(path)} unpacks to {total / 1e9:.1f} GB; above {MAX_BYTES / 1e9:.1f} GB is refused"
            )
        pickles = [entry for entry in entries if entry.filename.endswith(".pkl")]
        if sum(entry.file_size for entry in pickles) > MAX_HEADER:
            raise LabError(f"{shown(path)} holds far more than a table of tensors: save the state_dict alone")
        for entry in pickles:
            with archive.open(entry) as file:
                _check_pickle(file, path)
    return total


def _check_pickle(file: Any, path: Path) -> None:
    for opcode, argument, _ in pickletools.genops(file):
        named = argument if opcode.name == "GLOBAL" else opcode.name
        if opcode.name in ("STACK_GLOBAL", "INST", "OBJ") or (
            opcode.name == "GLOBAL" and not _HARMLESS.fullmatch(argument)
        ):
            what = printable(str(named).replace(" ", "."))
            raise LabError(
                f"{shown(path)} holds more than tensors ({what}), and is not read: save its state_dict alone"
            )


def _unwrapped(values: Any, path: Path) -> dict[str, Tensor]:
    for _ in _WRAPPERS:
        inner = [
            values[key] for key in _WRAPPERS if isinstance(values, dict) and isinstance(values.get(key), dict)
        ]
        values = inner[0] if inner else values
    if (
        not isinstance(values, dict)
        or not values
        or not all(isinstance(value, Tensor) for value in values.values())
    ):
        raise LabError(f"{shown(path)} holds no table of tensors, so it is no network's weights")
    if not all(isinstance(name, str) for name in values):
        raise LabError(f"{shown(path)} holds tensors without names, so it is no network's weights")
    return values


def _plain(values: dict[str, Tensor], declared: int, path: Path) -> dict[str, Tensor]:
    """Refuse tensors that are not what they seem; short names, float32."""
    if len(values) > MAX_TENSORS or sum(value.numel() for value in values.values()) > MAX_VALUES:
        raise LabError(
            f"{shown(path)} declares {len(values):,} tensors with {sum(v.numel() for v in values.values()):,} values; "
            f"more than {MAX_TENSORS:,} or {MAX_VALUES:,} are refused"
        )
    tensors: dict[str, Tensor] = {}
    for name, value in values.items():
        where = f"{shown(path)}: the tensor {printable(name)}"
        if value.layout != torch.strided or value.device.type != "cpu" or value.is_quantized:
            raise LabError(f"{where} has no plain values, so it is no network's weight")
        if value.is_complex() or (value.is_floating_point() and value.dtype not in FLOATS):
            raise LabError(f"{where} has the type {value.dtype}; float32, float16 and bfloat16 are read")
        declared -= value.numel() * value.element_size()
        if declared < 0:  # strides of 0 make terabytes of a few bytes
            raise LabError(f"{where} declares more values than the file holds")
        short = _PREFIX.sub("", name)
        if short in tensors:
            raise LabError(f"{where} occurs twice, with and without a prefix")
        tensors[short] = value.detach().float() if value.is_floating_point() else value.detach()
    return tensors


def _first_line(error: Exception) -> str:
    return printable((str(error).strip().splitlines() or [type(error).__name__])[0])
