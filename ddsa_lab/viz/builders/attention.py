"""Figures: one attention matrix on its way through the two branches, and sparsity over the whole network."""

import torch

from ddsa_lab.analysis.probe import pick, record
from ddsa_lab.analysis.sparsity import sparsity_table
from ddsa_lab.viz.builders.workbench import HELD_OUT, Drawing, Missing, Workbench
from ddsa_lab.viz.plots import attention_matrix, kept_mask, label_panel, sparsity_over_depth
from ddsa_lab.viz.style import DOUBLE, FAINT, MODE_STYLES, mode_of, subplots


def attention(bench: Workbench) -> Drawing:
    """Draw logits, dense weights, kept keys, sparse weights, fused weights and fused over dense of one head."""
    model, head = bench.model(), 0
    layer = list(model.attention_layers())[-1]
    pair = bench.pair("coffee", "heavy", 128)
    with torch.no_grad(), record(model, layer) as rec:
        model(pair.rainy[None])
    found = pick(rec, layer)
    if found.a is None or not found.branches:
        raise Missing(f"{bench.name} has no dense and sparse branch to fuse: choose a dual network")
    logits, dense, sparse, fused = (
        t[0, head].double() for t in (found.logits, found.dense, found.sparse, found.fused)
    )
    mask, channels = found.mask[0, head], found.channels
    kept, top = int(mask[0].sum()), float(max(dense.max(), sparse.max()))
    figure, axes = subplots((DOUBLE, 4.55), 2, 3)
    strongest = float(logits.abs().max())
    attention_matrix(logits, axes[0, 0], "logits $z$", "RdBu_r", (-strongest, strongest))
    attention_matrix(dense, axes[0, 1], "dense: softmax($z$)", limits=(0, top))
    kept_mask(mask, axes[0, 2], f"kept keys: {kept} of {channels} in each row")
    attention_matrix(sparse, axes[1, 0], "sparse: softmax over kept keys", limits=(0, top))
    attention_matrix(fused, axes[1, 1], f"fused: {found.a:.2f} dense + {found.b:.2f} sparse")
    attention_matrix(fused / dense, axes[1, 2], "fused / dense: two levels in each row", "cividis")
    for ax, letter in zip(axes.flat, "abcdef"):
        label_panel(ax, letter)
    axes[0, 0].set(ylabel="queries")
    axes[1, 0].set(ylabel="queries")
    for ax in axes[1]:
        ax.set_xlabel("keys")
    matrices = {"logits": logits, "dense": dense, "kept": mask.int(), "sparse": sparse, "fused": fused}
    settings = {
        "network": bench.name,
        "layer": layer,
        "head": head,
        "photo": "coffee",
        "rain": "heavy",
        "size": 128,
    }
    return Drawing(
        figure, {"a": found.a, "b": found.b, "k": kept, "channels": channels, **matrices}, settings
    )


def sparsity(bench: Workbench) -> Drawing:
    """Draw effective k, kept mass and gain over depth, for every head, in each network that has them."""
    size, rain = 128, "light"
    tables = {name: _table(bench, name, size, rain) for name in bench.siblings()}
    figure, axes = subplots((DOUBLE, 2.5), 1, 3)
    for name, table in tables.items():
        mode, has_sparse, has_dense = (
            mode_of(name),
            bool((table["b"] != 0).any()),
            bool((table["a"] != 0).any()),
        )
        sparsity_over_depth(table, axes[0], "effective_share", "effective $k$ / $C$", mode)
        axes[0].plot([], [], **MODE_STYLES[mode], label=name)
        if has_sparse:
            sparsity_over_depth(table, axes[1], "kept_mass", "kept mass $m$", mode)
        if has_sparse and has_dense:
            sparsity_over_depth(table, axes[2], "gain", "gain $1 + b / (a m)$", mode)
            start = 1 + float((table["channels"] / table["k"]).mean())
            axes[2].axhline(start, color=FAINT, linewidth=0.7, linestyle=(0, (3, 2)), zorder=0)
            axes[2].set_title("dashed: all keys alike, $a = b$")
    own = tables[bench.name]
    share = float((own["k"] / own["channels"]).mean())
    if (own["b"] != 0).any():
        axes[1].axhline(share, color=FAINT, linewidth=0.7, linestyle=(0, (3, 2)), zorder=0)
        _note(axes[1], share, "if all keys were alike: $k / C$")
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=len(labels))
    for ax, letter in zip(axes, "abc"):
        label_panel(ax, letter)
    drawn = ["layer", "depth", "head", "a", "b", "k", "channels", "effective_share", "kept_mass", "gain"]
    numbers = {
        name: table[drawn].groupby(["layer", "depth", "head"], sort=False, as_index=False).mean()
        for name, table in tables.items()
    }
    return Drawing(
        figure, numbers, {"photos": HELD_OUT, "rain": rain, "size": size, "marks": "mean over photos"}
    )


def _note(ax, y: float, text: str) -> None:
    ax.annotate(
        text, (0.99, y), xycoords=("axes fraction", "data"), xytext=(0, 2), textcoords="offset points", ha="right",
        fontsize=6.5, color=FAINT,
    )  # fmt: skip


def _table(bench: Workbench, name: str, size: int, rain: str):
    model = bench.model(name)
    with torch.no_grad(), record(model) as rec:
        for photo in HELD_OUT:
            model(bench.pair(photo, rain, size).rainy[None])
    table = sparsity_table(rec)
    return table.assign(effective_share=table["effective_k"] / table["channels"])
