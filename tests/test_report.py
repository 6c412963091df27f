"""`ddsa-lab evaluate`: several networks, the benchmark recognised, tables and published scores."""

import pytest
import torch

from ddsa_lab.data.images import save_image
from ddsa_lab.data.pairs import find_pairs
from ddsa_lab.errors import LabError
from ddsa_lab.evaluation import benchmark, report
from ddsa_lab.evaluation.benchmark import evaluate_folder, summary
from ddsa_lab.evaluation.report import evaluate_report, model_names
from ddsa_lab.model.checkpoints import load, save
from ddsa_lab.model.network import DerainTransformer, NetworkConfig

CONFIG = NetworkConfig(width=2, blocks=(1,), heads=(1,), refinement=0, ffn_factor=1.0)


def weights(path, seed=0):
    save(DerainTransformer(CONFIG, seed), path)
    return path


def pairs(folder, count=3, height=40, width=48):
    generator = torch.Generator().manual_seed(0)
    for i in range(count):
        clean = torch.rand(3, height, width, generator=generator) * 0.5
        rain = torch.rand(1, height, width, generator=generator).gt(0.9) * 0.2
        save_image(clean, folder / "target" / f"norain-{i + 1:03}.png")
        save_image(clean + rain, folder / "input" / f"rain-{i + 1:03}.png")
    return folder


class TestReport:
    def test_tables_hold_the_means_of_every_network(self, tmp_path, capsys):
        data, one, two = (
            pairs(tmp_path / "d"),
            weights(tmp_path / "one.safetensors"),
            weights(tmp_path / "two.safetensors", 1),
        )
        assert evaluate_report(data, [one, two], out=tmp_path / "out", strips=1) == 0
        told = capsys.readouterr().out
        assert "No benchmark known here, 3 pairs, whole images" in told
        expected = summary(
            evaluate_folder({"one": load(one), "two": load(two)}, find_pairs(data), progress=False)
        )
        rows = [
            [cell.strip() for cell in line.split("|")[1:-1]]
            for line in told.splitlines()
            if line.startswith("|")
        ]
        assert rows[0] == ["model", "protocol", "images", "psnr", "ssim", "gain"]
        for row, means in zip(rows[2:], expected.itertuples(index=False)):
            gain = "-" if means.model == "input" else f"{means.gain:+.2f}"
            assert row == [means.model, means.protocol, "3", f"{means.psnr:.2f}", f"{means.ssim:.4f}", gain]
        assert len(rows) == 2 + len(expected) == 8
        out = tmp_path / "out"
        assert {p.name for p in out.iterdir() if p.name[0] != "."} >= {
            "scores.csv",
            "table.md",
            "table.tex",
            "strips",
        }
        assert (out / "table.md").read_text().strip() in told
        assert r"\toprule" in (out / "table.tex").read_text()
        assert len(list((out / "strips").iterdir())) == 4  # worst and best of each network

    def test_interrupted_it_goes_on(self, tmp_path, monkeypatch):
        data, net = pairs(tmp_path / "d"), weights(tmp_path / "net.safetensors")
        calls, whole = [], benchmark.score

        def counted(*arguments):
            calls.append(arguments)
            if len(calls) == 7:
                raise KeyboardInterrupt
            return whole(*arguments)

        monkeypatch.setattr(benchmark, "score", counted)
        with pytest.raises(KeyboardInterrupt):
            evaluate_report(data, [net], out=tmp_path / "out", strips=0)
        assert not (tmp_path / "out" / "table.md").exists()
        assert evaluate_report(data, [net], out=tmp_path / "out", strips=0) == 0
        assert len(calls) < 2 * 12  # 3 images, 2 models, 2 protocols; the first rows were not made again
        monkeypatch.undo()
        evaluate_report(data, [net], out=tmp_path / "fresh", strips=0)
        tables = [(tmp_path / folder / "table.md").read_text() for folder in ("out", "fresh")]
        assert tables[0] == tables[1]

    def test_published_scores_stand_beside_their_benchmark(self, tmp_path, capsys):
        data = pairs(tmp_path / "Rain200L" / "test", count=2, height=321, width=481)
        # An input PSNR that such a benchmark can have decides between its light and heavy version.
        assert evaluate_report(data, [weights(tmp_path / "net.safetensors")], ["rgb"]) == 0
        told = capsys.readouterr().out
        assert "Looks like Rain200L (test), 2 of 200 pairs" in told
        assert (
            "published on Rain200L, under y_uint8; those are means over all 200 images of it, ours are not"
            in told
        )
        assert "| y_uint8 " in told  # asked for rgb only; the benchmark's own protocol was added
        lines = told[told.index("Beside scores") :].splitlines()
        scores = [
            float(line.split("|")[2])
            for line in lines
            if line.startswith("|") and "--" not in line and "psnr" not in line
        ]
        assert scores == sorted(scores)
        assert any(
            "Restormer" in line and "40.99" in line and "DRSformer (CVPR 2023)" in line for line in lines
        )

    def test_a_pair_that_cannot_be_read(self, tmp_path, capsys):
        data = pairs(tmp_path / "d")
        (data / "input" / "rain-002.png").write_text("no photo")
        assert evaluate_report(data, [weights(tmp_path / "net.safetensors")]) == 1
        told = capsys.readouterr()
        assert "rain-002" in told.err
        assert "| input | y_uint8  |      2 |" in told.out

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"protocols": ["psnr"]}, "unknown protocol"),
            ({"crop": "big"}, "give WIDTHxHEIGHT"),
            ({"strips": -1}, "strips is -1"),
            ({"weights": ["no-such"]}, "neither a shipped name nor a file"),
            ({"data": "nowhere"}, "not there"),
        ],
    )
    def test_wrong_input_before_any_score(self, tmp_path, monkeypatch, options, message):
        monkeypatch.setattr(report, "evaluate_folder", lambda *_, **__: pytest.fail("scored"))
        given = {"data": pairs(tmp_path / "d", 1), "weights": [weights(tmp_path / "net.safetensors")]}
        with pytest.raises(LabError, match=message):
            evaluate_report(**{**given, **options})


class TestNames:
    def test_short_and_distinct(self, tmp_path):
        files = [
            weights(tmp_path / name)
            for name in (
                "dual/model.safetensors",
                "dense/model.safetensors",
                "a/net.safetensors",
                "b/net.safetensors",
            )
        ]
        assert model_names(files) == dict(zip(["dual", "dense", "a/net", "b/net"], files))
        assert list(model_names(files[:1])) == ["dual"]
        assert list(model_names([weights(tmp_path / "input.safetensors")])) == ["input.safetensors"]

    def test_given_twice(self, tmp_path):
        net = weights(tmp_path / "net.safetensors")
        with pytest.raises(LabError, match="given twice"):
            model_names([net, net])
