"""Short fingerprints of models and pairs, so that scores of others under the same name are noticed."""

import functools
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ddsa_lab.errors import LabError


def model_print(model: nn.Module | Callable[[Tensor], Tensor]) -> str:
    """Return a fingerprint of a network's weights and architecture; of a function, its name and bound arguments.

    Two functions of one name (two lambdas of a file, say) cannot be told apart.
    """
    if isinstance(model, functools.partial):
        return f"{model_print(model.func)} {model.args} {model.keywords}"
    if not isinstance(model, nn.Module):
        return f"{model.__module__}.{getattr(model, '__qualname__', type(model).__qualname__)}"
    digest = hashlib.blake2b(repr(model).encode(), digest_size=12)  # modes and keeps are in it
    for name, tensor in model.state_dict().items():
        digest.update(name.encode())
        digest.update(_bytes(tensor))
    return digest.hexdigest()


def pair_print(pair: Any) -> str:
    """Return a fingerprint of a pair's two files, or of its images where it has none; "" if unreadable."""
    digest = hashlib.blake2b(digest_size=12)
    try:
        if hasattr(pair, "input") and hasattr(pair, "target"):
            for path in (pair.input, pair.target):
                digest.update(Path(path).read_bytes())
        else:
            for image in pair.load():
                digest.update(_bytes(image))
    except (LabError, OSError):
        return ""
    return digest.hexdigest()


def _bytes(tensor: Tensor) -> bytes:
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
