"""Studies: fair by construction, never a run lost or double, refused where they don't belong, tables from folders."""

import csv
import dataclasses
import json
import multiprocessing
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from ddsa_lab.errors import LabError
from ddsa_lab.evaluation.study_report import collect_runs, study_scores, study_table, write_study
from ddsa_lab.model.checkpoints import load
from ddsa_lab.training import runs as runs_module
from ddsa_lab.training.batches import Batches
from ddsa_lab.training.loop import fit
from ddsa_lab.training.runs import FAILURE, RESULT, SCORES, Work, claim, read_result
from ddsa_lab.training.start import initial_network
from ddsa_lab.training.state import RunFolder, read_table
from ddsa_lab.training.study import run_study, work_through
from ddsa_lab.training.study_config import HeldOut, StudyConfig, expand_grid

TRAIN = {"steps": 4, "patch": 16, "batch": 2, "dead_leaves": 0.0, "log_every": 2, "checkpoint_every": 2}
SMALL = {
    "name": "three kinds of attention",
    "network": {"width": 8, "blocks": [1], "heads": [2], "refinement": 0, "ffn_factor": 1.0},
    "grid": [{"mode": ["dense"]}, {"mode": ["sparse", "dual"], "keep": [0.5]}],
    "train": TRAIN,
    "seeds": [0, 1],
    "validation": {"size": 24, "count": 2, "rain": ["light", "heavy"]},
}
NAMES = ["dense", "sparse-keep0.5", "dual-keep0.5"]


def study(**changes) -> StudyConfig:
    return StudyConfig.from_dict({**SMALL, **changes})


def quiet(config, out, **options):
    return run_study(config, out, progress=False, accelerator="cpu", **options)


@pytest.fixture(scope="session")
def done(tmp_path_factory) -> Path:
    """The small study, done in one go."""
    return quiet(study(), tmp_path_factory.mktemp("study") / "out", score=study_scores)


def fingerprint(out: Path) -> dict[str, bytes]:
    """What must be equal in two studies of the same settings, whatever happened to them."""
    tables = [path for kind in ("metrics.csv", SCORES) for path in out.glob(f"*/*/{kind}")]
    found = {str(path.relative_to(out)): path.read_bytes() for path in tables}
    for path in out.glob("*/*/model.safetensors"):
        for name, tensor in load_file(path).items():  # the file's facts stand in any order
            found[f"{path.relative_to(out)} {name}"] = tensor.numpy().tobytes()
    return found


class TestSettings:
    def test_grid_expands_in_order_with_telling_names(self):
        grid = [{"mode": ["dense", "multi"]}, {"mode": ["dual"], "keep": [0.3, 0.5], "ffn": ["sefn"]}]
        assert expand_grid(grid) == {
            "dense": {"mode": "dense"},
            "multi": {"mode": "multi"},
            "dual-keep0.3-sefn": {"mode": "dual", "keep": 0.3, "ffn": "sefn"},
            "dual-keep0.5-sefn": {"mode": "dual", "keep": 0.5, "ffn": "sefn"},
        }

    def test_round_trip_through_a_file(self, tmp_path):
        (tmp_path / "study.json").write_text(json.dumps(study().to_dict()))
        again = StudyConfig.read(tmp_path / "study.json")
        assert again.to_dict() == study().to_dict()
        assert again.runs() == study().runs()

    def test_runs_go_seed_by_seed(self):
        assert [run.name for run in study().runs()] == [
            f"{name}/seed-{seed}" for seed in (0, 1) for name in NAMES
        ]

    @pytest.mark.parametrize(
        "change, message",
        [
            ({"variants": {"a": {"moed": "dual"}}}, r"variant 'a'.*'moed'.*did you mean 'mode'"),
            ({"variants": {"a": {"mode": "daul"}}}, r"variant 'a'.*'daul'.*dual"),
            ({"variants": {"a": {"keep": 1.5}}}, "variant 'a'.*1.5"),
            ({"grid": [{"kepe": [0.5]}]}, "did you mean 'keep'"),
            ({"grid": [{"mode": "dual"}]}, "lists of values"),
            ({"grid": [{"mode": ["dual", "dual"]}]}, "twice"),
            ({"train": {"stpes": 3}}, "did you mean 'steps'"),
            ({"train": {"steps": 3, "seconds": 3}}, "exactly one budget"),
            ({"train": {"steps": 3, "seed": 3}}, "run by run"),
            ({"network": {"preset": "tyni"}}, "tiny"),
            ({"variants": {"../a": {}}}, "folder"),
            ({"seeds": [1, 1]}, "counts once"),
            ({"seeds": []}, "seeds must be a list of whole numbers"),
            ({"seeds": 3}, "seeds must be a list of whole numbers"),
            ({"seeds": [0.5]}, "seeds must be a list of whole numbers"),
            ({"variants": []}, "variants must be a table"),
            ({"variants": {"a": 3}}, "variant 'a' must be a table"),
            ({"grid": 3}, "grid must be a list"),
            ({"validation": 3}, "validation must be a table"),
            ({"validation": {"size": "x"}}, "validation.size"),
            ({"validation": {"count": "x"}}, "validation.count"),
            ({"validation": {"rain": None}}, "validation.rain"),
            ({"validation": {"rain": ["hevy"]}}, "hevy"),
            ({"validation": {"photos": 3}}, "validation.photos"),
            ({"train": {"steps": 3, "photos": 3}}, "photos must be a name"),
            ({"train": {"steps": 3, "rain": "hevy"}}, "hevy.*heavy"),
            ({"train": {"steps": 3, "betas": None}}, "betas must be a list"),
            ({"train": {"steps": 3, "patch_schedule": -1}}, "patch_schedule must be a list"),
            ({"sedes": [1]}, "did you mean 'seeds'"),
            ({"validation": {"rian": "light"}}, "did you mean 'rain'"),
            ({"validation": {"rain": []}}, "validation.rain"),
            ({"train": [1]}, "table"),
        ],
    )
    def test_bad_settings_name_what_would_do(self, change, message):
        with pytest.raises(LabError, match=message):
            study(**change)

    @pytest.mark.parametrize("text", ["", "[1]", '{"variants": {"a": {}}}'])
    def test_file_that_is_no_study(self, tmp_path, text):
        (tmp_path / "x.json").write_text(text)
        with pytest.raises(LabError, match=r"x\.json"):
            StudyConfig.read(tmp_path / "x.json")


class TestFairness:
    def test_variants_of_one_seed_share_start_data_and_budget(self):
        first, *others = [run.config for run in study().runs() if run.seed == 1]
        tensors = initial_network(first).state_dict()
        for other in others:
            for name, tensor in initial_network(other).state_dict().items():
                assert name not in tensors or torch.equal(tensor, tensors[name])
            assert torch.equal(Batches(first).take(16, 2, 6)[0], Batches(other).take(16, 2, 6)[0])
            assert dataclasses.replace(other, network=first.network) == first

    def test_validation_is_fixed_and_names_scenes(self):
        held = HeldOut(size=24, count=2, rain=("light", "heavy"))
        first, again = held.pairs(), held.pairs()
        assert [(name, scene) for name, scene, _ in first] == [
            ("china-light", "china"), ("chelsea-light", "chelsea"), ("china-heavy", "china"), ("chelsea-heavy", "chelsea"),
        ]  # fmt: skip
        assert all(torch.equal(a[2].rainy, b[2].rainy) for a, b in zip(first, again))


class TestRunning:
    def test_every_run_is_a_whole_folder(self, done):
        for run in study().runs():
            folder = done / run.name
            facts = read_result(folder)
            assert (facts["variant"], facts["seed"], facts["steps"]) == (run.variant, run.seed, 4)
            assert facts["parameters"] == sum(p.numel() for p in initial_network(run.config).parameters())
            assert len(read_table(folder / SCORES)) == 4 * 2  # images x protocols
            assert [row["step"] for row in read_table(folder / "metrics.csv")] == [2, 4]

    def test_equal_settings_give_equal_files(self, done, tmp_path):
        again = quiet(study(grid=SMALL["grid"][:1]), tmp_path / "again", score=study_scores)
        ours = fingerprint(again)
        assert len(ours) > 4 + 2 * 10
        assert ours == {name: data for name, data in fingerprint(done).items() if name in ours}

    def test_finished_runs_are_never_repeated_and_new_ones_may_join(self, done, tmp_path):
        out = shutil.copytree(done, tmp_path / "out")
        before = {path: path.stat().st_mtime_ns for path in out.glob("*/*/*.*")}
        quiet(study(seeds=[0, 1, 2], variants={"gdfn": {"ffn": "gdfn"}}), out, score=study_scores)
        assert {path: path.stat().st_mtime_ns for path in before} == before
        assert len(list(out.glob(f"*/*/{RESULT}"))) == 12

    def test_broken_off_study_goes_on(self, done, tmp_path, monkeypatch):
        def fail(config, out, **options):
            def at(step, _row):
                if out.name == "seed-1" and step == 4:
                    raise ZeroDivisionError

            return fit(config, out, callbacks=[at], **options)

        with monkeypatch.context() as patch:
            patch.setattr(runs_module, "fit", fail)
            with pytest.raises(ZeroDivisionError):
                quiet(study(), tmp_path / "out", score=study_scores)
        assert len(list((tmp_path / "out").glob(f"*/*/{RESULT}"))) == 3
        quiet(study(), tmp_path / "out", score=study_scores)
        assert fingerprint(tmp_path / "out") == fingerprint(done)

    def test_two_workers_never_take_one_run(self, done, tmp_path, monkeypatch):
        begun = []

        def counted(config, out, **options):
            begun.append(out)
            return fit(config, out, **options)

        monkeypatch.setattr(runs_module, "fit", counted)
        config, work = study(), Work(study_scores, accelerator="cpu")
        threads = [
            threading.Thread(target=work_through, args=(config, config.runs(), tmp_path, work))
            for _ in range(2)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(begun) == len(set(begun)) == 6
        assert fingerprint(tmp_path) == fingerprint(done)

    def test_claim(self, tmp_path):
        lock = claim(tmp_path)
        assert lock is not None and claim(tmp_path) is None
        lock.release()
        (tmp_path / RESULT).write_text("{}")
        assert claim(tmp_path) is None

    def test_failed_run_lets_the_others_finish_and_is_told(self, done, tmp_path, monkeypatch):
        def diverge(config, out, **options):
            if out.parent.name == "dense":
                raise LabError("the loss was no longer finite")
            return fit(config, out, **options)

        with monkeypatch.context() as patch:
            patch.setattr(runs_module, "fit", diverge)
            with pytest.raises(LabError, match=r"2 of 6 runs .*dense/seed-0: the loss was"):
                quiet(study(), tmp_path / "out", score=study_scores)
        assert len(list((tmp_path / "out").glob(f"*/*/{RESULT}"))) == 4
        quiet(study(), tmp_path / "out", score=study_scores)  # another chance
        assert fingerprint(tmp_path / "out") == fingerprint(done)
        assert not list(tmp_path.glob(f"out/*/*/{FAILURE}"))

    def test_a_study_goes_on_from_the_runs_of_another(self, done, tmp_path):
        start = str(done / "{variant}" / "seed-{seed}" / "model.safetensors")
        # The warm-up leaves a learning rate of next to nothing.
        still = {**TRAIN, "steps": 1, "ema": 0.0, "warmup": 10**9, "start_from": start}
        quiet(study(train=still), tmp_path / "out")
        for name in (f"{variant}/seed-{seed}/model.safetensors" for variant in NAMES for seed in (0, 1)):
            ours, theirs = (
                dict(load(folder / name).named_parameters()) for folder in (tmp_path / "out", done)
            )
            torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=0)

    def test_records(self, tmp_path):
        quiet(study(grid=SMALL["grid"][:1], seeds=[0]), tmp_path / "out", make_recorder=count_pairs)
        assert read_table(tmp_path / "out/dense/seed-0/sparsity.csv") == [{"step": 4, "pairs": 4}]


def count_pairs(pairs):
    return lambda _net, _step: [{"pairs": len(pairs)}]


class TestRefusals:
    @pytest.mark.parametrize(
        "change, message",
        [
            ({"train": {**TRAIN, "lr": 0.5}}, r"train\.lr None -> 0\.5"),
            ({"network": {**SMALL["network"], "width": 16}}, r"network\.width 8 -> 16"),
            ({"seeds": [1, 2]}, "seed 0 -> absent"),
            ({"grid": SMALL["grid"][:1]}, r"variant sparse-keep0\.5 .* -> absent"),
            ({"validation": {"size": 32}}, r"validation\.size 24 -> 32"),
        ],
    )
    def test_folder_of_other_settings_shows_the_difference(self, done, change, message):
        before = fingerprint(done)
        with pytest.raises(LabError, match=message):
            quiet(study(**change), done)
        assert fingerprint(done) == before

    def test_folder_of_something_else(self, tmp_path):
        (tmp_path / "thesis.tex").write_text("mine")
        with pytest.raises(LabError, match=r"thesis\.tex"):
            quiet(study(), tmp_path)
        assert [path.name for path in tmp_path.iterdir() if not path.name.startswith(".")] == ["thesis.tex"]

    def test_ways_to_spread_a_study_exclude_each_other(self, tmp_path):
        with pytest.raises(LabError, match="different ways"):
            quiet(study(), tmp_path / "out", workers=2, devices=2)
        with pytest.raises(LabError, match="workers"):
            quiet(study(), tmp_path / "out", workers=0)

    def test_functions_without_a_name_cannot_reach_other_processes(self, tmp_path):
        with pytest.raises(LabError, match="importable"):
            quiet(study(), tmp_path / "out", workers=2, score=lambda restored, clean: [])

    def test_cluster_that_cannot_be_reached(self, tmp_path, monkeypatch):
        pytest.importorskip("distributed")
        monkeypatch.setattr("ddsa_lab.training.cluster._PATIENCE", 0.5)
        with pytest.raises(LabError, match=r"no dask scheduler answers at tcp://127\.0\.0\.1:1 "):
            quiet(study(), tmp_path / "out", cluster="tcp://127.0.0.1:1")

    def test_cluster_without_dask(self, tmp_path, monkeypatch):
        monkeypatch.setitem(sys.modules, "distributed", None)
        with pytest.raises(LabError, match=r"pip install 'dask\[distributed\]'"):
            quiet(study(), tmp_path / "out", cluster="tcp://127.0.0.1:1")


class TestReport:
    def test_frame_holds_every_score_once(self, done):
        frame = collect_runs(done)
        assert len(frame) == 3 * 2 * 4 * 2
        assert not frame.duplicated(["variant", "seed", "image", "protocol"]).any()
        one = frame.query("variant == 'dense' and seed == 1 and image == 'china-light' and protocol == 'rgb'")
        with open(done / "dense/seed-1" / SCORES, newline="") as file:
            row = next(
                r for r in csv.DictReader(file) if (r["image"], r["protocol"]) == ("china-light", "rgb")
            )
        assert one["psnr"].item() == float(row["psnr"])

    def test_table_compares_with_the_baseline(self, done):
        table = study_table(done, resamples=50, protocol="rgb").set_index("variant")
        rows = collect_runs(done).query("protocol == 'rgb'").groupby("variant")[["psnr", "input_psnr"]].mean()
        assert table.index[0] == "dense" and table.loc["dense", "difference":].isna().all()
        for name in NAMES:
            assert table.loc[name, "psnr"] == pytest.approx(rows.loc[name, "psnr"])
            assert table.loc[name, "gain"] == pytest.approx(
                rows.loc[name, "psnr"] - rows.loc[name, "input_psnr"]
            )
        gap = rows.loc["dual-keep0.5", "psnr"] - rows.loc["dense", "psnr"]
        assert table.loc["dual-keep0.5", "difference"] == pytest.approx(gap)
        assert table.loc["dual-keep0.5", "verdict"] == "no claim is supported"  # two seeds

    def test_rebuilt_from_the_run_folders_alone(self, done, tmp_path):
        for run in study().runs():
            shutil.copytree(done / run.name, tmp_path / run.name)
        (tmp_path / "dense/seed-1" / RESULT).unlink()
        frame = collect_runs(tmp_path)
        assert frame.attrs["unfinished"] == [str(Path("dense/seed-1"))]
        assert len(frame) == 5 * 8
        shutil.copy(done / "dense/seed-1" / RESULT, tmp_path / "dense/seed-1" / RESULT)
        assert study_table(tmp_path, resamples=50).equals(study_table(done, resamples=50))

    def test_files(self, done):
        table = write_study(done, resamples=50)
        assert (
            "dual-keep0.5" in (done / "table.md").read_text()
            and "tabular" in (done / "table.tex").read_text()
        )
        assert len(read_table(done / "table.csv")) == len(table) == 3

    @pytest.mark.parametrize(
        "options, message", [({"baseline": "dens"}, "dense"), ({"protocol": "y"}, "y_uint8")]
    )
    def test_unknown_names(self, done, options, message):
        with pytest.raises(LabError, match=message):
            study_table(done, **options)

    def test_empty_folder(self, tmp_path):
        with pytest.raises(LabError, match="no finished runs"):
            collect_runs(tmp_path)


TWELVE = {**SMALL, "seeds": [0, 1, 2, 3], "train": {**TRAIN, "steps": 12}}


def _twelve(out: Path) -> None:
    quiet(StudyConfig.from_dict(TWELVE), out)


@pytest.mark.slow
def test_twelve_runs_survive_five_kills(tmp_path):
    context, chance, out = multiprocessing.get_context("forkserver"), random.Random(1), tmp_path / "out"
    context.set_forkserver_preload(["ddsa_lab.training.study", "lightning_fabric"])
    finished: dict[Path, int] = {}
    for _ in range(5):
        child = context.Process(target=_twelve, args=(out,))
        child.start()
        wanted = len(finished) + chance.choice([0, 1, 2])
        until = time.monotonic() + 300
        while len(list(out.glob(f"*/*/{RESULT}"))) < wanted and child.is_alive() and time.monotonic() < until:
            time.sleep(0.01)
        time.sleep(chance.random() * 2)
        child.kill()
        child.join()
        now = {path: path.stat().st_mtime_ns for path in out.glob(f"*/*/{RESULT}")}
        assert {path: now.get(path) for path in finished} == finished  # nothing lost, nothing done again
        finished = now
    assert len(finished) < 12  # otherwise nothing was broken off
    _twelve(out)
    names = {f"{name}/seed-{seed}" for name in NAMES for seed in range(4)}
    assert {str(path.parent.relative_to(out)) for path in out.glob(f"*/*/{RESULT}")} == names
    assert len(collect_runs(out)) == 12 * 4
    assert all(
        [row["step"] for row in read_table(out / name / "metrics.csv")] == list(range(2, 13, 2))
        for name in names
    )
    _twelve(tmp_path / "unbroken")
    assert fingerprint(out) == fingerprint(tmp_path / "unbroken")


@pytest.mark.slow
def test_crew_finishes_although_a_member_dies(done, tmp_path):
    out = tmp_path / "out"
    killer = threading.Thread(target=_kill_a_child, args=(out,))
    killer.start()
    quiet(study(), out, workers=2, score=study_scores)
    killer.join()
    assert fingerprint(out) == fingerprint(done)


def _kill_a_child(out: Path) -> None:
    while not list(out.glob("*/*/state.pt")):
        time.sleep(0.01)
    children = subprocess.run(
        ["pgrep", "-P", str(os.getpid()), "-f", "crew import member"], capture_output=True
    )
    os.kill(int(children.stdout.split()[0]), signal.SIGKILL)


def _devices_member(rank: int, port: int, out: Path) -> None:
    """One of two processes, as torchrun would start it."""
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "GROUP_RANK": "0"}
    os.environ |= {"LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    os.environ |= {"TORCHELASTIC_RUN_ID": "test"}
    quiet(study(seeds=[0]), out, devices=2, score=study_scores)


@pytest.mark.slow
def test_devices_share_the_runs_of_a_study(done, tmp_path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    context = multiprocessing.get_context("forkserver")
    members = [
        context.Process(target=_devices_member, args=(rank, port, tmp_path / "out")) for rank in range(2)
    ]
    for member in members:
        member.start()
    for member in members:
        member.join(300)
    assert [member.exitcode for member in members] == [0, 0]
    theirs = collect_runs(tmp_path / "out")
    ours = collect_runs(done).query("seed == 0").reset_index(drop=True)
    assert list(theirs["image"]) == list(ours["image"])
    assert theirs["psnr"].to_numpy() == pytest.approx(ours["psnr"].to_numpy(), abs=0.05)


@pytest.mark.slow
def test_cluster_finishes_although_a_worker_dies(tmp_path):
    distributed = pytest.importorskip("distributed")
    config = study(train={**TRAIN, "steps": 40, "log_every": 10})
    with distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster:
        out = tmp_path / "out"
        pids = [worker.pid for worker in cluster.workers.values()]
        assert len(pids) == 2
        killer = threading.Thread(target=_kill_mid_run, args=(out, pids[0]))
        killer.start()
        quiet(config, out, cluster=cluster.scheduler_address)
        killer.join()
    assert not _alive(pids[0])
    assert len(list(out.glob(f"*/*/{RESULT}"))) == 6
    frame = collect_runs(out)
    assert len(frame) == 6 * 4 and not frame.duplicated(["variant", "seed", "image"]).any()
    assert RunFolder(out / "dense/seed-0").read_state()["step"] == 40


def _kill_mid_run(out: Path, pid: int) -> None:
    while len(list(out.glob("*/*/state.pt"))) < 2:  # both workers are within a run
        time.sleep(0.01)
    os.kill(pid, signal.SIGKILL)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
