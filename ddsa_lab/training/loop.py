"""Training: one readable loop for CPU, one GPU and many, which goes on where it was stopped."""

import contextlib
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ddsa_lab.errors import LabError
from ddsa_lab.memory import keep_freed_memory
from ddsa_lab.model.network import DerainTransformer
from ddsa_lab.training.batches import Batches
from ddsa_lab.training.config import TrainConfig
from ddsa_lab.training.devices import agree, make_fabric, private_randomness, together
from ddsa_lab.training.interrupts import Interrupts
from ddsa_lab.training.learner import Learner, rgb_psnr
from ddsa_lab.training.lock import RunLock
from ddsa_lab.training.progress import ProgressBar
from ddsa_lab.training.schedule import learning_rate, patch_and_batch, used
from ddsa_lab.training.start import initial_network
from ddsa_lab.training.state import RunFolder

if TYPE_CHECKING:
    from lightning_fabric import Fabric

Validation = Sequence[tuple[str, Any]]  # (name, object with .rainy and .clean, both (3, H, W) in [0, 1])
Callback = Callable[[int, dict[str, Any]], None]  # (step, row of metrics and timing); may block, and so pause
Recorder = Callable[[nn.Module, int], Iterable[dict[str, Any]]]  # (network in eval mode, step) -> rows


@dataclass
class FitResult:
    """What a training gave: the network on CPU in eval mode, the rows of its history, and what it took."""

    model: DerainTransformer
    history: list[dict[str, Any]]
    seconds: float  # spent in steps
    steps: int
    out: Path
    finished: bool  # False if `should_stop` ended it before its budget did; `resume=True` goes on


def fit(
    config: TrainConfig,
    out: str | Path,
    resume: bool = False,
    *,
    validation: Validation = (),
    progress: bool = True,
    label: str = "training",
    callbacks: Sequence[Callback] = (),
    record: Recorder | None = None,
    should_stop: Callable[[], bool] | None = None,
    tensorboard: bool = False,
    fabric: "Fabric | None" = None,
    devices: int = 1,
    nodes: int = 1,
    accelerator: str = "auto",
) -> FitResult:
    """Train `config.network` into folder `out`, or go on with the training that was stopped there.

    Writes config.json, metrics.csv (equal for equal settings and seeds), timing.csv, sparsity.csv (with `record`),
    state.pt (all that resuming needs) and model.safetensors (the averaged weights), each whole at any moment.

    Args:
        config: what to train, on what, for how long.
        out: the run's folder.
        resume: go on from the checkpoint in `out`; on CPU the weights are those of an uninterrupted run, bit by bit.
        validation: named pairs whose mean RGB PSNR is measured as `config.validate_every` says.
        progress: show a bar with loss, PSNR, images/s and time left.
        label: the bar's title.
        callbacks: called with (step, row) after each row of metrics.csv; the clock stands still meanwhile.
        record: gives rows for sparsity.csv, called as `config.record_every` says.
        should_stop: asked after every step; True writes a checkpoint and returns.
        tensorboard: also write the rows as TensorBoard events into `out`.
        fabric: a Lightning Fabric that is launched already; otherwise one is made from the next three.
        devices: processes or GPUs on each machine, which share each batch.
        nodes: machines.
        accelerator: "cpu", "cuda" or "auto" (a GPU if there is one).

    Raises:
        LabError: settings that don't fit the folder, unreadable data, a full disk, or a loss that is no longer finite;
            the last checkpoint stays as it was.
        KeyboardInterrupt: after Ctrl-C, once the step is done and its checkpoint is written.
    """
    keep_freed_memory()
    fabric = fabric or make_fabric(config, devices, nodes, accelerator)
    folder, leader = RunFolder(out), fabric.is_global_zero
    with contextlib.ExitStack() as stack:
        if leader:
            lock = RunLock(folder.path)
        together(fabric, lambda: stack.enter_context(lock))
        together(fabric, lambda: folder.prepare(config, resume))
        stack.enter_context(private_randomness(config.seed, fabric.device))
        run = _Run(config, folder, fabric, validation, record)
        stack.callback(run.batches.close)
        run.restore(folder.read_state())
        bar = stack.enter_context(
            ProgressBar(config, label, run.step, run.seconds, shown=progress and leader)
        )
        events = stack.enter_context(_tensorboard(folder.path if tensorboard and leader else None, run.step))
        interrupts = stack.enter_context(Interrupts())
        for row in run.rows(
            lambda: interrupts.received is not None or bool(should_stop and should_stop()), bar
        ):
            if leader:
                events(row)
                for callback in callbacks:
                    callback(row["step"], row)
        interrupts.act()
        return run.result()


@dataclass
class _Run:
    """A training under way: the loop, and what must be remembered to go on with it."""

    config: TrainConfig
    folder: RunFolder
    fabric: "Fabric"
    validation: Validation
    record: Recorder | None
    step: int = 0
    samples: int = 0
    seconds: float = 0.0
    finished: bool = False
    written: int = 0  # step of the last checkpoint
    window: Tensor = field(init=False)  # sums of loss and PSNR since the last row, and their number

    def __post_init__(self) -> None:
        fabric, gpu = self.fabric, self.fabric.device.type == "cuda"
        self.learner = Learner(self.config, initial_network(self.config), fabric)
        self.batches = Batches(self.config, fabric.global_rank, fabric.world_size, pin=gpu)
        self.window = torch.zeros(3, dtype=torch.float64, device=fabric.device)

    def rows(self, asked_to_stop: Callable[[], bool], bar: ProgressBar) -> Iterator[dict[str, Any]]:
        """Train until the budget is used or someone asks to stop, yielding each row once it is written."""
        saved, row_start = time.monotonic(), (self.samples, self.seconds)
        stop = False
        while not (self.finished or stop):
            lr, patch = self._step()
            stop, due = self._agree(
                asked_to_stop(), time.monotonic() - saved > self.config.checkpoint_every_seconds
            )
            bar.advance(self.step, self.seconds)
            row = None
            if self._due(self.config.log_every) or self._due(self.config.validate_every):
                self._check()
                row = self._row(lr, patch, row_start)
                row_start = (self.samples, self.seconds)
                bar.show(row)
            if self.record is not None and self._due(self.config.record_every):
                self._record()
            if (
                due
                or stop
                or self.finished
                or (self.config.checkpoint_every and self._due(self.config.checkpoint_every))
            ):
                self.save()
                saved = time.monotonic()
            if row is not None:
                yield row

    def _step(self) -> tuple[float, int]:
        started = time.perf_counter()
        fraction = used(self.config, self.step, self.seconds)
        lr = learning_rate(self.config, self.step, fraction)
        patch, batch = patch_and_batch(self.config, fraction)
        rainy, clean = self.batches.take(patch, batch, self.samples)
        self.window[:2] += self.learner.update(rainy, clean, lr)
        self.window[2] += 1
        self.step += 1
        self.samples += batch
        self.seconds += time.perf_counter() - started
        return lr, patch

    def _agree(self, *flags: bool) -> list[bool]:
        """Let all processes see the same clock and flags, and decide whether the budget is used."""
        self.seconds, *flags = agree(self.fabric, [self.seconds, *map(float, flags)])
        self.finished = used(self.config, self.step, self.seconds) >= 1
        return [bool(flag) for flag in flags]

    def _due(self, every: int) -> bool:
        return self.finished or bool(every and self.step % every == 0)

    def _check(self) -> None:
        if not self.learner.failed:
            return
        config, at = self.config, f"the loss was no longer finite by step {self.step} of {self.folder.path}"
        kept = (
            f"the checkpoint of step {self.written} is kept" if self.written else "there is no checkpoint yet"
        )
        advice = f"start anew with a lower lr (now {config.lr:g})"
        advice += (
            " or a clip of 1 (now off)" if not config.clip else f" or a smaller clip (now {config.clip:g})"
        )
        advice += " or precision 32-true" if config.precision != "32-true" else ""
        raise LabError(f"{at}; {kept}: {advice}")

    def _row(self, lr: float, patch: int, start: tuple[int, float]) -> dict[str, Any]:
        window = (
            self.fabric.all_reduce(self.window, reduce_op="mean")
            if self.fabric.world_size > 1
            else self.window
        )
        loss, psnr, count = window.tolist()
        row = {"step": self.step, "samples": self.samples, "patch": patch, "lr": lr}
        row |= {"loss": loss / count, "psnr": psnr / count, "val_psnr": None}
        self.window.zero_()
        if self.validation and self._due(self.config.validate_every):
            row["val_psnr"] = self.validate()
        speed = (self.samples - start[0]) / max(self.seconds - start[1], 1e-9)
        clock = {"step": self.step, "seconds": round(self.seconds, 3), "images_per_second": round(speed, 2)}
        if self.fabric.is_global_zero:
            self.folder.add_rows("metrics.csv", [row])
            self.folder.add_rows("timing.csv", [clock])
        return row | clock

    @torch.no_grad()
    def validate(self) -> float:
        """Return the mean RGB PSNR in dB of the averaged network over the validation pairs."""
        device = self.fabric.device
        with self._kept_in_eval() as net:
            scores = [
                rgb_psnr(net(pair.rainy[None].to(device)), pair.clean[None].to(device))
                for _, pair in self.validation
            ]
        return torch.stack(scores).mean().item()

    def _record(self) -> None:
        if self.fabric.is_global_zero:
            with self._kept_in_eval() as net:
                self.folder.add_rows(
                    "sparsity.csv", [{"step": self.step} | row for row in self.record(net, self.step)]
                )

    @contextlib.contextmanager
    def _kept_in_eval(self) -> Iterator[nn.Module]:
        kept, training = self.learner.kept, self.learner.kept.training
        try:
            yield kept.eval()
        finally:
            kept.train(training)

    def save(self) -> None:
        """Write the checkpoint, unless the weights are spoilt."""
        self._check()
        self.written = self.step
        if not self.fabric.is_global_zero:
            return
        state = {name: getattr(self, name) for name in ("step", "samples", "seconds", "finished", "window")}
        random = {"cpu": torch.get_rng_state()}
        if self.fabric.device.type == "cuda":
            random["cuda"] = torch.cuda.get_rng_state(self.fabric.device)
        self.folder.write_state(state | {"random": random, "learner": self.learner.state()})
        self.folder.write_weights(self.learner.kept, self.step)

    def restore(self, state: dict[str, Any] | None) -> None:
        """Go back to a checkpoint, if there is one."""
        if state is None:
            return
        for name in ("step", "samples", "seconds", "finished"):
            setattr(self, name, state[name])
        self.written = self.step
        self.window.copy_(state["window"])
        self.learner.restore(state["learner"])
        torch.set_rng_state(state["random"]["cpu"])
        if "cuda" in state["random"] and self.fabric.device.type == "cuda":
            torch.cuda.set_rng_state(state["random"]["cuda"], self.fabric.device)

    def result(self) -> FitResult:
        """Return the averaged network on CPU, with the history as written."""
        model = DerainTransformer(self.config.network).eval()
        model.load_state_dict(self.learner.kept.state_dict())
        return FitResult(
            model, self.folder.history(), self.seconds, self.step, self.folder.path, self.finished
        )


@contextlib.contextmanager
def _tensorboard(folder: Path | None, step: int) -> Iterator[Callable[[dict[str, Any]], None]]:
    """Yield a function that writes a row as TensorBoard scalars; one that does nothing where `folder` is None."""
    if folder is None:
        yield lambda row: None
        return
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(folder, purge_step=step + 1) as writer:

        def write(row: dict[str, Any]) -> None:
            for name, value in row.items():
                if name != "step" and value is not None:
                    writer.add_scalar(name, value, row["step"])

        yield write
