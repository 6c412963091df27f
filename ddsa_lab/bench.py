"""How fast and how large: this package beside the released order of operations, on the same weights and inputs.

Both sides alternate in one process, so that a busy machine slows both; medians are reported. Peak memory is that
of processes of their own, one for each side. `benchmarks/README.md` explains the measured numbers.
"""

import copy
import json
import math
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import Tensor, nn

from ddsa_lab.errors import LabError
from ddsa_lab.files import atomic_write, write_json
from ddsa_lab.memory import keep_freed_memory
from ddsa_lab.model.network import DerainTransformer, NetworkConfig
from ddsa_lab.model.textbook import Textbook, attention

SIDES = ("ours", "textbook")
GROWTH_SIDES = (128, 256, 512, 1024, 2048)  # pixels; the cost must grow as the number of pixels does
# What ours runs as on a GPU, each measured on its own against the textbook form in float32.
GPU_VARIANTS = ("float32", "bfloat16", "bfloat16+compile", "bfloat16+graphs")


@dataclass(frozen=True)
class Result:
    """One comparison: medians of both sides in `unit`, and how many times the textbook's value ours is better."""

    what: str
    preset: str
    size: str
    ours: float
    textbook: float
    unit: str = "ms"

    @property
    def ratio(self) -> float:
        """Textbook over ours: above 1, ours is faster or smaller."""
        return self.textbook / self.ours


def bench(
    presets: list[str], quick: bool = False, repeats: int = 7, out: Path | None = None, device: str = "cpu"
) -> list[Result]:
    """Measure, print a table, and write bench.json and bench.png into `out` if given.

    The growth of time with pixels is that of the first preset.

    Args:
        presets: networks, see `NetworkConfig.preset`.
        quick: attention and the whole network of `tiny` only, within a minute on 2 cores.
        repeats: measurements of each, at least 3.
        out: folder.
        device: "cpu" or "cuda".

    Raises:
        LabError: fewer than 3 repeats, or an unknown preset.
    """
    if repeats < 3:
        raise LabError(f"repeats is {repeats}, but a median needs at least 3")
    presets = ["tiny"] if quick else presets
    configs = {name: NetworkConfig.preset(name) for name in presets}
    keep_freed_memory()
    facts = machine(device)
    print(", ".join(f"{name} {value}" for name, value in facts.items()))
    print(f"\n{'what':<34} {'size':>12} {'textbook':>12} {'ours':>12} {'ratio':>7}")
    results = []
    for name, config in configs.items():
        for measure in (_attention, _inference, _training, _memory):
            for result in measure(name, config, repeats, device):
                results.append(result)
                print(
                    f"{result.preset + ', ' + result.what:<34} {result.size:>12} {result.textbook:>8.1f} {result.unit:<3} "
                    f"{result.ours:>8.1f} {result.unit:<3} {result.ratio:>6.2f}x",
                    flush=True,
                )
    grown = {} if quick else {presets[0]: growth(configs[presets[0]], min(repeats, 5), device)}
    for name, found in grown.items():
        first, last = GROWTH_SIDES[0], GROWTH_SIDES[-1]
        print(
            f"{name}, inference from {first}x{first} to {last}x{last}: time grows as pixels to the power {found['slope']:.3f}"
        )
    if out is not None:
        rows = [asdict(r) | {"ratio": r.ratio} for r in results]
        write_json(out / "bench.json", {"machine": facts, "results": rows, "growth": grown})
        _draw(results, facts, out / "bench.png")
    return results


def machine(device: str) -> dict[str, str | int]:
    """What the numbers were measured on."""
    processor = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        processor = next(
            (line.split(":")[1].strip() for line in lines if line.startswith("model name")), processor
        )
    where = torch.cuda.get_device_name() if device.startswith("cuda") else processor
    return {
        "device": where, "threads": torch.get_num_threads(), "cores": os.cpu_count() or 0, "torch": torch.__version__,
        "python": platform.python_version(), "system": platform.system(),
    }  # fmt: skip


def _pair(config: NetworkConfig, device: str) -> tuple[nn.Module, nn.Module]:
    """The same weights on both sides."""
    model = DerainTransformer(config).eval().to(device)
    return model, Textbook(copy.deepcopy(model)).eval()


def _attention(name: str, config: NetworkConfig, repeats: int, device: str) -> list[Result]:
    """One attention layer of the first level at 256x256."""
    model, textbook = _pair(config, device)
    ours = next(iter(model.attention_layers().values()))
    theirs = next(iter(textbook.model.attention_layers().values()))
    x = torch.rand(1, config.width, 256, 256, device=device)
    last = x.contiguous(memory_format=torch.channels_last)
    with torch.inference_mode():
        times = alternate(
            {"ours": lambda: ours(last), "textbook": lambda: attention(theirs, x)}, repeats, device
        )
    return [Result("attention", name, "256x256", **times)]


def _inference(name: str, config: NetworkConfig, repeats: int, device: str) -> list[Result]:
    """The whole network at 256x256."""
    model, textbook = _pair(config, device)
    x = torch.rand(1, 3, 256, 256, device=device)
    with torch.inference_mode():
        times = alternate({"ours": lambda: model(x), "textbook": lambda: textbook(x)}, repeats, device)
    return [Result("inference", name, "256x256", **times)]


def growth(
    config: NetworkConfig, repeats: int, device: str, sides: tuple[int, ...] = GROWTH_SIDES
) -> dict[str, Any]:
    """Median milliseconds of whole square images, and the slope of log time over log pixels: 1 is linear."""
    model = DerainTransformer(config).eval().to(device)
    times = {}
    with torch.inference_mode():
        for side in sides:
            x = torch.rand(1, 3, side, side, device=device)
            times[side] = alternate({"ours": lambda x=x: model(x)}, repeats, device)["ours"]
    pixels = [2 * math.log(side) for side in sides]
    slope = statistics.linear_regression(pixels, [math.log(ms) for ms in times.values()]).slope
    return {"milliseconds": times, "slope": slope}


def _step_size(name: str, device: str) -> tuple[int, int]:
    """(batch, patch) of a training step that the device takes in a few seconds."""
    if device.startswith("cuda"):
        return 8, 128
    return (8, 64) if name in ("tiny", "small") else (1, 64)


def training_step(
    net: nn.Module, rainy: Tensor, clean: Tensor, autocast: torch.dtype | None = None
) -> Callable[[], None]:
    """A function that runs one step of AdamW on the L1 loss."""
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-6, fused=True)  # as the training loop does

    def step() -> None:
        optimizer.zero_grad()
        with torch.autocast(rainy.device.type, autocast or torch.bfloat16, enabled=autocast is not None):
            restored = net(rainy)
        (restored.float() - clean).abs().mean().backward()
        optimizer.step()

    return step


def _training(name: str, config: NetworkConfig, repeats: int, device: str) -> list[Result]:
    """One training step; on a GPU in every variant."""
    batch, patch = _step_size(name, device)
    rainy, clean = torch.rand(2, batch, 3, patch, patch, device=device)
    results = []
    for variant in GPU_VARIANTS if device.startswith("cuda") else _cpu_variants():
        ours, textbook = (net.train() for net in _pair(config, device))
        if "compile" in variant or "graphs" in variant:
            ours = torch.compile(ours, mode="reduce-overhead" if "graphs" in variant else "default")
        dtype = torch.bfloat16 if "bfloat16" in variant else None
        steps = {
            "ours": training_step(ours, rainy, clean, dtype),
            "textbook": training_step(textbook, rainy, clean),
        }
        label = "training step" + ("" if variant == "float32" else f" {variant}")
        results.append(Result(label, name, f"{batch}x{patch}x{patch}", **alternate(steps, repeats, device)))
    return results


def _cpu_variants() -> tuple[str, ...]:
    """bfloat16 is measured where the processor computes in it; elsewhere it is emulated and slow."""
    flags = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    return ("float32", "bfloat16") if "avx512_bf16" in flags or "amx_bf16" in flags else ("float32",)


def alternate(sides: dict[str, Callable[[], object]], repeats: int, device: str) -> dict[str, float]:
    """Median milliseconds of each function, called in turn after two warm-up rounds."""
    times: dict[str, list[float]] = {side: [] for side in sides}
    for turn in range(repeats + 2):
        for side, run in sides.items():
            started = time.perf_counter()
            run()
            if device.startswith("cuda"):
                torch.cuda.synchronize()
            if turn >= 2:
                times[side].append(1000 * (time.perf_counter() - started))
    return {side: statistics.median(values) for side, values in times.items()}


def _memory(name: str, config: NetworkConfig, repeats: int, device: str) -> list[Result]:
    """Peak memory of a training step above what the process held before it, each side in its own process."""
    batch, patch = _step_size(name, device)
    peaks = {}
    for side in SIDES:
        settings = json.dumps([side, config.to_dict(), batch, patch, device])
        command = [
            sys.executable,
            "-c",
            "from ddsa_lab.bench import peak_megabytes as p; import sys; print(p(sys.argv[1]))",
        ]
        run = subprocess.run([*command, settings], capture_output=True, text=True, check=False)
        if run.returncode:
            raise LabError(
                f"the memory of {name} could not be measured: {run.stderr.strip().splitlines()[-1:]}"
            )
        peaks[side] = float(run.stdout.split()[-1])
    return [Result("training step, peak memory", name, f"{batch}x{patch}x{patch}", **peaks, unit="MB")]


def peak_megabytes(settings: str) -> float:
    """In a process of its own: megabytes that two training steps need beyond the network and its input."""
    side, values, batch, patch, device = json.loads(settings)
    net = dict(zip(SIDES, _pair(NetworkConfig.from_dict(values), device)))[side].train()
    rainy, clean = torch.rand(2, batch, 3, patch, patch, device=device)
    step = training_step(net, rainy, clean)
    if device.startswith("cuda"):
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        step(), step()
        return (torch.cuda.max_memory_allocated() - before) / 1e6
    before = psutil.Process().memory_info().rss
    step(), step()
    return (_peak_bytes() - before) / 1e6


def _peak_bytes() -> int:
    """Largest memory that this process has held."""
    status = Path("/proc/self/status")
    if status.exists():  # getrusage would count what its parent held before it
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _draw(results: list[Result], facts: dict, path: Path) -> None:
    """Bars of the ratios, ours against the textbook form."""
    from matplotlib.figure import Figure

    from ddsa_lab.viz.style import DOUBLE, MODE_STYLES, style

    with style():
        figure = Figure(figsize=(DOUBLE, 0.6 + 0.32 * len(results)), layout="constrained")
        ax = figure.subplots()
        labels = [f"{r.preset}, {r.what}, {r.size}" for r in results]
        bars = ax.barh(labels, [r.ratio for r in results], color=MODE_STYLES["dense"]["color"])
        ax.bar_label(bars, [f"{r.ratio:.2f}x" for r in results], padding=3)
        ax.axvline(1, color="black", linewidth=0.8)
        ax.invert_yaxis()
        ax.set(
            xlabel="times better than the textbook form (time, or memory)",
            xlim=(0, 1.15 * max(r.ratio for r in results)),
        )
        ax.set_title(f"{facts['device']}, {facts['threads']} threads, torch {facts['torch']}", fontsize=8)
        with atomic_write(path) as temporary:
            figure.savefig(temporary, dpi=150)
