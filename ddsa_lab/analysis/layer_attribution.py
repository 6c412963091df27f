"""Which feature maps inside the network made it do that?

Hooks see a module once for each run, and SEFN runs one convolution three times. So the network is explained
on a copy in which the three uses are three modules, each with an output of its own.
"""

from copy import deepcopy

import torch
from torch import Tensor, nn

from ddsa_lab.analysis.attribution import affordable_chunk, baseline_image, frozen, held_keys
from ddsa_lab.analysis.targets import Target, one_image, scalar
from ddsa_lab.errors import LabError, choose
from ddsa_lab.model.feedforward import SEFN

LAYER_METHODS = ("gradient_x_activation", "conductance")


def layer_attribution(
    model: nn.Module,
    image: Tensor,
    target: Target,
    layer: str,
    method: str = "gradient_x_activation",
    steps: int = 16,
    chunk: int | None = None,
) -> Tensor:
    """Explain one number of the output by the feature maps that a layer puts out.

    A layer that runs several times in a pass has no single output, and Captum would silently keep one of
    them. SEFN's shared convolution can still be explained: "latent.0.ffn.depthwise.1" is its second use.

    Args:
        model, image, target, chunk: as for `attribute`.
        layer: name of a module ("encoder.0.0", "latent.0.attention"); SEFN's "...ffn.depthwise.0", ".1", ".2".
        method: "gradient_x_activation", or "conductance" (what flows through each feature along the path from
            the blurred image, with the image's kept keys held).
        steps: points on that path.

    Returns:
        (C, h, w) on the CPU, signed.

    Raises:
        LabError: an unknown layer or method, or a layer that does not run exactly once in a pass.
    """
    from captum.attr import LayerConductance, LayerGradientXActivation

    choose("layer attribution method", method, LAYER_METHODS)
    x = one_image(image, target, next(model.parameters(), image))
    model = unshared(model)
    name = choose("layer", layer, [name for name, _ in model.named_modules() if name])
    module = model.get_submodule(name)
    function = scalar(model, target)
    with frozen(model):
        _refuse_unless_once(model, module, name, x)
        if method == "conductance":
            chunk = min(chunk or affordable_chunk(model, x), steps)
            with held_keys(model, x):
                found = LayerConductance(function, module).attribute(
                    x, baseline_image(x, "blur"), n_steps=steps, internal_batch_size=chunk
                )
        else:
            found = LayerGradientXActivation(function, module).attribute(x)
    return found[0].detach().cpu()


class _Turns(nn.Module):
    """Copies of one module that take turns: what was one module run n times is n modules run once."""

    def __init__(self, module: nn.Module, count: int):
        super().__init__()
        for i in range(count):
            self.add_module(str(i), deepcopy(module))
        self.count, self.turn = count, 0

    def restart(self, *_: object) -> None:
        self.turn = 0

    def forward(self, x: Tensor) -> Tensor:
        module = self.get_submodule(str(self.turn))
        self.turn = (self.turn + 1) % self.count
        return module(x)


def unshared(model: nn.Module) -> nn.Module:
    """Return a copy with equal outputs in which SEFN's convolution, used three times, is three modules."""
    model = deepcopy(model)
    for module in model.modules():
        if isinstance(module, SEFN):
            module.depthwise = _Turns(module.depthwise, 3)
            module.register_forward_pre_hook(module.depthwise.restart)
    return model


def _refuse_unless_once(model: nn.Module, module: nn.Module, name: str, x: Tensor) -> None:
    runs = 0

    def count(*_: object) -> None:
        nonlocal runs
        runs += 1

    hook = module.register_forward_hook(count)
    try:
        with torch.no_grad():
            model(x)
    finally:
        hook.remove()
    if runs != 1:
        kind = "its weights are used directly" if runs == 0 else "it has one output for each run"
        near = (
            ", ".join(f"{name}.{i}" for i, _ in enumerate(module.children()))
            if runs
            else name.rpartition(".")[0]
        )
        raise LabError(f"layer {name!r} runs {runs} times in a pass ({kind}): choose {near}")
