"""Figure: how networks learned, and how the weights of their two branches moved."""

from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

from ddsa_lab.errors import LabError
from ddsa_lab.viz.builders.workbench import Drawing, Missing, Workbench
from ddsa_lab.viz.plots import label_panel, training_curves
from ddsa_lab.viz.style import DOUBLE, FAINT, subplots

if TYPE_CHECKING:
    from pandas import DataFrame

COLUMNS = ("network", "step", "layer", "quantity", "value")
SHIPPED = "history.csv"


def training(bench: Workbench) -> Drawing:
    """Draw training and validation PSNR, and the branch weights a and b of every layer, over training steps."""
    history = find_history(bench.history)
    # A run that shows only its branch weights, beside others, has no curve of its own.
    scored = history[history.groupby("network")["quantity"].transform(lambda found: found.eq("psnr").any())]
    curves = {name: _wide(rows) for name, rows in scored.groupby("network", sort=False)}
    weights = history[(history["quantity"].isin(("a", "b"))) & history["network"].str.startswith("dual")]
    figure, axes = subplots((DOUBLE, 2.4), 1, 3 if len(weights) else 2)
    training_curves(curves, axes[0])
    validated = {
        name: rows for name, rows in curves.items() if "val_psnr" in rows and rows["val_psnr"].notna().any()
    }
    if validated:
        training_curves(validated, axes[1], "val_psnr", "validation PSNR (dB, rgb)", smooth=1)
    if len(weights):
        _branches(weights, axes[2])
        axes[2].set_title(", ".join(dict.fromkeys(weights["network"])))  # it may be a run of its own
    for ax, letter in zip(axes, "abc"):
        label_panel(ax, letter)
    source = "shipped with the weights" if bench.history is None else bench.history.name
    return Drawing(
        figure, {"history": history}, {"history": source, "running_mean": "9 rows, raw values faint"}
    )


def find_history(path: Path | None) -> "DataFrame":
    """Return histories as a tidy table (see `COLUMNS`): of a run's folder, a folder of runs, a table, or those shipped.

    Raises:
        Missing: none are shipped.
        LabError: a path that is neither.
    """
    import pandas as pd

    if path is None:
        shipped = resources.files("ddsa_lab") / "weights" / SHIPPED
        if not shipped.is_file():
            raise Missing("no training histories are shipped: give the folder of a training run")
        path = Path(str(shipped))
    if path.is_dir():
        runs = [path] if (path / "metrics.csv").is_file() else sorted(path.glob("*/metrics.csv"))
        folders = [run.parent if run.name == "metrics.csv" else run for run in runs] or [path]
        return pd.concat([compact_history(folder) for folder in folders], ignore_index=True)
    try:
        table = pd.read_csv(path)
    except (OSError, ValueError) as error:
        raise LabError(f"{path} is not a training history: {error}") from error
    if set(COLUMNS) - set(table.columns):
        raise LabError(
            f"{path} lacks columns {', '.join(c for c in COLUMNS if c not in table)}: give a run's folder"
        )
    return table


def compact_history(folder: Path, network: str | None = None, rows: int = 250) -> "DataFrame":
    """Return a run's metrics.csv and the branch weights of its sparsity.csv as one small tidy table.

    Args:
        folder: of a training run.
        network: its name; the folder's by default.
        rows: training rows kept at most; more are averaged in equal groups.

    Raises:
        LabError: the folder holds no metrics.csv.
    """
    import pandas as pd

    folder = Path(folder)
    if not (folder / "metrics.csv").is_file():
        raise LabError(f"{folder} holds no metrics.csv: give the folder of a training run")
    metrics = pd.read_csv(folder / "metrics.csv")
    group = -(-len(metrics) // rows)
    means = metrics[["step", "loss", "psnr"]].groupby(metrics.index // group).mean()
    means["step"] = metrics["step"].groupby(metrics.index // group).max()
    tables = [means.melt("step", var_name="quantity")]
    if "val_psnr" in metrics:
        tables.append(metrics[["step", "val_psnr"]].dropna().melt("step", var_name="quantity"))
    if (folder / "sparsity.csv").is_file():
        sparsity = pd.read_csv(folder / "sparsity.csv")
        branches = sparsity.groupby(["step", "layer"], sort=False)[["a", "b"]].first().reset_index()
        tables.append(branches.melt(["step", "layer"], var_name="quantity"))
    table = pd.concat(tables, ignore_index=True).assign(network=network or folder.name)
    return table.reindex(columns=list(COLUMNS))


def _wide(rows: "DataFrame") -> "DataFrame":
    """A network's quantities that belong to no layer, one column each."""
    rows = rows[rows["layer"].isna()]
    return rows.pivot_table(index="step", columns="quantity", values="value").reset_index()


def _branches(weights: "DataFrame", ax) -> None:
    """a solid, b dashed; layers from dark to light in forward order."""
    import matplotlib as mpl

    layers = list(dict.fromkeys(weights["layer"]))
    colours = mpl.colormaps["viridis"]([0.9 * i / max(1, len(layers) - 1) for i in range(len(layers))])
    for colour, layer in zip(colours, layers):
        for quantity, line in (("a", "-"), ("b", "--")):
            rows = weights[(weights["layer"] == layer) & (weights["quantity"] == quantity)]
            ax.plot(rows["step"], rows["value"], color=colour, linestyle=line, linewidth=1.0)
        ax.plot([], [], color=colour, label=layer)
    ax.axhline(0.2, color=FAINT, linewidth=0.6, zorder=0)
    ax.plot([], [], color="black", label="$a$ (dense)")
    ax.plot([], [], color="black", linestyle="--", label="$b$ (sparse)")
    ax.set(xlabel="training step", ylabel="branch weight")
    ax.grid(axis="y", visible=True)
    ax.legend(
        fontsize=5.5,
        ncols=3,
        handlelength=1.4,
        columnspacing=0.8,
        loc="lower center",
        bbox_to_anchor=(0.5, 1.1),
    )
