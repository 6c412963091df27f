"""The progress bar of a training, over its steps or its seconds."""

from typing import Any

from ddsa_lab.training.config import TrainConfig


class ProgressBar:
    """Shows how much of the budget is used, with loss, PSNR, images/s and the time left.

    Args:
        config: gives the budget.
        label: the bar's title.
        step: steps done already.
        seconds: seconds used already.
        shown: False makes every call do nothing.
    """

    def __init__(
        self, config: TrainConfig, label: str, step: int, seconds: float, shown: bool = True
    ) -> None:
        self.by_steps, self.bar = config.steps is not None, None
        if not shown:
            return
        from tqdm.auto import tqdm

        done, total, unit = (step, config.steps, "step") if self.by_steps else (seconds, config.seconds, "s")
        rate = "{n_fmt}/{total_fmt} steps" if self.by_steps else "{n:.0f}/{total:.0f} s"
        layout = "{desc}: {percentage:3.0f}%|{bar}| " + rate + " [{elapsed}<{remaining}{postfix}]"
        self.bar = tqdm(
            total=total, initial=min(done, total), desc=label, unit=unit, bar_format=layout, mininterval=0.2
        )

    def __enter__(self) -> "ProgressBar":
        return self

    def __exit__(self, *_exception: object) -> None:
        if self.bar is not None:
            self.bar.close()

    def advance(self, step: int, seconds: float) -> None:
        """Move to where the training is now."""
        if self.bar is not None:
            done = step if self.by_steps else min(seconds, self.bar.total)
            self.bar.update(done - self.bar.n)

    def show(self, row: dict[str, Any]) -> None:
        """Show the numbers of a row of the history."""
        if self.bar is None:
            return
        text = f"loss {row['loss']:.4f}, {row['psnr']:.2f} dB, {row['images_per_second']:.0f} images/s"
        if row["val_psnr"] is not None:
            text += f", held out {row['val_psnr']:.2f} dB"
        self.bar.set_postfix_str(text, refresh=False)
