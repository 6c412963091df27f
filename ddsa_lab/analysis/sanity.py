"""Does a map depend on what the network learned? Weights are made random, stage after stage, and maps compared.

A method whose map stays the same shows edges of the image, not the network's reasons.

Source: Adebayo et al., "Sanity checks for saliency maps", NeurIPS 2018.
"""

from copy import deepcopy
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from ddsa_lab.analysis.attribution import Attribution, attribute
from ddsa_lab.analysis.targets import Target
from ddsa_lab.errors import LabError
from ddsa_lab.model.network import DerainTransformer, initialise

if TYPE_CHECKING:
    from pandas import DataFrame


def randomised_check(
    model: DerainTransformer,
    image: Tensor,
    target: Target,
    method: str = "integrated_gradients",
    seed: int = 0,
    cascade: bool = True,
    **settings: Any,
) -> "DataFrame":
    """Compare a network's map with those of copies whose weights are random from the output down.

    Args:
        model: trained network; it is not changed.
        image, target, method: see `attribute`.
        seed: of the random weights.
        cascade: one row for each stage (the head, then the head and the last stage, ...); False: only one row,
            all weights random.
        settings: further arguments of `attribute`, such as steps or patch.

    Returns:
        Columns random (the stage that became random in this row), rank_correlation and absolute_rank_correlation
        (Spearman, of signed maps and of `heat`), gap. The first row is the trained network with itself.

    Raises:
        LabError: a network that is not ours.
    """
    import pandas as pd

    if not isinstance(model, DerainTransformer):
        raise LabError(
            f"the check needs a DerainTransformer, whose stages it knows, found {type(model).__name__}"
        )
    trained = attribute(model, image, target, method, **settings)
    rows, copy = [_row("none", trained, trained)], deepcopy(model)
    stages = _from_the_output(copy)
    for i, (name, module) in enumerate(stages):
        initialise(module, seed + i)
        if cascade or i == len(stages) - 1:
            found = attribute(copy, image, target, method, **settings)
            rows.append(_row(name if cascade else "all", trained, found))
    return pd.DataFrame(rows)


def _from_the_output(model: DerainTransformer) -> list[tuple[str, nn.Module]]:
    """Every part that holds convolutions, last to run first."""
    parts: list[tuple[str, nn.Module]] = [("head", model.head)]
    for name, *_ in reversed(model.built_with.stages()):
        parts.append((name, model.get_submodule(name)))
    # Resampling layers between stages have no stage of their own: with the first stage, before the stem.
    parts.append(("resampling", nn.ModuleList([model.down, model.up, model.reduce])))
    return [(n, m) for n, m in [*parts, ("stem", model.stem)] if any(True for _ in m.parameters())]


def _row(name: str, trained: Attribution, found: Attribution) -> dict[str, Any]:
    from scipy.stats import spearmanr

    signed = spearmanr(trained.map.flatten(), found.map.flatten()).statistic
    absolute = spearmanr(trained.heat.flatten(), found.heat.flatten()).statistic
    return {
        "random": name,
        "rank_correlation": float(signed),
        "absolute_rank_correlation": float(absolute),
        "gap": found.gap,
    }
