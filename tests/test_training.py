"""The training loop: settings, schedule, order of data, averaging, stops, resuming, and several processes."""

import dataclasses
import itertools
import json
import math
import multiprocessing
import os
import shutil
import signal
import socket
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from torch import nn
from torch.testing import assert_close

from ddsa_lab.errors import LabError
from ddsa_lab.model.attention import MODES
from ddsa_lab.model.checkpoints import load, save
from ddsa_lab.model.network import DerainTransformer, NetworkConfig
from ddsa_lab.training import loop
from ddsa_lab.training.batches import Batches
from ddsa_lab.training.config import TrainConfig
from ddsa_lab.training.devices import make_fabric
from ddsa_lab.training.learner import Learner, SharedBatchNorm, rgb_psnr
from ddsa_lab.training.lock import RunLock
from ddsa_lab.training.loop import fit
from ddsa_lab.training.schedule import learning_rate, patch_and_batch, used
from ddsa_lab.training.start import initial_network
from ddsa_lab.training.state import STATE, WEIGHTS, RunFolder, read_config, read_table

NETWORK = NetworkConfig(
    width=8, blocks=(1,), heads=(2,), refinement=0, ffn_factor=1.0
)  # one block: a step takes milliseconds


@pytest.fixture(scope="session")
def photos(tmp_path_factory) -> str:
    """Three smooth little pictures: enough to learn from, quick to read."""
    folder = tmp_path_factory.mktemp("photos")
    for i in range(3):
        generator = torch.Generator().manual_seed(i)
        coarse = torch.rand(1, 3, 5, 5, generator=generator)
        picture = nn.functional.interpolate(coarse, (48, 56), mode="bicubic").clamp(0, 1)[0]
        Image.fromarray((picture * 255).byte().permute(1, 2, 0).numpy()).save(folder / f"{i}.png")
    return str(folder)


@pytest.fixture(scope="session")
def settings(photos) -> TrainConfig:
    return TrainConfig(
        NETWORK, photos=photos, steps=24, patch=16, batch=4, warmup=4, log_every=5, checkpoint_every=7
    )


def quiet(config, out, **options):
    return fit(config, out, progress=False, accelerator="cpu", **options)


@pytest.fixture(scope="session")
def whole(settings, tmp_path_factory):
    """The run of `settings`, never interrupted."""
    return quiet(settings, tmp_path_factory.mktemp("whole") / "run")


def every_key(model):
    """The network with all keys kept."""
    for layer in model.attention_layers().values():
        layer.weights.keep = (1.0,) * 4 if layer.weights.built_as == "multi" else 1.0
    return model


def tensors(model):
    return model.state_dict()


def assert_same_run(first, second):
    """Bit by bit, and with an equal metrics.csv."""
    for name, tensor in tensors(first.model).items():
        assert torch.equal(tensor, tensors(second.model)[name]), name
    assert (first.out / "metrics.csv").read_bytes() == (second.out / "metrics.csv").read_bytes()


class TestSettings:
    def test_round_trip_through_json(self, settings):
        config = dataclasses.replace(settings, patch_schedule=((0.0, 16, 8), (0.5, 24, 4)), seed=3)
        assert TrainConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config

    @pytest.mark.parametrize("place, name", [((), "learning_rate"), (("network",), "widht")])
    def test_unknown_field_is_named_with_the_nearest(self, settings, place, name):
        values = settings.to_dict()
        (values[place[0]] if place else values)[name] = 1
        with pytest.raises(LabError, match=name):
            TrainConfig.from_dict(values)

    @pytest.mark.parametrize(
        "change, message",
        [
            ({"steps": None}, "exactly one budget"),
            ({"seconds": 3.0}, "exactly one budget"),
            ({"steps": 0}, "steps"),
            ({"steps": None, "seconds": -1.0}, "seconds"),
            ({"batch": 2.5}, "batch"),
            ({"lr": math.nan}, "lr"),
            ({"clip": -1.0}, "clip"),
            ({"ema": 1.0}, "ema"),
            ({"betas": (0.9, 1.5)}, "betas"),
            ({"precision": "16"}, "precision"),
            ({"optimizer": "mion"}, "did you mean 'muon'"),
            ({"pairs": "x"}, "not both"),
            ({"patch_schedule": ((0.1, 16, 4),)}, "start at 0"),
            ({"patch_schedule": ((0.0, 16),)}, "triples"),
            ({"dead_leaves": 2}, "dead_leaves"),
        ],
    )
    def test_bad_value_is_named(self, settings, change, message):
        with pytest.raises(LabError, match=message):
            dataclasses.replace(settings, **change)

    def test_differences_name_old_and_new_and_skip_what_may_change(self, settings):
        other = dataclasses.replace(
            settings, lr=0.5, workers=2, network=dataclasses.replace(NETWORK, mode="sparse")
        )
        assert other.differences(settings) == ["network.mode 'dual' -> 'sparse'", "lr 0.001 -> 0.5"]


class TestSchedule:
    def test_rises_then_follows_the_cosine_of_the_budget(self, settings):
        config = dataclasses.replace(settings, steps=100, warmup=10, lr=1.0, min_lr=0.2)
        assert learning_rate(config, 0, 0.0) == pytest.approx(0.1)
        assert learning_rate(config, 9, 0.0) == pytest.approx(1.0)
        assert learning_rate(config, 50, 0.5) == pytest.approx(0.6)
        assert learning_rate(config, 99, 1.0) == pytest.approx(0.2)
        rates = [learning_rate(config, step, step / 100) for step in range(9, 100)]
        assert rates == sorted(rates, reverse=True)

    def test_share_of_budget_in_steps_or_seconds(self, settings):
        timed = dataclasses.replace(settings, steps=None, seconds=8.0)
        assert used(settings, 6, 1e9) == 0.25
        assert used(timed, 10**9, 2.0) == 0.25
        assert used(timed, 1, 9.0) == 1.0

    def test_patches_grow(self, settings):
        config = dataclasses.replace(settings, patch_schedule=((0.0, 16, 8), (0.5, 24, 4)))
        assert [patch_and_batch(config, share) for share in (0.0, 0.49, 0.5, 1.0)] == [(16, 8)] * 2 + [
            (24, 4)
        ] * 2
        assert patch_and_batch(settings, 0.7) == (16, 4)


class TestBatches:
    def test_patches_depend_on_seed_and_index_only(self, settings):
        whole, late = Batches(settings), Batches(settings)
        first, second = whole.take(16, 4, 0), whole.take(16, 4, 4)
        assert_close(late.take(16, 4, 4), second, rtol=0, atol=0)
        other = Batches(dataclasses.replace(settings, seed=1)).take(16, 4, 0)
        assert not torch.equal(first[0], second[0])
        assert not torch.equal(first[0], other[0])

    def test_processes_share_a_batch(self, settings):
        parts = [Batches(settings, rank, 2) for rank in range(2)]
        joined = [[part.take(16, 4, 4 * i)[0] for part in parts] for i in range(2)]
        whole = Batches(settings)
        for i, pair in enumerate(joined):
            assert torch.equal(torch.cat(pair), whole.take(16, 4, 4 * i)[0])

    def test_worker_processes_change_nothing(self, settings):
        alone, helped = Batches(settings), Batches(dataclasses.replace(settings, workers=2))
        for i in range(4):
            assert torch.equal(alone.take(16, 4, 4 * i)[0], helped.take(16, 4, 4 * i)[0])
        helped.close()

    def test_rain_is_equal_for_networks_of_one_seed(self, settings):
        sparse = dataclasses.replace(
            settings, network=dataclasses.replace(NETWORK, mode="sparse", ffn="gdfn")
        )
        assert torch.equal(Batches(settings).take(16, 4, 0)[0], Batches(sparse).take(16, 4, 0)[0])


class TestLearner:
    def test_average_follows_its_recursion(self, settings):
        config = dataclasses.replace(settings, ema=0.3)
        learner = Learner(config, initial_network(config), make_fabric(config, accelerator="cpu"))
        batches = Batches(config)
        expected = {name: value.clone() for name, value in learner.net.state_dict().items()}
        for i in range(4):
            learner.update(*batches.take(16, 4, 4 * i), lr=1e-2)
            decay = min(0.3, (2 + i) / (11 + i))
            for name, value in learner.net.state_dict().items():
                is_parameter = name in dict(learner.net.named_parameters())
                expected[name] = (
                    decay * expected[name] + (1 - decay) * value if is_parameter else value.clone()
                )
        assert_close(dict(learner.kept.state_dict()), expected)

    def test_gradient_is_clipped(self, settings):
        config = dataclasses.replace(settings, clip=1e-3)
        learner = Learner(config, initial_network(config), make_fabric(config, accelerator="cpu"))
        learner.update(*Batches(config).take(16, 4, 0), lr=0.0)
        norm = torch.stack([p.grad.norm() for p in learner.net.parameters()]).norm()
        assert norm.item() == pytest.approx(1e-3, rel=1e-3)

    def test_psnr(self):
        clean = torch.full((3, 8, 8), 0.5)
        assert rgb_psnr(clean + 0.1, clean).item() == pytest.approx(20.0, abs=1e-4)
        assert rgb_psnr(clean + 9, clean).item() == pytest.approx(20 * math.log10(2), abs=1e-4)  # clamped

    def test_learning_rate_reaches_the_weights(self, settings):
        learner = Learner(settings, initial_network(settings), make_fabric(settings, accelerator="cpu"))
        before = {name: value.clone() for name, value in learner.net.named_parameters()}
        batch = Batches(settings).take(16, 4, 0)
        learner.update(*batch, lr=0.0)
        assert all(torch.equal(before[name], value) for name, value in learner.net.named_parameters())
        learner.update(*batch, lr=1e-3)
        assert not all(torch.equal(before[name], value) for name, value in learner.net.named_parameters())


class TestFit:
    def test_learns_and_leaves_a_whole_folder(self, settings, tmp_path):
        pair = SimpleNamespace(rainy=torch.full((3, 20, 23), 0.4), clean=torch.full((3, 20, 23), 0.3))
        config = dataclasses.replace(settings, steps=60, lr=3e-3)
        result = quiet(config, tmp_path / "run", validation=[("grey", pair)])
        rows = read_table(result.out / "metrics.csv")
        assert rows[-1]["loss"] < 0.9 * rows[0]["loss"]
        assert [row["step"] for row in rows] == list(range(5, 61, 5))
        assert rows[-1]["samples"] == 240 and rows[-2]["val_psnr"] is None and rows[-1]["val_psnr"] > 15
        assert result.finished and result.steps == 60 and result.history[-1]["images_per_second"] > 0
        assert read_config(result.out) == config
        x = torch.rand(1, 3, 17, 19)
        assert torch.equal(load(result.out / WEIGHTS)(x), result.model(x))
        assert not result.model.training

    def test_equal_settings_give_equal_rows_and_leave_global_randomness_alone(
        self, settings, whole, tmp_path
    ):
        torch.manual_seed(5)
        expected = torch.rand(3)
        torch.manual_seed(5)
        second = quiet(settings, tmp_path / "b")
        assert torch.equal(torch.rand(3), expected)
        assert_same_run(whole, second)
        other = quiet(dataclasses.replace(settings, seed=1), tmp_path / "c")
        assert (other.out / "metrics.csv").read_bytes() != (whole.out / "metrics.csv").read_bytes()

    @pytest.mark.parametrize(
        "changes",
        [{"ema": 0.9}, {"ema": 0.0, "patch_schedule": ((0.0, 16, 4), (0.4, 24, 2))}, {"optimizer": "muon"}],
    )
    def test_resumed_run_equals_the_uninterrupted_one(self, settings, tmp_path, changes):
        config = dataclasses.replace(settings, **changes)
        whole = quiet(config, tmp_path / "whole")

        def fail_at(step):
            def callback(at, _row):
                if at == step:
                    raise ZeroDivisionError

            return callback

        for step in (5, 15, 20):
            with pytest.raises(ZeroDivisionError):
                quiet(config, tmp_path / "broken", resume=True, callbacks=[fail_at(step)])
        assert_same_run(whole, quiet(config, tmp_path / "broken", resume=True))

    def test_budget_in_seconds(self, settings, tmp_path, monkeypatch):
        clock = itertools.count(step=0.125)  # each step looks at it twice
        monkeypatch.setattr(loop.time, "perf_counter", lambda: next(clock))
        config = dataclasses.replace(settings, steps=None, seconds=1.0, min_lr=0.0, log_every=1)
        asked = iter([False] * 2 + [True])
        part = quiet(config, tmp_path / "run", should_stop=lambda: next(asked))
        assert (part.steps, part.seconds, part.finished) == (3, 0.375, False)
        result = quiet(config, tmp_path / "run", resume=True)
        assert (result.steps, result.seconds, result.finished) == (8, 1.0, True)
        # The schedule follows the seconds used, across the stop.
        rates = [row["lr"] for row in read_table(result.out / "metrics.csv")]
        assert rates == pytest.approx([learning_rate(config, step, step / 8) for step in range(8)])
        again = quiet(config, tmp_path / "run", resume=True)
        assert (again.steps, again.seconds) == (8, 1.0)

    def test_stop_writes_a_checkpoint_to_go_on_from(self, settings, whole, tmp_path):
        asked = iter([False] * 9 + [True])
        part = quiet(settings, tmp_path / "part", should_stop=lambda: next(asked))
        assert (part.steps, part.finished) == (10, False)
        assert RunFolder(part.out).read_state()["step"] == 10
        assert_same_run(whole, quiet(settings, tmp_path / "part", resume=True))

    def test_interrupt_writes_a_checkpoint_and_restores_handlers(self, settings, tmp_path):
        before = signal.getsignal(signal.SIGINT)

        def interrupt(step, _row):
            if step == 10:
                os.kill(os.getpid(), signal.SIGINT)

        with pytest.raises(KeyboardInterrupt):
            quiet(settings, tmp_path / "run", callbacks=[interrupt])
        assert RunFolder(tmp_path / "run").read_state()["step"] == 11
        assert signal.getsignal(signal.SIGINT) is before

    def test_runs_in_a_thread(self, settings, tmp_path):
        results = []
        thread = threading.Thread(target=lambda: results.append(quiet(settings, tmp_path / "thread")))
        thread.start()
        thread.join()
        assert results[0].finished

    def test_starts_from_a_file(self, settings, tmp_path):
        first = quiet(settings, tmp_path / "first")
        config = dataclasses.replace(
            settings, start_from=str(first.out / WEIGHTS), steps=1, ema=0.0, warmup=10**9
        )
        second = quiet(config, tmp_path / "second")
        assert_close(
            dict(second.model.named_parameters()), dict(first.model.named_parameters()), atol=1e-6, rtol=0
        )
        gdfn = dataclasses.replace(config, network=dataclasses.replace(NETWORK, ffn="gdfn"))
        with pytest.raises(LabError, match="tensors differ"):
            quiet(gdfn, tmp_path / "third")

    @pytest.mark.parametrize("before", ["dense", "sparse", "dual"])
    @pytest.mark.parametrize("after", MODES)
    def test_starts_from_a_network_of_another_mode(self, settings, tmp_path, before, after):
        """With all keys kept, all modes are dense attention times the sum of their weights: none may change a thing."""
        first = every_key(DerainTransformer(dataclasses.replace(NETWORK, mode=before), seed=1))
        with torch.no_grad():
            if before == "dual":
                for layer in first.attention_layers().values():
                    layer.weights.branch.copy_(torch.tensor([0.1, 0.7]))
        save(first, tmp_path / "first.safetensors")
        network = dataclasses.replace(NETWORK, mode=after)
        config = dataclasses.replace(
            settings, network=network, start_from=str(tmp_path / "first.safetensors")
        )
        second = every_key(initial_network(config))
        x = torch.rand(1, 3, 16, 16)
        assert_close(second.eval()(x), first.eval()(x), atol=1e-6, rtol=1e-5)

    def test_records_and_tensorboard(self, settings, tmp_path):
        def branches(net, _step):
            assert not net.training
            return [
                {"layer": name, "a": layer.weights.branch[0].item()}
                for name, layer in net.attention_layers().items()
            ]

        config = dataclasses.replace(settings, record_every=10)
        result = quiet(config, tmp_path / "run", record=branches, tensorboard=True)
        rows = read_table(result.out / "sparsity.csv")
        assert [row["step"] for row in rows] == [10, 20, 24]
        assert len(list(result.out.glob("events.out.tfevents*"))) == 1

    def test_bfloat16(self, settings, tmp_path):
        result = quiet(dataclasses.replace(settings, precision="bf16-mixed", steps=4), tmp_path / "run")
        assert all(value.dtype != torch.bfloat16 for value in result.model.state_dict().values())


class TestRefusals:
    def test_existing_run(self, settings, whole):
        with pytest.raises(LabError, match="resume"):
            quiet(settings, whole.out)

    def test_other_settings(self, settings, whole):
        with pytest.raises(LabError, match=r"lr 0\.001 -> 0\.01"):
            quiet(dataclasses.replace(settings, lr=0.01), whole.out, resume=True)

    def test_missing_photos_can_be_mended_in_the_same_folder(self, settings, tmp_path):
        with pytest.raises(LabError):
            quiet(dataclasses.replace(settings, photos=str(tmp_path / "nowhere")), tmp_path / "run")
        assert quiet(dataclasses.replace(settings, steps=1), tmp_path / "run").finished

    def test_foreign_folder(self, settings, tmp_path):
        (tmp_path / "metrics.csv").write_text("mine\n")
        with pytest.raises(LabError, match=r"metrics\.csv"):
            quiet(settings, tmp_path)
        (tmp_path / "config.json").write_text("[]")
        with pytest.raises(LabError, match=r"config\.json"):
            quiet(settings, tmp_path)
        assert (tmp_path / "metrics.csv").read_text() == "mine\n"

    def test_truncated_checkpoint(self, settings, whole, tmp_path):
        shutil.copytree(whole.out, tmp_path, dirs_exist_ok=True)
        state = (tmp_path / STATE).read_bytes()
        (tmp_path / STATE).write_bytes(state[: len(state) // 2])
        with pytest.raises(LabError, match="damaged"):
            quiet(settings, tmp_path, resume=True)

    def test_file_where_the_folder_should_be(self, settings, tmp_path):
        (tmp_path / "run").write_text("")
        with pytest.raises(LabError, match="run"):
            quiet(settings, tmp_path / "run")

    def test_two_trainings_in_one_folder(self, settings, tmp_path):
        with RunLock(tmp_path), pytest.raises(LabError, match="another process"):
            quiet(settings, tmp_path)

    def test_more_devices_than_there_are_or_than_the_batch_allows(self, settings):
        with pytest.raises(LabError, match="CUDA devices"):
            make_fabric(settings, devices=99, accelerator="cuda")
        with pytest.raises(LabError, match="multiple of 3"):
            make_fabric(settings, devices=3, accelerator="cpu")

    def test_loss_that_is_no_longer_finite(self, settings, tmp_path, monkeypatch):
        update = Learner.update

        def spoil(self, rainy, clean, lr):
            return update(self, rainy * (math.nan if self.updates == 16 else 1), clean, lr)

        monkeypatch.setattr(Learner, "update", spoil)
        with pytest.raises(LabError, match=r"no longer finite by step 20 .* step 14 is kept.* lower lr"):
            quiet(settings, tmp_path)
        state = RunFolder(tmp_path).read_state()
        assert state["step"] == 14
        assert all(torch.isfinite(value).all() for value in state["learner"]["net"].values())
        assert load(tmp_path / WEIGHTS) is not None

    def test_full_disk_keeps_the_last_checkpoint(self, settings, whole, tmp_path, monkeypatch):
        real = torch.save
        calls = iter(range(9))

        def full(state, path):
            if next(calls) == 1:
                real({}, path)
                raise RuntimeError("PytorchStreamWriter failed writing file")
            real(state, path)

        monkeypatch.setattr(torch, "save", full)
        with pytest.raises(LabError, match=r"state\.pt .*disk"):
            quiet(settings, tmp_path / "run")
        assert RunFolder(tmp_path / "run").read_state()["step"] == 7
        assert_same_run(whole, quiet(settings, tmp_path / "run", resume=True))
        assert not list((tmp_path / "run").glob(".state*"))


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _member(rank: int, port: int, config: TrainConfig, out: Path) -> None:
    """One of two processes, as torchrun would start it."""
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "GROUP_RANK": "0"}
    os.environ |= {"LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    os.environ |= {"TORCHELASTIC_RUN_ID": "test"}
    fabric = make_fabric(config, devices=2, accelerator="cpu")
    learner = Learner(config, initial_network(config), fabric)
    learner.update(*Batches(config, fabric.global_rank, 2).take(16, 4, 0), lr=0.0)
    gradients = {name: p.grad for name, p in learner.net.named_parameters()}
    torch.save({"gradients": gradients, "buffers": dict(learner.net.named_buffers())}, out / f"{rank}.pt")
    fit(config, out / "run", fabric=fabric, progress=False)
    try:
        fit(config, out / "run", fabric=fabric, progress=False)
    except LabError as error:
        (out / f"{rank}.txt").write_text(str(error))


@pytest.fixture(scope="session")
def shared(photos, tmp_path_factory):
    out = tmp_path_factory.mktemp("shared")
    config = TrainConfig(NETWORK, photos=photos, dead_leaves=0.0, steps=6, patch=16, batch=4, clip=0.0)
    context, port = multiprocessing.get_context("forkserver"), _free_port()
    context.set_forkserver_preload(["ddsa_lab.training.loop", "lightning_fabric"])
    members = [context.Process(target=_member, args=(rank, port, config, out)) for rank in range(2)]
    for member in members:
        member.start()
    for member in members:
        member.join(120)
    assert [member.exitcode for member in members] == [0, 0]
    return config, out


class TestSeveralProcesses:
    def test_gradients_equal_those_of_one_process(self, shared):
        config, out = shared
        learner = Learner(config, initial_network(config), make_fabric(config, accelerator="cpu"))
        learner.update(*Batches(config).take(16, 4, 0), lr=0.0)
        for rank in range(2):
            theirs = torch.load(out / f"{rank}.pt", weights_only=True)
            ours = {name: p.grad for name, p in learner.net.named_parameters()}
            assert_close(theirs["gradients"], ours, rtol=1e-4, atol=1e-7)
            assert_close(theirs["buffers"], dict(learner.net.named_buffers()), rtol=1e-4, atol=1e-6)

    def test_whole_training_agrees(self, shared, tmp_path):
        config, out = shared
        alone = quiet(config, tmp_path / "alone")
        assert_close(load(out / "run" / WEIGHTS).state_dict(), alone.model.state_dict(), rtol=1e-3, atol=1e-3)
        rows = [read_table(folder / "metrics.csv") for folder in (out / "run", alone.out)]
        assert [row["step"] for row in rows[0]] == [row["step"] for row in rows[1]]
        assert rows[0][-1]["loss"] == pytest.approx(rows[1][-1]["loss"], rel=1e-4)

    def test_refusal_reaches_every_process(self, shared):
        assert all("resume" in (shared[1] / f"{rank}.txt").read_text() for rank in range(2))


def test_shared_batch_norm_leaves_evaluation_and_names_alone():
    plain = nn.BatchNorm2d(3)
    plain.running_mean.uniform_(generator=torch.Generator().manual_seed(0))
    shared = SharedBatchNorm(3)
    shared.load_state_dict(plain.state_dict())
    x = torch.rand(2, 3, 5, 5, generator=torch.Generator().manual_seed(1))
    assert_close(shared.eval()(x), plain.eval()(x))


def test_variants_of_one_seed_start_equal(settings):
    nets = [
        initial_network(
            dataclasses.replace(settings, network=dataclasses.replace(NETWORK, mode=mode, ffn=ffn))
        )
        for mode, ffn in (("dense", "sefn"), ("dual", "sefn"), ("sparse", "gdfn"))
    ]
    first, *others = [net.state_dict() for net in nets]
    for other in others:
        shared = [name for name in first if name in other and other[name].shape == first[name].shape]
        assert len(shared) > 5
        assert all(torch.equal(first[name], other[name]) for name in shared)


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("g++"), reason="torch.compile on CPU needs g++")
def test_compiled_training_agrees(settings, whole, tmp_path):
    compiled = quiet(dataclasses.replace(settings, compile=True), tmp_path / "run")
    assert compiled.history[0]["loss"] == pytest.approx(whole.history[0]["loss"], rel=1e-3)
    assert list(compiled.model.state_dict()) == list(whole.model.state_dict())


def test_compiler_is_asked_for_before_training(settings, tmp_path, monkeypatch):
    monkeypatch.setattr("ddsa_lab.training.learner.shutil.which", lambda _name: None)
    with pytest.raises(LabError, match="compiler"):
        quiet(dataclasses.replace(settings, compile=True), tmp_path)


def test_lock_goes_with_its_process(tmp_path):
    context = multiprocessing.get_context("forkserver")
    held = context.Event()
    holder = context.Process(target=_hold, args=(tmp_path, held))
    holder.start()
    assert held.wait(60)
    assert not RunLock(tmp_path).acquire()
    holder.kill()
    holder.join()
    with RunLock(tmp_path):
        assert not RunLock(tmp_path).acquire()


def _hold(folder, held):
    with RunLock(folder):
        held.set()
        signal.pause()
