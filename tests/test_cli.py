"""The command line: help that helps, one sentence for what is wrong, exit codes."""

import argparse
import subprocess
import sys

import pytest
import torch

from ddsa_lab.cli import COMMANDS, build_parser, main
from ddsa_lab.data.images import save_image
from ddsa_lab.model import files
from ddsa_lab.model.checkpoints import save
from ddsa_lab.model.network import DerainTransformer, NetworkConfig


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a network, photos, pairs and broken things."""
    folder = tmp_path_factory.mktemp("place")
    save(
        DerainTransformer(NetworkConfig(width=2, blocks=(1,), heads=(1,), refinement=0, ffn_factor=1.0)),
        folder / "net.safetensors",
    )
    save_image(torch.rand(3, 24, 30), folder / "photo.png")
    (folder / "empty").mkdir()
    (folder / "corrupt.png").write_bytes((folder / "photo.png").read_bytes()[:200])
    (folder / "text.png").write_text("no photo")
    (folder / "file").write_text("")
    save_image(torch.rand(3, 24, 30), folder / "sizes" / "input" / "1.png")
    save_image(torch.rand(3, 24, 31), folder / "sizes" / "target" / "1.png")
    content = (folder / "net.safetensors").read_bytes()
    (folder / "truncated.safetensors").write_bytes(content[:-100])
    (folder / "damaged.safetensors").write_bytes(content[:-4] + bytes(4))
    torch.save(torch.nn.Linear(2, 3).state_dict(), folder / "foreign.pth")
    torch.save({"a": print}, folder / "code.pth")
    other = DerainTransformer(
        NetworkConfig(width=2, blocks=(1,), heads=(1,), refinement=0, ffn="gdfn", ffn_factor=1.0)
    ).state_dict()
    torch.save({name: value for name, value in other.items() if "norm2" not in name}, folder / "other.pth")
    return folder


BAD = {
    "a missing photo": ("derain missing.png --weights net.safetensors", "no image at"),
    "a corrupt photo": ("derain corrupt.png --weights net.safetensors", "corrupt.png is damaged"),
    "no photo": ("derain text.png --weights net.safetensors", "text.png is not an image"),
    "no images in a folder": ("derain empty --weights net.safetensors", "no images in"),
    "a small tile": ("derain photo.png --weights net.safetensors --tile 8", "tile is 8"),
    "an overlap": ("derain photo.png --weights net.safetensors --overlap -3", "overlap is -3"),
    "a result where a file is": ("derain photo.png --weights net.safetensors --out file/x", "cannot write"),
    "a device": ("derain photo.png --weights net.safetensors --device gpu", "choose cpu, cuda or auto"),
    "weights": ("derain photo.png --weights dual-tinny", "neither a shipped name nor a file"),
    "missing weights": ("derain photo.png --weights missing.safetensors", "no checkpoint at"),
    "truncated weights": (
        "derain photo.png --weights truncated.safetensors",
        "truncated.safetensors is damaged",
    ),
    "damaged weights": ("derain photo.png --weights damaged.safetensors", "checksum"),
    "foreign weights": ("derain photo.png --weights foreign.pth", "is not a network of"),
    "weights with code": ("derain photo.png --weights code.pth", "holds more than tensors"),
    "weights of another network": (
        "derain photo.png --weights other.pth",
        "2 missing (latent.0.norm2.weight",
    ),
    "weights that are a photo": ("derain photo.png --weights photo.png", "is no checkpoint"),
    "a pair of two sizes": (
        "evaluate --data sizes --weights net.safetensors",
        "the two of a pair must have one size",
    ),
    "no pairs": ("evaluate --data empty --weights net.safetensors", "no pairs"),
    "missing data": ("evaluate --data missing --weights net.safetensors", "missing is not there"),
    "a protocol": (
        "evaluate --data sizes --weights net.safetensors --protocol psnr",
        "unknown protocol 'psnr'",
    ),
    "a crop": ("evaluate --data sizes --weights net.safetensors --crop 3", "give WIDTHxHEIGHT"),
    "a preset": ("train --out run --preset tiyn", "unknown preset 'tiyn' (did you mean 'tiny'?)"),
    "a mode": ("train --out run --mode duel", "unknown attention mode 'duel' (did you mean 'dual'?)"),
    "a feed-forward network": ("train --out run --ffn relu", "unknown feed-forward network 'relu'"),
    "keep of 0": ("train --out run --keep 0", "must lie in (0, 1]"),
    "keep above 1": ("train --out run --keep 1.5", "must lie in (0, 1]"),
    "rain": ("train --out run --rain hail", "'hail'"),
    "two budgets": ("train --out run --steps 3 --seconds 3", "budget"),
    "fine-tuning another network": (
        "train --out run --from net.safetensors --ffn gdfn",
        "leave out --ffn",
    ),
    "another preset beside weights": (
        "train --out run --from net.safetensors --preset small",
        "leave out --preset",
    ),
    "keep where all keys are kept": ("train --out run --mode dense --keep 0.5", "leave out --keep"),
    "resuming nothing": ("train --out nowhere --resume", "holds no run to resume"),
    "fine-tuning nothing": ("train --out run --from missing.safetensors", "no checkpoint at"),
    "no clean photos": ("train --out run --photos empty --steps 1", "empty"),
    "a folder to check": ("data check empty", "no pairs"),
    "an optimiser": ("train --out run --optimizer mouon", "did you mean 'muon'"),
    "a demo without steps": ("demo --out run --steps 0", "positive"),
}


def content(folder):
    """Every file but those of a training run, which leaves its settings where it begins."""
    found = [path for path in folder.rglob("*") if path.is_file() and path.parent.name != "run"]
    return {path: path.read_bytes() for path in found}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_sentence_and_exit_code_2(place, monkeypatch, capsys, case):
    monkeypatch.chdir(place)
    before = content(place)
    line, message = BAD[case]
    assert main(line.split()) == 2
    told = capsys.readouterr()
    sentence = told.err.splitlines()[-1]
    assert sentence.startswith(f"ddsa-lab {line.split()[0]}: ")
    assert message in sentence
    assert "Traceback" not in told.err
    assert content(place) == before  # nothing is lost, and nothing half-made is left


@pytest.mark.parametrize("case", ["a corrupt photo", "foreign weights"])
def test_bad_input_to_the_command_itself(place, case):
    line, message = BAD[case]
    done = subprocess.run(
        [sys.executable, "-m", "ddsa_lab.cli", *line.split()], cwd=place, capture_output=True, text=True
    )
    assert done.returncode == 2
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert done.stdout == ""


@pytest.mark.parametrize(
    "line", ["", "no-such-command", "derain", "train", "train --out x --keep much", "evaluate --weights x"]
)
def test_wrong_usage(capsys, line):
    with pytest.raises(SystemExit) as stopped:
        main(line.split())
    assert stopped.value.code == 2
    assert "usage: ddsa-lab" in capsys.readouterr().err


def test_done_and_partly_done(place, monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(place)
    line = f"derain photo.png --weights net.safetensors --device cpu --out {tmp_path}"
    assert main(line.split()) == 0
    assert (tmp_path / "photo.png").exists()
    assert (
        main(f"derain photo.png text.png --weights net.safetensors --device cpu --out {tmp_path}".split())
        == 1
    )
    assert "failed: text.png" in capsys.readouterr().err


def test_interrupted(monkeypatch, capsys):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(files, "derain_photos", interrupted)
    assert main(["derain", "photo.png"]) == 130
    assert "interrupted; what was finished is kept" in capsys.readouterr().err


def test_help(capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["--help"])
    assert stopped.value.code == 0
    told = capsys.readouterr().out
    for name, *_ in COMMANDS:
        assert f"    {name}" in told


@pytest.mark.parametrize("name", [name for name, *_ in COMMANDS])
def test_help_of_every_command_explains_every_argument(capsys, name):
    with pytest.raises(SystemExit) as stopped:
        main([name, "--help"])
    assert stopped.value.code == 0
    assert f"usage: ddsa-lab {name}" in capsys.readouterr().out
    commands = next(a for a in build_parser()._actions if isinstance(a, argparse._SubParsersAction))
    assert all(action.help for action in commands.choices[name]._actions)
    assert commands.choices[name].description.endswith(".")


def test_version(capsys):
    with pytest.raises(SystemExit):
        main(["--version"])
    assert capsys.readouterr().out.startswith("ddsa-lab 0.")
