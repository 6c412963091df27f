"""Training patches in an order that depends on the seed alone, wherever a run starts and however many share it."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from ddsa_lab.data.datasets import PairPatches, RainyPatches, training_photos
from ddsa_lab.data.pairs import find_pairs
from ddsa_lab.training.config import TrainConfig

_ENDLESS = 2**40  # patches; more than any run takes


class Batches:
    """Serves batch after batch; patch number i is the same in every run with the same seed.

    Args:
        config: names photos or pairs, rain, seed and workers.
        rank: number of this process, in [0, world).
        world: processes that share each batch; each takes its slice.
        pin: a GPU will copy the patches: hold them in page-locked memory, and let processes make them.

    Raises:
        LabError: the folder of photos or pairs is missing, empty or unreadable.
    """

    def __init__(self, config: TrainConfig, rank: int = 0, world: int = 1, pin: bool = False) -> None:
        self.config, self.rank, self.world, self.pin = config, rank, world, pin
        beside_gpu = min(8, max(1, (os.cpu_count() or 1) // world)) if pin else 0
        self.workers = beside_gpu if config.workers is None else config.workers
        if config.pairs is not None:
            self.source = find_pairs(Path(config.pairs))
        else:
            self.source = training_photos(Path(config.photos) if config.photos else None)
        self._stage: tuple[int, int] | None = None
        self._stream: Iterator[tuple[Tensor, Tensor]] = iter(())

    def take(self, patch: int, batch: int, first: int) -> tuple[Tensor, Tensor]:
        """Return patches `first` to `first + batch - 1` (this process's slice) as rainy and clean (B,3,p,p).

        Calls must follow each other without gaps, apart from a change of patch or batch, which may start anywhere.
        """
        if (patch, batch) != self._stage:
            self._stage, self._stream = (patch, batch), iter(self._loader(patch, batch, first))
        return next(self._stream)

    def close(self) -> None:
        """End the worker processes, if there are any."""
        self._stage, self._stream = None, iter(())

    def _loader(self, patch: int, batch: int, first: int) -> DataLoader:
        return DataLoader(
            self.dataset(patch),
            batch_sampler=_Consecutive(first, batch, self.rank, self.world),
            num_workers=self.workers,
            worker_init_fn=_leave_interrupts_to_parent,
            pin_memory=self.pin,
            generator=torch.Generator().manual_seed(self.config.seed),  # else the global one is drawn from
        )

    def dataset(self, patch: int) -> Dataset:
        """Return the patches of side `patch`; item i depends on the seed and i alone."""
        config = self.config
        if config.pairs is not None:
            return PairPatches(self.source, patch, _ENDLESS, config.seed)
        return RainyPatches(self.source, config.rain, patch, _ENDLESS, config.seed, config.dead_leaves)


class _Consecutive(Sampler[list[int]]):
    """Batches of consecutive indices without end; process `rank` of `world` gets its slice of each."""

    def __init__(self, first: int, batch: int, rank: int, world: int) -> None:
        self.first, self.batch = first, batch
        share = batch // world
        self.slice = range(rank * share, (rank + 1) * share)

    def __iter__(self) -> Iterator[list[int]]:
        start = self.first
        while True:
            yield [start + i for i in self.slice]
            start += self.batch


def _leave_interrupts_to_parent(_worker: int) -> None:
    # Ctrl-C reaches the whole process group; the parent finishes its step and then ends the workers.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
