"""Photos and folders of photos through a network: where results go, what is kept, and what went wrong."""

import errno
import os
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from torch import nn

from ddsa_lab.data.images import IMAGE_SUFFIXES, list_images, read_photo, save_image, shown
from ddsa_lab.errors import LabError
from ddsa_lab.model.checkpoints import load
from ddsa_lab.model.restore import check_tiles, derain

try:
    import fcntl
except ImportError:  # Windows: two processes may then do the same photo twice, each result whole
    fcntl = None

TAG = "_derained"
_READ_ONLY = (".gif",)  # kinds that are read and cannot be written; their results are PNG
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)


@dataclass
class Plan:
    """What is to be done.

    Attributes:
        tasks: result file -> the photo that it is made from, in order.
        earlier: photos left out because they are results of an earlier run.
        failed: (what, why) of inputs that cannot be used.
    """

    tasks: dict[Path, Path] = field(default_factory=dict)
    earlier: list[Path] = field(default_factory=list)
    failed: list[tuple[Path, str]] = field(default_factory=list)


def derain_photos(
    inputs: Iterable[Path],
    out: Path | None = None,
    weights: str | Path = "dual-small",
    device: str = "cpu",
    tile: int | None = None,
    overlap: int = 32,
    overwrite: bool = False,
) -> int:
    """Remove rain from photos and folders of photos; results are told on stdout, failures on stderr.

    A photo's result stands beside it as NAME_derained.EXT, a folder's in FOLDER_derained with the same structure.
    Format, depth, alpha, colour profile and EXIF are kept. Each result appears whole or not at all, so an
    interrupted run is taken up by the same command: what exists is kept. Processes may share an output folder.

    Args:
        inputs: photos and folders.
        out: a file for one photo, else a folder; None as above.
        weights: see `checkpoints.load`.
        device: where to run.
        tile, overlap: see `restore.derain`.
        overwrite: replace results that exist.

    Returns:
        0, or 1 when some photos failed and the others were done.

    Raises:
        LabError: wrong weights or tiles, no photos at all, one photo that fails, an output folder that cannot be
            written, or a full disk.
    """
    inputs = list(inputs)
    check_tiles(tile, overlap)
    plan = make_plan(inputs, out)
    alone = len(inputs) == 1 and not inputs[0].is_dir()
    if plan.failed and (alone or (not plan.tasks and not plan.earlier)):
        raise LabError(plan.failed[0][1])
    for folder in dict.fromkeys(target.parent for target in plan.tasks):
        _check_writable(folder)
    todo = {target: photo for target, photo in plan.tasks.items() if overwrite or not target.exists()}
    kept, done, started = len(plan.tasks) - len(todo), 0, time.monotonic()
    model = load(weights, device)
    for target, photo in _bar(todo):
        try:
            notes = _derain_file(model, photo, target, tile, overlap, overwrite)
        except LabError as error:
            if alone:
                raise
            if _no_room(error):
                raise LabError(
                    f"{error}; what was done before it ({done}) is kept, and the same command goes on"
                ) from error
            plan.failed.append((photo, str(error)))
            continue
        done, kept = (done, kept + 1) if notes is None else (done + 1, kept)
        if notes is not None:
            _say(f"{shown(photo)} -> {shown(target)}" + (f" ({'; '.join(notes)})" if notes else ""))
    _say(_summary(done, kept, plan, time.monotonic() - started))
    for photo, reason in plan.failed:
        print(f"failed: {shown(photo)}: {reason}", file=sys.stderr)
    return 1 if plan.failed else 0


def make_plan(inputs: Iterable[Path], out: Path | None) -> Plan:
    """Decide for every photo where its result goes, reading no photo.

    Raises:
        LabError: `out` is a file and there are several photos, or it names no kind of image that can be written.
    """
    inputs, plan = list(inputs), Plan()
    to_file = out is not None and not out.is_dir() and out.suffix.lower() in IMAGE_SUFFIXES
    if to_file and (len(inputs) > 1 or inputs[0].is_dir()):
        raise LabError(f"--out {shown(out)} names a file, and there are several photos: name a folder")
    if to_file and out.suffix.lower() in _READ_ONLY:
        raise LabError(f"{shown(out)}: {out.suffix} files are read but not written; use .png")
    if out is not None and out.is_file() and not to_file:
        raise LabError(f"--out {shown(out)} is a file without an image's suffix: name a folder, or a .png")
    folders = [path for path in inputs if path.is_dir()]
    for path in inputs:
        if path.is_dir():
            root = _output_root(path, out, many=len(folders) > 1)
            _plan_folder(plan, path, root)
        elif not path.exists():
            plan.failed.append((path, f"no image at {shown(path)}"))
        elif _is_result(path):
            plan.earlier.append(path)
        else:
            _add(plan, path, out if to_file else _target(path, out or path.parent))
    return plan


def _output_root(folder: Path, out: Path | None, many: bool) -> Path:
    name = folder.resolve().name  # "." and ".." have names too
    if out is not None:
        return out / name if many else out
    if not name:
        raise LabError(f"{shown(folder)} has no folder beside it for the results: name one with --out")
    return (
        folder.resolve().with_name(name + TAG) if folder.name in ("", "..") else folder.with_name(name + TAG)
    )


def _plan_folder(plan: Plan, folder: Path, root: Path) -> None:
    photos = list_images(folder, recursive=True)
    if not photos:
        kinds = ", ".join(suffix[1:] for suffix in IMAGE_SUFFIXES)
        plan.failed.append((folder, f"no images in {shown(folder)} (looked for {kinds})"))
    within = root.resolve() if root.resolve() != folder.resolve() else None
    for photo in photos:
        below = [*photo.relative_to(folder).parents][:-1]
        if (
            within in photo.resolve().parents
            or _is_result(photo)
            or any(_is_result(folder / p) for p in below)
        ):
            plan.earlier.append(photo)
        else:
            _add(plan, photo, _target(photo, root / photo.relative_to(folder).parent))


def _target(photo: Path, folder: Path) -> Path:
    """The result's file in `folder`, tagged where it would stand beside its photo."""
    tag = TAG if folder.resolve() == photo.parent.resolve() else ""
    writable = photo.suffix.lower() in IMAGE_SUFFIXES and photo.suffix.lower() not in _READ_ONLY
    return folder / f"{photo.stem}{tag}{photo.suffix if writable else '.png'}"


def _is_result(path: Path) -> bool:
    """Whether `path` is called NAME_derained and the NAME it was made from stands beside it."""
    original = path.stem.removesuffix(TAG)
    if original in ("", path.stem):
        return False
    if path.is_dir():
        return path.with_name(original).is_dir()
    return any(path.with_name(original + suffix).exists() for suffix in {path.suffix, *IMAGE_SUFFIXES})


def _add(plan: Plan, photo: Path, target: Path) -> None:
    other = plan.tasks.setdefault(target, photo)
    if target.resolve() == photo.resolve():
        del plan.tasks[target]
        plan.failed.append(
            (photo, f"the result would replace the photo {shown(photo)} itself: name another --out")
        )
    elif other.resolve() != photo.resolve():
        reason = f"{shown(photo)} and {shown(other)} would both be written to {shown(target)}: do them apart"
        plan.failed.append((photo, reason))


def _check_writable(folder: Path) -> None:
    """Make the folder and try it with an empty file, before an hour's work cannot be kept.

    Raises:
        LabError: it cannot be made or written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".ddsa-lab-{os.getpid()}"
        probe.touch()
        probe.unlink(missing_ok=True)
    except OSError as error:
        raise LabError(f"cannot write to {shown(folder)}: {error.strerror or error}") from error


def _derain_file(
    model: nn.Module, photo: Path, target: Path, tile: int | None, overlap: int, overwrite: bool
) -> list[str] | None:
    """Do one photo. Returns what to say about it; None if the result appeared meanwhile or is being made."""
    with _claimed(target) as mine:
        if not mine or (target.exists() and not overwrite):
            return None
        source = read_photo(photo)
        restored = derain(model, source.pixels, tile, overlap, progress=sys.stderr.isatty())
        save_image(restored, target, like=source)
    notes = list(source.notes)
    if source.alpha is not None:
        lost = target.suffix.lower() in (".jpg", ".jpeg", ".bmp")
        notes.append(f"alpha {f'cannot be kept in {target.suffix}' if lost else 'kept as it was'}")
    return notes


@contextmanager
def _claimed(target: Path) -> Iterator[bool]:
    """Yield whether this process may work on `target`: False while another one does.

    A lock on a hidden file beside it, which the system lets go of even at SIGKILL; an empty file may then stay
    behind, and stops nobody.
    """
    if fcntl is None:
        yield True
        return
    path = target.with_name(f".{target.name[:80]}.claim")
    try:
        file = open(path, "ab")  # noqa: SIM115 - closing it gives the claim up
    except OSError as error:
        raise LabError(f"cannot write {shown(target)}: {error.strerror or error}") from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        except OSError:  # a file system without locks
            pass
        try:
            yield True
        finally:
            path.unlink(missing_ok=True)


def _no_room(error: LabError) -> bool:
    """Whether no later photo can be written either."""
    return isinstance(error.__cause__, OSError) and error.__cause__.errno in _NO_ROOM


def _bar(todo: dict[Path, Path]) -> Iterable[tuple[Path, Path]]:
    from tqdm.auto import tqdm

    # disable=None: no bar where stderr is a file
    return tqdm(todo.items(), desc="photos", unit="photo", disable=None if len(todo) > 1 else True)


def _say(text: str) -> None:
    """Print a line above the bars, in letters that the terminal has."""
    from tqdm.auto import tqdm

    encoding = sys.stdout.encoding or "utf-8"
    tqdm.write(text.encode(encoding, "replace").decode(encoding), file=sys.stdout)


def _summary(done: int, kept: int, plan: Plan, seconds: float) -> str:
    parts = [f"{done} derained in {seconds:.1f} s"]
    if kept:
        parts.append(f"{kept} already there and kept (--overwrite replaces them)")
    if plan.earlier:
        parts.append(f"{len(plan.earlier)} left out as results of an earlier run")
    if plan.failed:
        parts.append(f"{len(plan.failed)} failed")
    return "; ".join(parts)
