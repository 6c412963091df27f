"""The command line: `ddsa-lab COMMAND`. Each command is a few lines over the package; errors are one sentence.

Exit codes: 0 done, 1 done but some files failed, 2 wrong input, 130 interrupted.
"""

import argparse
import os
import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from ddsa_lab import __version__
from ddsa_lab.errors import LabError, choose

BEST_WEIGHTS = "dual-small"  # for photos and scores
STUDIED_WEIGHTS = "dual-tiny"  # for looking inside: they answer at once, and the course speaks of them
DEFAULT_LR = {"adamw": 1e-3, "muon": 1.5e-3}  # peaks for training from scratch


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    parser = build_parser()
    args = parser.parse_args(argv)
    # OpenMP threads that wait for work spin for some 30 microseconds, then sleep. Never to spin makes a training
    # step half as long again; to spin for longer slows two busy processes down many times over.
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    try:
        load_torch()
        return args.run(args) or 0
    except LabError as error:
        print(f"ddsa-lab {args.command}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"\nddsa-lab {args.command}: interrupted; what was finished is kept", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # The reader of our output has gone (`... | head`); nobody is left to tell.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def load_torch() -> None:
    """Import torch; Ctrl-C meanwhile ends the process quietly, where an exception within its C++ start would abort it."""
    if "torch" in sys.modules or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        return
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    import torch  # noqa: F401

    signal.signal(signal.SIGINT, signal.default_int_handler)


class Help(argparse.ArgumentDefaultsHelpFormatter):
    """Names defaults where there are any, and the text does not name them itself."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        told = "(default" in (action.help or "")
        return action.help if told or action.default in (None, False) else super()._get_help_string(action)


def build_parser() -> argparse.ArgumentParser:
    """The parser with all commands."""
    parser = argparse.ArgumentParser(
        prog="ddsa-lab",
        description="A laboratory for sparse attention in image restoration.",
        epilog="Start with `ddsa-lab demo`, or derain a photo: `ddsa-lab derain PHOTO`.",
    )
    parser.add_argument("--version", action="version", version=f"ddsa-lab {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, add, run in COMMANDS:
        help_line = (run.__doc__ or "").strip().splitlines()[0]
        command = commands.add_parser(
            name,
            help=help_line,
            description=help_line,
            formatter_class=Help,
        )
        add(command)
        command.set_defaults(run=run)
    return parser


def _weights(parser: argparse.ArgumentParser, default: str, many: bool = False) -> None:
    text = "shipped name, or file: ours, IDT-DDSA (released DDSA), Restormer or DRSformer"
    many_or_one = {"nargs": "+", "default": [default]} if many else {"default": default}
    parser.add_argument("--weights", help=text, **many_or_one)


def _device(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", default="auto", help="cpu, cuda, or auto: a GPU if there is one")


def find_device(name: str) -> str:
    """ "auto" -> "cuda" where there is one, else "cpu".

    Raises:
        LabError: a device that torch does not know, or that is not there.
    """
    import torch

    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(1, device=name)
    except (RuntimeError, AssertionError) as error:
        raise LabError(f"device {name!r} cannot be used here: choose cpu, cuda or auto") from error
    return name


def add_demo(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", type=Path, default=Path("runs/demo"), help="folder for the results")
    parser.add_argument("--steps", type=int, help="training steps of each network (default: 200)")
    parser.add_argument(
        "--seconds", type=float, help="instead of steps: time to train all three, after a short trial"
    )
    parser.add_argument("--seed", type=int, default=0, help="decides initial weights, patches and rain")
    _device(parser)


def run_demo(args: argparse.Namespace) -> int:
    """Train tiny dense, sparse and dual networks and compare them on photos they never saw."""
    from ddsa_lab.demo import demo

    demo(args.out, steps=args.steps, seconds=args.seconds, seed=args.seed, device=find_device(args.device))
    return 0


def add_train(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", type=Path, required=True, help="folder of this run")
    parser.add_argument(
        "--preset", help="network: tiny, small, idt_ddsa, restormer, drsformer (default: tiny)"
    )
    parser.add_argument("--mode", help="attention: dense, sparse, dual or multi (default: the preset's)")
    parser.add_argument("--keep", type=float, help="share of keys that the sparse branch keeps, in (0, 1]")
    parser.add_argument("--ffn", help="feed-forward network: sefn, gdfn or msfn (default: the preset's)")
    parser.add_argument(
        "--from",
        dest="start_from",
        help="fine-tune these weights (shipped name or file), if you like with another --mode",
    )
    parser.add_argument("--photos", help="folder of clean photos to put rain on (default: the bundled ones)")
    parser.add_argument("--pairs", help="folder of rainy/clean pairs, instead of synthetic rain")
    parser.add_argument(
        "--rain",
        default="light",
        help='preset: drizzle, light, beaded, heavy, storm, or several: "light+heavy"',
    )
    parser.add_argument("--steps", type=int, help="budget in steps (default: 500)")
    parser.add_argument("--seconds", type=float, help="or budget in seconds")
    parser.add_argument("--batch", type=int, default=8, help="patches a step, over all devices together")
    parser.add_argument("--patch", type=int, default=64, help="side of the patches in pixels")
    parser.add_argument("--optimizer", default="adamw", help="adamw, or muon, which leads in short runs")
    parser.add_argument(
        "--lr", type=float, help="peak learning rate (default: 1e-3, with muon 1.5e-3; with --from a fifth)"
    )
    parser.add_argument("--seed", type=int, default=0, help="decides initial weights, order and rain")
    parser.add_argument("--precision", default="32-true", help="32-true or bf16-mixed")
    parser.add_argument("--compile", action="store_true", help="torch.compile: pays in long runs on a GPU")
    parser.add_argument("--workers", type=int, default=0, help="processes that make patches")
    parser.add_argument(
        "--validate-every", type=int, default=0, help="steps between validations (0: at the end)"
    )
    parser.add_argument("--resume", action="store_true", help="go on where the run in --out was stopped")
    parser.add_argument("--tensorboard", action="store_true", help="write TensorBoard events too")
    parser.add_argument("--devices", type=int, default=1, help="GPUs or processes on each machine")
    parser.add_argument("--nodes", type=int, default=1, help="machines (started by torchrun or SLURM)")
    parser.add_argument("--accelerator", default="auto", help="cpu, cuda or auto")


def run_train(args: argparse.Namespace) -> int:
    """Train one network on synthetic rain or on your own pairs; --resume goes on."""
    from ddsa_lab.data.datasets import held_out_pairs
    from ddsa_lab.training.loop import fit

    config = train_config(args)
    if args.resume and not (args.out / "config.json").is_file():
        raise LabError(f"{args.out} holds no run to resume: leave out --resume to begin one there")
    # Pairs have rain of their own kind: bundled photos under synthetic rain would not measure them.
    validation = () if args.pairs else held_out_pairs(args.rain)
    result = fit(
        config, args.out, resume=args.resume, validation=validation, tensorboard=args.tensorboard,
        devices=args.devices, nodes=args.nodes, accelerator=args.accelerator,
    )  # fmt: skip
    last = result.history[-1]
    score = f", validation {last['val_psnr']:.2f} dB (rgb)" if last.get("val_psnr") else ""
    print(f"{result.steps} steps in {result.seconds:.0f} s{score}: {args.out / 'model.safetensors'}")
    return 0


def train_config(args: argparse.Namespace):
    """The `TrainConfig` that the flags of `train` describe."""
    from ddsa_lab.model.checkpoints import load
    from ddsa_lab.model.network import NetworkConfig
    from ddsa_lab.training.config import TrainConfig

    changes = {
        name: getattr(args, name)
        for name in ("preset", "mode", "keep", "ffn")
        if getattr(args, name) is not None
    }
    if args.mode == "dense" and args.keep is not None:
        raise LabError("--mode dense keeps all keys: leave out --keep, or choose sparse or dual")
    shape = [name for name in ("preset", "ffn") if name in changes]
    if args.start_from and shape:
        raise LabError(f"--from keeps the network of its weights: leave out --{shape[0]}")
    network = (
        replace(load(args.start_from).config, **changes)
        if args.start_from
        else NetworkConfig.preset(changes.pop("preset", "tiny"), **changes)
    )
    steps = 500 if args.steps is None and args.seconds is None else args.steps
    return TrainConfig(
        network=network, rain=args.rain, photos=args.photos, pairs=args.pairs, start_from=args.start_from,
        patch=args.patch, batch=args.batch, steps=steps, seconds=args.seconds, optimizer=args.optimizer,
        lr=args.lr or DEFAULT_LR.get(args.optimizer, 1e-3) * (0.2 if args.start_from else 1),
        precision=args.precision, compile=args.compile,
        seed=args.seed, workers=args.workers, validate_every=args.validate_every,
    )  # fmt: skip


def add_study(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "study", type=Path, help="JSON file (see studies/), or with --table the folder of a study"
    )
    parser.add_argument(
        "--out", type=Path, help="folder of the study (default: runs/NAME_OF_THE_FILE); goes on there"
    )
    parser.add_argument("--photos", help="folder of clean photos to train on, instead of what the file says")
    parser.add_argument(
        "--held-out", help="folder of clean photos to score on, instead of what the file says"
    )
    parser.add_argument(
        "--table", action="store_true", help="train nothing: rebuild the tables from the run folders"
    )
    parser.add_argument("--baseline", help="variant that the others are compared with (default: dense)")
    parser.add_argument("--protocol", help="y_uint8 or rgb (default: y_uint8)")
    parser.add_argument(
        "--workers", type=int, default=1, help="processes on this machine, run after run each"
    )
    parser.add_argument("--cluster", help="address of a dask scheduler whose workers share the folder")
    parser.add_argument(
        "--devices", type=int, default=1, help="GPUs or processes that share each run's batches"
    )
    parser.add_argument("--nodes", type=int, default=1, help="machines that share each run's batches")
    parser.add_argument("--accelerator", default="auto", help="cpu, cuda or auto")


def run_study(args: argparse.Namespace) -> int:
    """Run a fair comparison of variants and seeds, and write its tables; goes on where it stopped."""
    from ddsa_lab.analysis.sparsity import recorder
    from ddsa_lab.evaluation.study_report import collect_runs, study_scores, write_study
    from ddsa_lab.training.study import run_study as run
    from ddsa_lab.training.study_config import StudyConfig
    from ddsa_lab.viz.study_picture import draw_study

    if args.table:
        out = args.study
    else:
        config = StudyConfig.read(args.study)
        if args.photos:
            config = replace(config, train={**config.train, "photos": args.photos})
        if args.held_out:
            config = replace(config, validation=replace(config.validation, photos=args.held_out))
        if args.baseline:
            choose("variant", args.baseline, config.variants)
        out = run(
            config, args.out or Path("runs") / args.study.stem, workers=args.workers, cluster=args.cluster,
            devices=args.devices, nodes=args.nodes, accelerator=args.accelerator,
            score=study_scores, make_recorder=recorder,
        )  # fmt: skip
    protocol = args.protocol or "y_uint8"
    table = write_study(out, baseline=args.baseline, protocol=protocol)
    draw_study(collect_runs(out), table, out / "study.png", protocol)
    print((out / "table.md").read_text(encoding="utf-8"))
    seeds = int(table["seeds"].min())
    print(f"{seeds} seed{'s' * (seeds != 1)} each; scores, tables and study.png are in {out}")
    return 0


def add_derain(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("input", type=Path, nargs="+", help="photos, or folders of photos")
    parser.add_argument(
        "--out", type=Path, help="file or folder (default: beside each photo, NAME_derained.EXT)"
    )
    _weights(parser, BEST_WEIGHTS)
    _device(parser)
    parser.add_argument(
        "--tile", type=int, help="side of the tiles in pixels; 0: whole image (default: by memory)"
    )
    parser.add_argument("--overlap", type=int, default=32, help="pixels that tiles share")
    parser.add_argument("--overwrite", action="store_true", help="replace existing outputs")


def run_derain(args: argparse.Namespace) -> int:
    """Remove rain from photos or whole folders, of any size."""
    from ddsa_lab.model.files import derain_photos

    return derain_photos(
        args.input, args.out, weights=args.weights, device=find_device(args.device), tile=args.tile,
        overlap=args.overlap, overwrite=args.overwrite,
    )  # fmt: skip


def add_evaluate(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data", type=Path, required=True, help="benchmark folder of rainy/clean pairs")
    _weights(parser, BEST_WEIGHTS, many=True)
    parser.add_argument(
        "--protocol", nargs="+", default=["y_uint8", "rgb"], help="y_uint8, y_double, y_full, rgb"
    )
    parser.add_argument("--crop", help="score the top-left part only, as much published code does: 480x320")
    parser.add_argument(
        "--out", type=Path, help="folder for scores.csv, tables and strips; an interrupted run goes on"
    )
    parser.add_argument(
        "--strips", type=int, default=3, help="worst and best images to save as strips in --out"
    )
    _device(parser)


def run_evaluate(args: argparse.Namespace) -> int:
    """Score one or more networks on a folder of rainy/clean pairs, beside the untouched input."""
    from ddsa_lab.evaluation.report import evaluate_report

    return evaluate_report(
        args.data, args.weights, args.protocol, crop=args.crop, out=args.out, strips=args.strips,
        device=find_device(args.device),
    )  # fmt: skip


def add_data(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "action", choices=["check"], help="check: what a folder of pairs holds, and what is wrong with it"
    )
    parser.add_argument("folder", type=Path, help="folder of rainy/clean pairs")
    parser.add_argument(
        "--against", type=Path, help="folder of photos: names scenes that occur in both (leaks)"
    )


def run_data(args: argparse.Namespace) -> int:
    """Check a benchmark folder: which it is, whether it is complete, twins and leaks."""
    from ddsa_lab.data.check import check_folder
    from ddsa_lab.evaluation.metrics import psnr

    report = check_folder(args.folder, against=args.against, score=psnr)
    print(report.text())
    return 0 if report.ok else 1


def add_bench(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--quick", action="store_true", help="a minute's worth: tiny only, attention and network"
    )
    parser.add_argument("--presets", nargs="+", default=["tiny", "idt_ddsa"], help="networks to measure")
    parser.add_argument("--repeats", type=int, default=7, help="measurements of each, medians are reported")
    parser.add_argument("--out", type=Path, help="folder for bench.json and bench.png")
    _device(parser)


def run_bench(args: argparse.Namespace) -> int:
    """Measure this package against the released code's order of operations."""
    from ddsa_lab.bench import bench

    bench(args.presets, quick=args.quick, repeats=args.repeats, out=args.out, device=find_device(args.device))
    return 0


def add_explore(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--host", default="127.0.0.1", help="address to listen on (this machine only by default)"
    )
    parser.add_argument("--port", type=int, help="port to listen on (default: 8866, or a free one)")
    parser.add_argument("--token", help="what the address must end with (default: a random one)")
    parser.add_argument("--no-token", action="store_true", help="ask for no token, on this machine only")
    parser.add_argument("--no-browser", action="store_true", help="print the address only")


def run_explore(args: argparse.Namespace) -> int:
    """Serve the explorers as a page without code."""
    from ddsa_lab.viz.explore import explore

    token = "" if args.no_token else args.token
    return explore(args.host, args.port, token, browser=not args.no_browser)


def add_lab(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "folder", nargs="?", help="where the notebooks are (default: ./notebooks, else this folder)"
    )
    parser.add_argument("--port", type=int, help="port to listen on (default: 8888, or a free one)")
    parser.add_argument("--no-browser", action="store_true", help="print the address only")


def run_lab(args: argparse.Namespace) -> int:
    """Open the notebooks in JupyterLab."""
    from ddsa_lab.viz.explore import lab

    return lab(args.folder, args.port, browser=not args.no_browser)


def add_sweep(parser: argparse.ArgumentParser) -> None:
    _weights(parser, STUDIED_WEIGHTS)
    parser.add_argument(
        "--data", type=Path, help="folder of rainy/clean pairs (default: held-out photos under --rain)"
    )
    parser.add_argument("--rain", default="light", help="preset of synthetic rain, where no --data is given")
    parser.add_argument(
        "--keep", type=float, nargs="+", default=[0.1, 0.3, 0.5, 0.7, 0.9, 1.0], help="shares of keys"
    )
    parser.add_argument("--per-layer", action="store_true", help="change one layer at a time")
    parser.add_argument("--mode", help="attention mode to switch to first (a dense network needs: sparse)")
    parser.add_argument("--protocol", default="y_uint8", help="y_uint8, y_double, y_full or rgb")
    parser.add_argument(
        "--out", type=Path, default=Path("runs/sweep"), help="folder for sweep.csv and sweep.png"
    )
    _device(parser)


def run_sweep(args: argparse.Namespace) -> int:
    """Draw PSNR and SSIM over the share of keys kept, beside random and weakest keys of the same number."""
    from ddsa_lab.analysis.surgery import sweep
    from ddsa_lab.data.datasets import held_out_pairs
    from ddsa_lab.data.pairs import find_pairs
    from ddsa_lab.data.rain import RainyPair
    from ddsa_lab.evaluation.tables import write_csv
    from ddsa_lab.model.checkpoints import load
    from ddsa_lab.viz.sweep_picture import draw_sweep

    model = load(args.weights, find_device(args.device))
    if args.data:
        loaded = [(pair.name, pair.load()) for pair in find_pairs(args.data)]
        pairs = [(name, RainyPair(clean, rainy, None)) for name, (rainy, clean) in loaded]
    else:
        pairs = held_out_pairs(args.rain)
    table = sweep(model, pairs, args.keep, per_layer=args.per_layer, mode=args.mode, protocol=args.protocol)
    write_csv(table, args.out / "sweep.csv")
    draw_sweep(table, args.out / "sweep.png")
    print(
        table.groupby(["layer", "select", "keep"], sort=False)[["psnr", "ssim"]].mean().round(3).to_string()
    )
    print(
        f"{len(pairs)} images, protocol {args.protocol}: {args.out / 'sweep.csv'} and {args.out / 'sweep.png'}"
    )
    return 0


def add_figures(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "names", nargs="*", default=["all"], help="figures, or all; an unknown name lists them"
    )
    parser.add_argument("--out", type=Path, default=Path("figures"), help="folder")
    parser.add_argument(
        "--history", type=Path, help="training run whose curves are drawn (default: the shipped one)"
    )
    _weights(parser, STUDIED_WEIGHTS)


def run_figures(args: argparse.Namespace) -> int:
    """Build the paper figures, each as PDF, PNG and JSON with every number drawn."""
    from ddsa_lab.viz.figures import build

    names = "all" if "all" in args.names else args.names
    built = build(names, args.out, weights=args.weights, history=args.history)
    print("\n".join(str(path) for path in built.paths))
    return 0


Add = Callable[[argparse.ArgumentParser], None]
Run = Callable[[argparse.Namespace], int]
COMMANDS: list[tuple[str, Add, Run]] = [
    ("demo", add_demo, run_demo),
    ("train", add_train, run_train),
    ("study", add_study, run_study),
    ("derain", add_derain, run_derain),
    ("evaluate", add_evaluate, run_evaluate),
    ("data", add_data, run_data),
    ("sweep", add_sweep, run_sweep),
    ("figures", add_figures, run_figures),
    ("bench", add_bench, run_bench),
    ("explore", add_explore, run_explore),
    ("lab", add_lab, run_lab),
]

if __name__ == "__main__":
    sys.exit(main())
