"""Which input pixels made the network do that? Captum's methods for networks whose output is an image.

Every map says how far it can be trusted: `gap` is the part of the explained change that the map does not
account for. Methods that are not valid for these networks are refused with the reason (`REFUSED`).
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import psutil
import torch
from torch import Tensor, nn

from ddsa_lab.analysis.probe import record
from ddsa_lab.analysis.surgery import surgery
from ddsa_lab.analysis.targets import (
    Target,
    Window,
    edge_content,
    one_image,
    patch_error,
    patch_sum,
    rain_removed,
    scalar,
)
from ddsa_lab.errors import LabError, choose
from ddsa_lab.evaluation.benchmark import evaluating
from ddsa_lab.model.network import DerainTransformer
from ddsa_lab.model.restore import bytes_per_pixel

__all__ = [
    "METHODS",
    "REFUSED",
    "Attribution",
    "Target",
    "Window",
    "attribute",
    "edge_content",
    "gaussian_blur",
    "patch_error",
    "patch_sum",
    "rain_removed",
]

METHODS = ("integrated_gradients", "gradient_x_input", "occlusion")
_MULTIPLIERS = (
    "it gives each module one multiplier, which the products of attention (softmax and top-k of q k, times v) and "
    "the gate do not have, and SEFN uses one convolution three times"
)
_RELUS = (
    "it rewrites the gradient of ReLU alone, and most of this network's nonlinearity is attention and gates"
)
REFUSED = {
    "deep_lift": _MULTIPLIERS,
    "deep_lift_shap": _MULTIPLIERS,
    "lrp": _MULTIPLIERS,
    "guided_backprop": _RELUS,
    "deconvolution": _RELUS,
}
BASELINE_BLUR = 4.0  # standard deviation in pixels: wider than streaks, so that little is left of them


@dataclass(frozen=True, eq=False)
class Attribution:
    """A map with what is needed to judge it.

    The explained change is `value - start`: the target for the image, minus that for the baseline. A map
    that is complete sums to it. Where kept keys were held, `start` is the baseline's target under the image's
    keys, and `choice` is what the baseline would gain or lose by keeping keys of its own choice.
    """

    map: Tensor  # (3, H, W), signed: what each value contributes to the target
    method: str
    target: str
    window: Window
    value: float
    start: float
    steps: int | None = None
    choice: float | None = None  # None: keys were free

    @property
    def change(self) -> float:
        """What the map should sum to."""
        return self.value - self.start

    @property
    def gap(self) -> float:
        """|sum of the map - change| / |change|: 0 for a complete map; infinite where nothing changed but the map's sum.

        Path methods approach 0 with more steps, if the kept keys are held: otherwise what is missing is the
        jumps where they change. Gradient x input and occlusion promise nothing.
        """
        missing = abs(float(self.map.double().sum()) - self.change)
        return missing / abs(self.change) if self.change else (float("inf") if missing else 0.0)

    @property
    def heat(self) -> Tensor:
        """(H, W), >= 0: absolute contributions, channels added."""
        return self.map.abs().sum(0)

    def __str__(self) -> str:
        steps = f" at {self.steps} steps" if self.steps else ""
        steps += ", keys held" if self.choice is not None else ""
        return f"{self.method.replace('_', ' ')} of {self.target}: completeness gap {self.gap:.2%}{steps}"

    def __repr__(self) -> str:
        return f"<{self}>"


def attribute(
    model: nn.Module,
    image: Tensor,
    target: Target,
    method: str = "integrated_gradients",
    baseline: str | Tensor = "blur",
    steps: int = 64,
    patch: int = 8,
    stride: int | None = None,
    chunk: int | None = None,
    hold_keys: bool = True,
) -> Attribution:
    """Explain one number of a network's output by the pixels of its input.

    A network that keeps its strongest keys jumps where another key becomes one of them, and no gradient sees a
    jump: along a path 2 to 4 % of the change (once 25 %) went unexplained however many steps were taken. So
    integrated gradients hold the keys that the image itself kept, which makes the function continuous; without
    sparse branch nothing is held. `Attribution.choice` says what the choice of keys does.

    Args:
        model: maps (B, 3, H, W) to the same shape; used in evaluation mode and left as it was.
        image: (3, H, W) in [0, 1].
        target: from `patch_sum`, `patch_error`, `rain_removed`, `edge_content`, or your own.
        method: one of `METHODS`. Integrated gradients run along the straight line from the baseline; occlusion
            replaces squares by the baseline; gradient x input has a black baseline.
        baseline: "blur" (the image without details), "black", or an image (3, H, W).
        steps: points on the path of integrated gradients.
        patch, stride: side of the occluding square, and the distance between two (the side).
        chunk: images that pass through the network at a time; None follows from the free memory.
        hold_keys: keep the image's own keys along the path of integrated gradients. The other methods have no path.

    Returns:
        Attribution with a (3, H, W) map on the CPU. Occlusion spreads each square's effect evenly over it.

    Raises:
        LabError: an unknown method, one that is not valid for these networks, a window outside the image, or a
            baseline of another size.
    """
    if method in REFUSED:
        raise LabError(
            f"{method} is not valid for these networks: {REFUSED[method]}; choose one of {', '.join(METHODS)}"
        )
    choose("attribution method", method, METHODS)
    if min(steps, patch, stride or 1, chunk or 1) < 1:
        raise LabError(f"steps {steps}, patch {patch}, stride {stride} and chunk {chunk} must be at least 1")
    x = one_image(image, target, next(model.parameters(), image))
    start = baseline_image(x, "black" if method == "gradient_x_input" else baseline)
    function, chunk = scalar(model, target), chunk or affordable_chunk(model, x)
    with frozen(model):
        if method == "integrated_gradients":
            with held_keys(model, x if hold_keys else None) as held:
                found = _integrated(function, x, start, steps, chunk)
                value, base = evaluate(function, x), evaluate(function, start)
            choice = evaluate(function, start) - base if held else None
            return Attribution(
                found[0].detach().cpu(), method, str(target), target.window, value, base, steps, choice
            )
        if method == "occlusion":
            found = _occluded(function, x, start, min(patch, *x.shape[-2:]), stride, chunk)
        else:
            found = _gradient_x_input(function, x)
        value, base = evaluate(function, x), evaluate(function, start)
    return Attribution(found[0].detach().cpu(), method, str(target), target.window, value, base)


def _integrated(function, x: Tensor, start: Tensor, steps: int, chunk: int) -> Tensor:
    from captum.attr import IntegratedGradients

    return IntegratedGradients(function).attribute(
        x, start, n_steps=steps, internal_batch_size=min(chunk, steps)
    )


def _gradient_x_input(function, x: Tensor) -> Tensor:
    from captum.attr import InputXGradient

    return InputXGradient(function).attribute(x.clone().requires_grad_())


def _occluded(function, x: Tensor, start: Tensor, patch: int, stride: int | None, chunk: int) -> Tensor:
    from captum.attr import Occlusion

    stride = min(stride or patch, patch)  # a longer one would leave pixels out
    shape, step = (3, patch, patch), (3, stride, stride)
    with torch.no_grad():
        effect = Occlusion(function).attribute(x, shape, step, start, perturbations_per_eval=chunk)
    return effect / (3 * patch**2)  # Captum gives every value of a square the square's whole effect


def gaussian_blur(image: Tensor, sigma: float) -> Tensor:
    """Blur (..., H, W) with a Gaussian of standard deviation `sigma` pixels; edges are repeated outwards."""
    radius = int(4 * sigma + 0.5)
    if radius == 0:
        return image
    offsets = torch.arange(-radius, radius + 1, device=image.device, dtype=image.dtype)
    weights = torch.exp(-(offsets**2) / (2 * sigma**2))
    weights = weights / weights.sum()
    flat = image.reshape(-1, 1, *image.shape[-2:])  # (planes, 1, H, W)
    for shape, sides in (((1, 1, -1, 1), (0, 0, radius, radius)), ((1, 1, 1, -1), (radius, radius, 0, 0))):
        flat = nn.functional.conv2d(nn.functional.pad(flat, sides, mode="replicate"), weights.reshape(shape))
    return flat.reshape(image.shape)


def baseline_image(x: Tensor, baseline: str | Tensor) -> Tensor:
    """Return where a path to `x` (1, 3, H, W) starts: "blur", "black", or the image given.

    Raises:
        LabError: another name, or an image of another size.
    """
    if isinstance(baseline, Tensor):
        if baseline.shape[-3:] != x.shape[1:]:
            raise LabError(f"baseline has shape {tuple(baseline.shape)}, but the image {tuple(x.shape[1:])}")
        return baseline.detach().to(x).reshape(x.shape)
    choose("baseline", baseline, ("blur", "black"))
    return gaussian_blur(x, BASELINE_BLUR) if baseline == "blur" else torch.zeros_like(x)


def evaluate(function: Callable[[Tensor], Tensor], x: Tensor) -> float:
    """Return the target's value for one image (1, 3, H, W)."""
    with torch.no_grad():
        return function(x).item()


@contextmanager
def held_keys(model: nn.Module, x: Tensor | None) -> Iterator[bool]:
    """Make every sparse branch keep the keys that it keeps for `x` (1, 3, H, W), whatever the input.

    Yields:
        Whether anything is held: False without `x`, and for networks without sparse branches.
    """
    sparse: list[str] = []
    if x is not None and isinstance(model, DerainTransformer):
        layers = model.attention_layers().items()
        sparse = [name for name, layer in layers if layer.weights.branches()[1]]
    if not sparse:
        yield False
        return
    with torch.no_grad(), record(model, sparse) as rec:
        model(x)
    with surgery(model, layers=sparse, masks=rec):
        yield True


@contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """In evaluation mode, without gradients of parameters; as it was afterwards."""
    learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
    try:
        for parameter in learning:
            parameter.requires_grad_(False)
        with evaluating([model]), torch.enable_grad():
            yield
    finally:
        for parameter in learning:
            parameter.requires_grad_(True)


def affordable_chunk(model: nn.Module, x: Tensor, share: float = 0.25, limit: float = 1.5e9) -> int:
    """How many images of x's size can pass forward and back at a time, from the free memory; at least 1."""
    blocks = model.built_with.block_count if isinstance(model, DerainTransformer) else 1
    needed = bytes_per_pixel(model) * blocks * x.shape[-2] * x.shape[-1]
    if x.device.type == "cuda":
        free = torch.cuda.mem_get_info(x.device)[0] * share
    else:
        free = min(psutil.virtual_memory().available * share, limit)
    return max(1, int(free / needed))
