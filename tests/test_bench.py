"""The benchmark measures what it says, on both sides alike."""

import pytest

from ddsa_lab import bench
from ddsa_lab.errors import LabError
from ddsa_lab.model.network import NetworkConfig

MINI = NetworkConfig(width=8, blocks=(1, 1), heads=(1, 2), refinement=0, ffn_factor=2.0)


def test_functions_alternate_and_the_warm_up_is_left_out(monkeypatch):
    calls, clock = [], iter(range(1000))
    monkeypatch.setattr(bench.time, "perf_counter", lambda: next(clock))
    sides = {side: lambda side=side: calls.append(side) for side in bench.SIDES}
    assert bench.alternate(sides, 3, "cpu") == {"ours": 1000.0, "textbook": 1000.0}
    assert calls == ["ours", "textbook"] * 5


def test_both_sides_hold_the_same_weights():
    ours, textbook = bench._pair(MINI, "cpu")
    assert all(
        (a == b).all() for a, b in zip(ours.state_dict().values(), textbook.model.state_dict().values())
    )


def test_peak_memory_counts_what_a_step_needs(monkeypatch):
    monkeypatch.setattr(bench, "_step_size", lambda name, device: (2, 256))
    (result,) = bench._memory("mini", MINI, 3, "cpu")
    assert result.ours > 20 and result.textbook > 20  # 2 x 256 x 256 pixels x 8 channels are 4 MB a map


def test_too_few_repeats():
    with pytest.raises(LabError, match="at least 3"):
        bench.bench(["tiny"], repeats=2)


def test_unknown_preset_is_refused_before_anything_is_measured():
    with pytest.raises(LabError, match="unknown preset"):
        bench.bench(["tyni"])


def test_growth_is_the_slope_of_log_time_over_log_pixels(monkeypatch):
    times = iter((3.0, 12.0, 48.0))  # four times the pixels, four times the time
    monkeypatch.setattr(bench, "alternate", lambda sides, *_: (sides["ours"](), {"ours": next(times)})[1])
    found = bench.growth(MINI, 3, "cpu", sides=(8, 16, 32))
    assert found["slope"] == pytest.approx(1.0)
    assert list(found["milliseconds"]) == [8, 16, 32]
