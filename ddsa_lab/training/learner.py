"""One update of the weights: loss, gradient, clipping, optimiser, and the running average that is kept."""

import copy
import math
import shutil
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, distributed, nn

from ddsa_lab.errors import LabError
from ddsa_lab.training.config import TrainConfig
from ddsa_lab.training.optimizer import make_optimizer

if TYPE_CHECKING:
    from lightning_fabric import Fabric


class Learner:
    """A network with its optimiser and averaged copy, on Fabric's device.

    Args:
        config: optimiser settings, precision aside (Fabric holds it).
        net: the network, with its initial weights.
        fabric: launched already.

    Attributes:
        net: the network being trained.
        kept: the averaged network (`net` itself if `config.ema` is 0); always in eval mode.
    """

    def __init__(self, config: TrainConfig, net: nn.Module, fabric: "Fabric") -> None:
        self.config, self.fabric = config, fabric
        if fabric.world_size > 1:
            share_batch_statistics(net)
        self.net = net.to(memory_format=torch.channels_last).train()
        optimizer = make_optimizer(config, net)
        if config.compile:
            _require_compiler(fabric.device)
        self.forward, self.optimizer = fabric.setup(torch.compile(net) if config.compile else net, optimizer)
        self.kept = copy.deepcopy(self.net).eval().requires_grad_(False) if config.ema else self.net
        self.updates = 0
        self.failed = torch.zeros((), dtype=torch.bool, device=fabric.device)

    def update(self, rainy: Tensor, clean: Tensor, lr: float) -> Tensor:
        """Take one step on (B,3,p,p) patches in [0, 1]; return (L1 loss, PSNR in dB), detached, on the device."""
        rainy, clean = (self._to_device(images) for images in (rainy, clean))
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        restored = self.forward(rainy)
        loss = nn.functional.l1_loss(restored.float(), clean)
        self.optimizer.zero_grad()
        self.fabric.backward(loss)
        norm = nn.utils.clip_grad_norm_(self.net.parameters(), self.config.clip or math.inf)
        self.optimizer.step()
        # Read only when a row is due: asking each step would make a GPU wait for the CPU.
        self.failed |= ~torch.isfinite(loss.detach() + norm)
        self.updates += 1
        if self.config.ema:
            self._average()
        return torch.stack([loss.detach(), rgb_psnr(restored.detach(), clean)])

    def _to_device(self, images: Tensor) -> Tensor:
        images = images.to(self.fabric.device, non_blocking=True)
        return images.contiguous(memory_format=torch.channels_last)

    @torch.no_grad()
    def _average(self) -> None:
        # Young averages forget faster, so that the initial weights don't linger in short runs.
        decay = min(self.config.ema, (1 + self.updates) / (10 + self.updates))
        torch._foreach_lerp_(list(self.kept.parameters()), list(self.net.parameters()), 1 - decay)
        for mine, theirs in zip(self.kept.buffers(), self.net.buffers()):
            mine.copy_(theirs)  # BatchNorm's statistics are running averages already

    def state(self) -> dict[str, Any]:
        """Return what resuming needs, as tensors and plain values."""
        return {
            "net": self.net.state_dict(),
            "kept": self.kept.state_dict() if self.config.ema else None,
            "optimizer": self.optimizer.state_dict(),
            "updates": self.updates,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go back to a `state()`."""
        self.net.load_state_dict(state["net"])
        if self.config.ema:
            self.kept.load_state_dict(state["kept"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.updates = state["updates"]


def rgb_psnr(restored: Tensor, clean: Tensor) -> Tensor:
    """Return 10 log10(1 / mean squared error) in dB over all of `restored`, clamped to [0, 1]."""
    return -10 * (restored.float().clamp(0, 1) - clean).square().mean().clamp_min(1e-10).log10()


class SharedBatchNorm(nn.BatchNorm2d):
    """BatchNorm over the whole batch of all processes, so that sharing a batch changes no gradient.

    torch's SyncBatchNorm does the same on GPUs only. All processes must hold equally many pixels.
    """

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x)
        world = distributed.get_world_size()
        count = world * x.numel() // x.shape[1]
        x32 = x.float()
        mean = _Sum.apply(x32.mean((0, 2, 3), keepdim=True)) / world  # (1, C, 1, 1)
        var = _Sum.apply((x32 - mean).square().mean((0, 2, 3), keepdim=True)) / world
        with torch.no_grad():
            self.num_batches_tracked += 1
            self.running_mean.lerp_(mean.flatten(), self.momentum)
            self.running_var.lerp_(var.flatten() * count / (count - 1), self.momentum)
        normal = (x32 - mean) * torch.rsqrt(var + self.eps)
        return (normal * self.weight.view(1, -1, 1, 1) + self.bias.view(1, -1, 1, 1)).to(x.dtype)


class _Sum(torch.autograd.Function):
    """The sum over all processes, and of all their gradients: each process's loss depends on every term."""

    @staticmethod
    def forward(_ctx: Any, x: Tensor) -> Tensor:
        total = x.clone()
        distributed.all_reduce(total)
        return total

    @staticmethod
    def backward(_ctx: Any, gradient: Tensor) -> Tensor:
        total = gradient.clone()
        distributed.all_reduce(total)
        return total


def share_batch_statistics(net: nn.Module) -> None:
    """Turn every BatchNorm2d of `net` into a SharedBatchNorm, in place; names and tensors stay."""
    for module in net.modules():
        if type(module) is nn.BatchNorm2d:
            module.__class__ = SharedBatchNorm


def _require_compiler(device: torch.device) -> None:
    if device.type == "cpu" and not any(map(shutil.which, ("g++", "clang++", "cl"))):
        raise LabError(
            "compile needs a C++ compiler on CPU, and none was found: install g++ or leave compile off"
        )
