"""The main job in small: three networks that differ only in their attention, compared on unseen photos."""

import json
import platform
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ddsa_lab.errors import LabError
from ddsa_lab.files import atomic_write, write_json

MODES = ("dense", "sparse", "dual")
RAIN = "heavy"  # light rain leaves too little to gain in two minutes of training
STEPS = 200
LR = 2e-3
OPTIMIZER = "muon"  # ahead of AdamW in runs as short as this
TRIAL = 12  # steps that measure the speed when a time is given; the first three are left out


def demo(
    out: str | Path,
    steps: int | None = None,
    seconds: float | None = None,
    seed: int = 0,
    device: str = "cpu",
) -> "Any":
    """Train, compare and draw; returns the table of mean scores (pandas DataFrame).

    Writes into `out`: results.csv (a row an image and method), results.json (settings, versions, seconds, parameters,
    means), the networks as MODE.safetensors, and comparison.png. Training folders stand in out/training; a demo
    that was interrupted goes on from them.

    Args:
        out: folder.
        steps: of each network; 200 by default.
        seconds: instead of steps: time for training all three. A short trial turns it into steps, so that
            all three still take the same number.
        seed: decides initial weights, patches and rain.
        device: "cpu" or "cuda".

    Raises:
        LabError: steps or seconds that are not positive, both given, or a folder of another demo.
    """
    from ddsa_lab.data.datasets import held_out_pairs
    from ddsa_lab.evaluation.benchmark import MemoryPair, evaluate_folder, summary
    from ddsa_lab.model.checkpoints import save

    out, started = Path(out), time.monotonic()
    if steps is not None and seconds is not None:
        raise LabError("give steps or seconds, not both")
    if (steps is not None and steps < 1) or (seconds is not None and seconds <= 0):
        raise LabError("steps and seconds must be positive")
    name = (
        torch.cuda.get_device_name()
        if device.startswith("cuda")
        else f"CPU, {torch.get_num_threads()} threads"
    )
    print(
        f"Training three tiny networks on {name}: the same photos, rain, order and steps; only the attention differs."
    )
    steps = (
        _earlier_steps(out, seed)
        or steps
        or (STEPS if seconds is None else _affordable(seconds, seed, device))
    )
    write_json(out / "demo.json", {"steps": steps, "seed": seed})
    results = {mode: _train(mode, steps, seed, device, out) for mode in MODES}
    models = {mode: result.model for mode, result in results.items()}
    pairs = [MemoryPair(name, pair.rainy, pair.clean) for name, pair in held_out_pairs(RAIN, seed, size=256)]
    methods = {"median": median, "total variation": total_variation, **models}
    frame = evaluate_folder(methods, pairs, protocols=("rgb", "y_uint8"))
    table = summary(frame)
    with atomic_write(out / "results.csv") as path:
        frame.to_csv(path, index=False)
    for mode, model in models.items():
        save(model, out / f"{mode}.safetensors", {"made_by": f"ddsa-lab demo, {steps} steps, seed {seed}"})
    facts = _facts(results, table, steps, seed, name) | {
        "seconds_in_all": round(time.monotonic() - started, 1)
    }
    write_json(out / "results.json", facts)
    _draw(out, pairs, models, results)
    _report(table, out, facts["seconds_in_all"])
    return table


def median(rainy: Tensor) -> Tensor:
    """scikit-image's 5x5 median of each channel, (3, H, W) -> (3, H, W)."""
    import numpy as np
    from skimage.filters import median as filtered

    return torch.from_numpy(np.stack([filtered(plane, np.ones((5, 5))) for plane in rainy.numpy()]))


def total_variation(rainy: Tensor) -> Tensor:
    """scikit-image's total-variation filter (Chambolle), (3, H, W) -> (3, H, W)."""
    from skimage.restoration import denoise_tv_chambolle

    return torch.from_numpy(denoise_tv_chambolle(rainy.numpy(), weight=0.1, channel_axis=0)).float()


def _config(mode: str, seed: int, **budget: Any):
    from ddsa_lab.model.network import NetworkConfig
    from ddsa_lab.training.config import TrainConfig

    network = NetworkConfig.preset("tiny", mode=mode)
    return TrainConfig(network=network, rain=RAIN, optimizer=OPTIMIZER, lr=LR, ema=0.99, seed=seed, **budget)


def _train(mode: str, steps: int, seed: int, device: str, out: Path):
    from ddsa_lab.training.loop import fit

    folder = out / "training" / mode
    resume = (folder / "config.json").is_file()
    return fit(
        _config(mode, seed, steps=steps), folder, resume=resume, label=f"{mode:>6}", accelerator=device
    )


def _earlier_steps(out: Path, seed: int) -> int | None:
    """Steps of an interrupted demo in `out`, so that its networks go on; None where there is none."""
    try:
        earlier = json.loads((out / "demo.json").read_text())
    except (OSError, ValueError):
        return None
    return (
        earlier.get("steps") if earlier.get("seed") == seed and not (out / "results.json").exists() else None
    )


def _affordable(seconds: float, seed: int, device: str) -> int:
    """Steps of each of three networks that fit in `seconds`, from a short trial of the slowest, dual."""
    import tempfile

    from ddsa_lab.training.loop import fit

    times: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        config = _config("dual", seed, steps=TRIAL, log_every=1)
        fit(
            config,
            folder,
            progress=False,
            accelerator=device,
            callbacks=[lambda _, row: times.append(row["seconds"])],
        )
    return max(20, int(seconds / len(MODES) * (TRIAL - 3) / (times[-1] - times[2])))


def _facts(results: dict, table, steps: int, seed: int, device: str) -> dict[str, Any]:
    from ddsa_lab.model.cost import count_macs, count_parameters

    networks = {
        mode: {
            "parameters": count_parameters(result.model.config),
            "macs_256x256": count_macs(result.model.config, 256, 256),
            "seconds": round(result.seconds, 1),
            "config": result.model.config.to_dict(),
        }
        for mode, result in results.items()
    }
    packages = ("ddsa-lab", "torch", "numpy", "scikit-image", "lightning-fabric")
    return {
        "settings": {
            "rain": RAIN,
            "steps": steps,
            "seed": seed,
            "optimizer": OPTIMIZER,
            "lr": LR,
            "patch": 64,
            "batch": 8,
        },
        "device": device,
        "machine": f"{platform.machine()}, {platform.system()}, Python {platform.python_version()}",
        "versions": {package: version(package) for package in packages},
        "networks": networks,
        "scores": table.to_dict("records"),
    }


def _draw(out: Path, pairs: list, models: dict, results: dict) -> None:
    from ddsa_lab.model.restore import derain
    from ddsa_lab.viz.comparison import comparison

    rows = [
        {
            "rainy": pair.rainy,
            **{mode: derain(model.cpu(), pair.rainy) for mode, model in models.items()},
            "clean": pair.clean,
        }
        for pair in pairs
    ]
    histories = {mode: result.history for mode, result in results.items()}
    comparison(out / "comparison.png", rows, histories, "clean")


def _report(table, out: Path, seconds: float) -> None:
    from ddsa_lab.evaluation.tables import to_markdown

    shown = table[table["protocol"] == "rgb"][["model", "psnr", "ssim", "gain"]]
    print(
        f"\nHeld-out photos under {RAIN} rain (protocol rgb: mean over {table['images'].iloc[0]} images):\n"
    )
    print(to_markdown(shown, {"psnr": ".2f", "ssim": ".4f", "gain": "+.2f"}))
    print(f"\n{seconds:.0f} s in all. Results, networks and {out / 'comparison.png'} are in {out}.")
