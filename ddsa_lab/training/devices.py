"""Where a training runs: one process or several, through Lightning Fabric, kept in agreement."""

import contextlib
import logging
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, TypeVar

import torch

from ddsa_lab.errors import LabError, choose
from ddsa_lab.training.config import TrainConfig

if TYPE_CHECKING:
    from lightning_fabric import Fabric

Result = TypeVar("Result")


def make_fabric(config: TrainConfig, devices: int = 1, nodes: int = 1, accelerator: str = "auto") -> "Fabric":
    """Launch Fabric for `devices` processes (or GPUs) on each of `nodes` machines.

    Under torchrun or SLURM the processes exist already and join; otherwise the command that is running is started again
    for each further device.

    Raises:
        LabError: more devices than there are, or a batch that they cannot share evenly.
    """
    from lightning_fabric import Fabric

    choose("accelerator", accelerator, ("auto", "cpu", "cuda"))
    if accelerator == "auto":  # Apple's MPS is left out: its top-k was wrong in some versions
        accelerator = "cuda" if torch.cuda.is_available() else "cpu"
    if accelerator == "cuda" and torch.cuda.device_count() < devices:
        raise LabError(f"{devices} CUDA devices asked for, {torch.cuda.device_count()} found")
    world = devices * nodes
    batches = [batch for _, _, batch in config.patch_schedule] or [config.batch]
    if uneven := [batch for batch in batches if batch % world]:
        raise LabError(
            f"a batch of {uneven[0]} cannot be shared evenly by {world} devices: use a multiple of {world}"
        )
    # Fabric announces its plugins, which says nothing to a reader of the progress bar.
    logging.getLogger("lightning_fabric").setLevel(logging.WARNING)
    fabric = Fabric(
        accelerator=accelerator,
        devices=devices,
        num_nodes=nodes,
        strategy="ddp" if world > 1 else "auto",
        precision=config.precision,
    )
    fabric.launch()
    return fabric


def together(fabric: "Fabric", action: Callable[[], Result]) -> Result | None:
    """Run `action` in the leading process; if it raises LabError there, raise it in all, so that none waits for ever.

    Returns:
        What `action` returned in the leading process, None in the others.
    """
    result, message = None, None
    if fabric.is_global_zero:
        try:
            result = action()
        except LabError as error:
            message = str(error)
    if fabric.world_size > 1:
        message = fabric.broadcast(message)
    if message is not None:
        raise LabError(message)
    return result


def agree(fabric: "Fabric", values: list[float]) -> list[float]:
    """Return the largest of each value over all processes."""
    if fabric.world_size == 1:
        return values
    return fabric.all_reduce(
        torch.tensor(values, dtype=torch.float64, device=fabric.device), reduce_op="max"
    ).tolist()


@contextlib.contextmanager
def private_randomness(seed: int, device: torch.device) -> Iterator[None]:
    """Seed torch's global generators inside, for layers that draw from them, and put them back afterwards."""
    devices: list[Any] = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        yield
