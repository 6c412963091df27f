"""What an attribution explains: one number made of an image, read off in a window of the output.

A classifier has a score for each class; a restoration network has only an image. So a target names the
question: how bright is this patch, how wrong, how much rain was taken from it, how much edge does it hold?
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ddsa_lab.errors import LabError

# (output, input), both (B, 3, h, w) cut to the window -> (B,)
Measure = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Window:
    """A rectangle of pixels."""

    top: int
    left: int
    height: int
    width: int

    @classmethod
    def of(cls, value: "Window | tuple[int, int, int, int]") -> "Window":
        """Return a window from (top, left, height, width)."""
        if isinstance(value, Window):
            return value
        if len(value) != 4:
            raise LabError(f"window is {value}, but it must be (top, left, height, width)")
        return cls(*map(int, value))

    @classmethod
    def whole(cls, image: Tensor) -> "Window":
        """Return the window that covers all of an image (..., H, W)."""
        return cls(0, 0, *image.shape[-2:])

    def check(self, image: Tensor) -> None:
        """Refuse a window that is empty or reaches outside an image (..., H, W).

        Raises:
            LabError: naming both.
        """
        height, width = image.shape[-2:]
        fits = min(self.top, self.left) >= 0 and min(self.height, self.width) >= 1
        if not fits or self.top + self.height > height or self.left + self.width > width:
            raise LabError(
                f"window {self} is not inside the {height} x {width} image: rows and columns count from 0"
            )

    def cut(self, image: Tensor) -> Tensor:
        """Return (..., h, w) of (..., H, W)."""
        return image[..., self.top : self.top + self.height, self.left : self.left + self.width]

    def __str__(self) -> str:
        return f"{self.height} x {self.width} at ({self.top}, {self.left})"


@dataclass(frozen=True, eq=False)
class Target:
    """A number for each image of a batch: `measure` of what the window shows of output and input.

    Write your own: Target("red", window, lambda output, image: output[:, 0].flatten(1).sum(1)).
    """

    name: str
    window: Window
    measure: Measure

    def __call__(self, output: Tensor, image: Tensor) -> Tensor:
        """Return (B,) of output and input, both (B, 3, H, W)."""
        return self.measure(self.window.cut(output), self.window.cut(image))

    def __str__(self) -> str:
        return f"{self.name} in {self.window}"


def patch_sum(window: Window | tuple[int, int, int, int]) -> Target:
    """How bright is the output in the window: the sum of its values, all channels."""
    return Target("patch sum", Window.of(window), lambda output, _: output.flatten(1).sum(1))


def patch_error(window: Window | tuple[int, int, int, int], clean: Tensor) -> Target:
    """How wrong is the output in the window: the sum of squared differences to `clean` (3, H, W).

    Raises:
        LabError: the window is not inside `clean`.
    """
    window = Window.of(window)
    window.check(clean)
    wanted = window.cut(clean)
    return Target(
        "patch error", window, lambda output, _: (output - wanted.to(output)).square().flatten(1).sum(1)
    )


def rain_removed(window: Window | tuple[int, int, int, int]) -> Target:
    """How much was taken away in the window: the sum of input - output.

    The network adds its result to its input, so this is what the network proper computed: the copied
    input, which would dominate every other map, cancels.
    """
    return Target("rain removed", Window.of(window), lambda output, image: (image - output).flatten(1).sum(1))


def edge_content(window: Window | tuple[int, int, int, int]) -> Target:
    """How much edge does the output hold: the sum of |differences| of neighbours inside the window.

    Source: the gradient detector of local attribution maps, Gu and Dong, CVPR 2021, section 3.
    """

    def measure(output: Tensor, _: Tensor) -> Tensor:
        return sum(output.diff(dim=dim).abs().flatten(1).sum(1) for dim in (-2, -1))

    return Target("edge content", Window.of(window), measure)


def scalar(model: nn.Module, target: Target) -> Callable[[Tensor], Tensor]:
    """Return the function (B, 3, H, W) -> (B,) that attribution methods differentiate."""
    return lambda image: target(model(image), image)


def one_image(image: Tensor, target: Target, like: Tensor) -> Tensor:
    """Return `image` as (1, 3, H, W) with the type and device of `like`, checked against the target's window.

    Raises:
        LabError: not one image, or a window outside it.
    """
    if image.dim() == 4 and len(image) == 1:
        image = image[0]
    if image.dim() != 3 or image.shape[0] != 3:
        raise LabError(f"one image (3, H, W) is explained at a time, found shape {tuple(image.shape)}")
    target.window.check(image)
    return image.detach().to(like if like.is_floating_point() else torch.empty(0)).unsqueeze(0)
