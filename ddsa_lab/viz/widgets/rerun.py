"""A network over one image, ready to be run again from a layer on: what lies before a change is remembered."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from ddsa_lab.errors import choose
from ddsa_lab.model.network import DerainTransformer


class Rerun:
    """Runs a network over one image, and again from any attention layer on, with equal results.

    A slider changes one layer; the blocks before it would compute the same numbers again. The first pass remembers
    every block's output (about 40 MB for the tiny network at 256 x 256), and a later one begins at the layer that
    was changed.

    Args:
        model: in evaluation mode. Its weights must stay as they are; mode, keep, a and b may be changed.
        image: (3, H, W) in [0, 1].
    """

    def __init__(self, model: DerainTransformer, image: Tensor):
        self.model, self.image = model, image[None]
        self.layers = list(model.attention_layers())
        self._remembered: dict[str, Tensor] = {}
        with torch.inference_mode():
            self.base = self._forward(None)

    def run(self, since: str) -> Tensor:
        """Return the network's output (3, H, W), clamped to [0, 1], as the model stands now.

        Args:
            since: the first attention layer that may differ from what it was when this object was made.

        Raises:
            LabError: no such layer.
        """
        choose("layer", since, self.layers)
        with torch.inference_mode():
            return self._forward(since)

    def _forward(self, since: str | None) -> Tensor:
        """The network's own forward pass (`DerainTransformer.forward`), block by block."""
        model, changed = self.model, since is None

        def step(name: str, compute: Callable[[], Tensor]) -> Tensor:
            nonlocal changed
            changed = changed or name == since
            if since is None:
                self._remembered[name] = compute()
            return compute() if changed and since is not None else self._remembered[name]

        def stage(name: str, blocks: nn.Sequential, x: Tensor) -> Tensor:
            for i, block in enumerate(blocks):
                x = step(f"{name}.{i}", lambda x=x, block=block: block(x))
            return x

        height, width = self.image.shape[-2:]
        m = model.built_with.multiple
        x = pad(self.image, (0, -width % m, 0, -height % m), mode="replicate")
        x = step("stem", lambda: model.stem(x.contiguous(memory_format=torch.channels_last)))
        x = stage("first", model.first, x)
        skips = []
        for i, (blocks, down) in enumerate(zip(model.encoder, model.down)):
            x = stage(f"encoder.{i}", blocks, x)
            skips.append(x)
            x = step(f"down.{i}", lambda x=x, down=down: down(x))
        x = stage("latent", model.latent, x)
        for i in reversed(range(len(skips))):
            parts = (x, skips[i])
            x = step(f"join.{i}", lambda i=i, parts=parts: self._join(i, *parts))
            x = stage(f"decoder.{i}", model.decoder[i], x)
        x = model.head(stage("refinement", model.refinement, x))
        return (self.image + x[..., :height, :width])[0].clamp(0, 1)

    def _join(self, level: int, below: Tensor, skip: Tensor) -> Tensor:
        return self.model.reduce[level](torch.cat([self.model.up[level](below), skip], dim=1))
