"""A study's scores and table, rebuilt from its run folders alone."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from ddsa_lab.errors import LabError, choose
from ddsa_lab.evaluation.metrics import score
from ddsa_lab.evaluation.statistics import compare
from ddsa_lab.evaluation.tables import to_latex, to_markdown, write_csv
from ddsa_lab.files import atomic_write
from ddsa_lab.training.runs import COST_SIDE, SCORES, is_done, read_result

if TYPE_CHECKING:
    import pandas as pd

_FACTS = ("variant", "seed", "parameters", f"macs_{COST_SIDE}", "steps", "seconds")


def study_scores(restored: Tensor, clean: Tensor) -> list[dict[str, Any]]:
    """Score one image under the deraining papers' protocol and on RGB; for `run_study(score=...)`."""
    return [{"protocol": name, **score(restored, clean, name)} for name in ("y_uint8", "rgb")]


def collect_runs(out: str | Path) -> "pd.DataFrame":
    """Return the scores of all finished runs in a study's folder, one row a run, image and protocol.

    Columns: variant, seed, parameters, macs_256, steps, seconds, image, scene, protocol, the scores, and as
    input_... those of the untouched input. `attrs["unfinished"]` names the runs that were left out.

    Raises:
        LabError: no finished runs there, or a damaged one.
    """
    import pandas as pd

    out = Path(out)
    folders = sorted(path.parent for path in out.glob("*/seed-*/config.json"))
    done = [folder for folder in folders if is_done(folder)]
    if not done:
        raise LabError(f"{out} holds no finished runs of a study (VARIANT/seed-N/result.json)")
    frames = []
    for folder in done:
        facts = read_result(folder)
        try:
            scores = pd.read_csv(folder / SCORES)
        except (OSError, ValueError) as error:
            raise LabError(
                f"{folder / SCORES} cannot be read ({error}): delete result.json beside it"
            ) from error
        frames.append(pd.DataFrame({name: facts[name] for name in _FACTS}, index=scores.index).join(scores))
    frame = pd.concat(frames, ignore_index=True).sort_values(
        ["variant", "seed"], kind="stable", ignore_index=True
    )
    frame.attrs["unfinished"] = [str(folder.relative_to(out)) for folder in folders if not is_done(folder)]
    return frame


def study_table(
    out: "str | Path | pd.DataFrame",
    baseline: str | None = None,
    metric: str = "psnr",
    protocol: str | None = None,
    **how: Any,
) -> "pd.DataFrame":
    """Return one row a variant: mean score and gain, cost, and its difference to the baseline with interval and verdict.

    Columns: variant, seeds, images, the metric, gain (above the untouched input), parameters, macs_256, steps and
    seconds (means over seeds), then difference, low, high, effect and verdict as `compare` defines them, empty for
    the baseline. Several images of one scene count as one draw.

    Args:
        out: a study's folder, or what `collect_runs` returned.
        baseline: the variant that all others are compared with; "dense" if there is one, else the first.
        metric: a column of the scores.
        protocol: which protocol's rows; the first in the scores if not given.
        how: `level`, `resamples`, `seed` and `higher_is_better` of `compare`.

    Raises:
        LabError: no finished runs, or an unknown name.
    """
    import pandas as pd

    frame = collect_runs(out) if isinstance(out, str | Path) else out
    protocols = list(dict.fromkeys(frame["protocol"]))
    frame = frame[frame["protocol"] == choose("protocol", protocol or protocols[0], protocols)]
    choose("metric", metric, [name for name in frame.columns if f"input_{name}" in frame.columns])
    variants = list(dict.fromkeys(frame["variant"]))
    baseline = choose("variant", baseline or ("dense" if "dense" in variants else variants[0]), variants)
    table = _means(frame, metric)
    if len(variants) > 1:
        scenes = dict(zip(frame["image"], frame["scene"].astype(str)))
        found = compare(frame, baseline, metric, by="variant", clusters=scenes, **how)
        table = table.merge(found[["variant", "difference", "low", "high", "effect", "verdict"]], how="left")
    order = pd.Categorical(table["variant"], [baseline, *(name for name in variants if name != baseline)])
    return table.iloc[order.argsort()].reset_index(drop=True)


def _means(frame: "pd.DataFrame", metric: str) -> "pd.DataFrame":
    grouped = frame.groupby("variant", sort=False)
    means = grouped[[metric, f"input_{metric}", "parameters", f"macs_{COST_SIDE}", "steps", "seconds"]].mean()
    counts = grouped[["seed", "image"]].nunique()
    table = means.reset_index()
    table.insert(1, "seeds", counts["seed"].to_numpy())
    table.insert(2, "images", counts["image"].to_numpy())
    table.insert(4, "gain", table[metric] - table.pop(f"input_{metric}"))
    return table.astype({"parameters": int, f"macs_{COST_SIDE}": int})


def write_study(out: str | Path, formats: Mapping[str, str] | None = None, **how: Any) -> "pd.DataFrame":
    """Write a study's all_scores.csv and its table as table.csv, table.md and table.tex into its folder.

    Args:
        out: the study's folder.
        formats: format specifications by column for the Markdown and LaTeX tables.
        how: arguments of `study_table`.

    Returns:
        The table.

    Raises:
        LabError: see `study_table`; or the folder cannot be written.
    """
    out = Path(out)
    frame = collect_runs(out)
    table = study_table(frame, **how)
    write_csv(frame, out / "all_scores.csv")
    write_csv(table, out / "table.csv")
    shown = {
        "gain": "+.2f",
        "seconds": ".0f",
        "steps": ".0f",
        "parameters": ",",
        f"macs_{COST_SIDE}": ",",
    } | dict(formats or {})
    for name, render in (("table.md", to_markdown), ("table.tex", to_latex)):
        with atomic_write(out / name) as temporary:
            temporary.write_text(render(table, shown), encoding="utf-8")
    return table
