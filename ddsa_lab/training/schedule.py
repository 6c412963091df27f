"""What a run does at each share of its budget: learning rate, patch side and batch."""

import math

from ddsa_lab.training.config import TrainConfig


def learning_rate(config: TrainConfig, step: int, fraction: float) -> float:
    """Return the learning rate of a step: a linear warm-up times a cosine over the budget.

    Args:
        config: gives `lr`, `min_lr` and `warmup`.
        step: steps done before this one.
        fraction: share of the budget used before this step, in [0, 1]; of steps or of seconds.
    """
    warm = min(1.0, (step + 1) / config.warmup) if config.warmup else 1.0
    low = min(config.min_lr, config.lr)
    return warm * (low + (config.lr - low) * 0.5 * (1 + math.cos(math.pi * min(fraction, 1.0))))


def patch_and_batch(config: TrainConfig, fraction: float) -> tuple[int, int]:
    """Return the patch side (pixels) and the global batch at a share of the budget."""
    stages = [stage for stage in config.patch_schedule if stage[0] <= fraction]
    return stages[-1][1:] if stages else (config.patch, config.batch)


def used(config: TrainConfig, step: int, seconds: float) -> float:
    """Return the share of the budget that `step` steps in `seconds` have used, in [0, 1]."""
    share = step / config.steps if config.steps is not None else seconds / config.seconds
    return min(share, 1.0)
