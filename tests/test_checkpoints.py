"""Checkpoints: round trips, published layouts, and files that are damaged or hostile."""

import json
import os
import pickle
import random
import resource
import struct
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from ddsa_lab.errors import LabError
from ddsa_lab.model import published, untrusted
from ddsa_lab.model.checkpoints import find_weights, load, save, shipped_weights
from ddsa_lab.model.network import DerainTransformer, NetworkConfig

SMALL = NetworkConfig(width=8, blocks=(1, 2), heads=(1, 2), refinement=1, first=1, ffn_factor=2.0)
NETWORKS = {
    "idt_ddsa": {"first": 2, "refinement": 2},
    "restormer": {"ffn": "gdfn", "mode": "dense", "refinement": 1},
    "drsformer": {"ffn": "msfn", "mode": "multi", "refinement": 0},
}


def network(config=SMALL, seed=0):
    """A network with every value moved away from its start, running statistics included."""
    model = DerainTransformer(config, seed).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for value in model.state_dict().values():
            if value.is_floating_point():
                value.add_(0.1 * torch.rand(value.shape, generator=generator))
    return model


def output(model):
    with torch.inference_mode():
        return model(torch.rand(1, 3, 13, 18, generator=torch.Generator().manual_seed(1)))


def difference(model, other):
    """The outputs' largest difference, relative to the largest value."""
    return float((output(model) - output(other)).abs().max() / output(other).abs().max())


def plain(model):
    """The tensors in the layout that safetensors takes."""
    return {name: value.contiguous() for name, value in model.state_dict().items()}


def published_names(tensors, ffn):
    """Our tensors under the names of the released implementations, written out by hand: the inverse of RENAMES."""
    theirs = {}
    for name, value in tensors.items():
        stage, _, rest = name.partition(".")
        level = int(rest.split(".")[0]) + 1 if stage in ("encoder", "decoder", "down", "up", "reduce") else 0
        tail = rest.partition(".")[2]
        name = {
            "stem": "patch_embed.proj." + rest,
            "first": "refinement0." + rest,
            "head": "output." + rest,
            "encoder": f"encoder_level{level}.{tail}",
            "decoder": f"decoder_level{level}.{tail}",
            "down": f"down{level}_{level + 1}.body.0.weight",
            "up": f"up{level + 1}_{level}.body.0.weight",
            "reduce": f"reduce_chan_level{level}.weight",
        }.get(stage, name)
        for ours, released in [
            (".norm1.", ".norm1.body."), (".norm2.", ".norm2.body."), (".attention.", ".attn."),
            (".attn.depthwise.", ".attn.qkv_dwconv."), (".attn.project.", ".attn.project_out."),
            (".ffn.expand.", ".ffn.conv1x1_in." if ffn == "sefn" else ".ffn.project_in."),
            (".ffn.project.", ".ffn.project_out."), (".ffn.gate.conv.", ".ffn.SAlayer.conv_sa.0."),
            (".ffn.gate.norm.", ".ffn.SAlayer.conv_sa.1."), (".ffn.mix3.", ".ffn.dwconv3x3_1."),
            (".ffn.mix5.", ".ffn.dwconv5x5_1."), (".ffn.depthwise3.", ".ffn.dwconv3x3."),
            (".ffn.depthwise5.", ".ffn.dwconv5x5."),
            (".ffn.depthwise.", ".ffn.dwconv3x3." if ffn == "sefn" else ".ffn.dwconv."),
        ]:  # fmt: skip
            name = name.replace(ours, released)
        if name.endswith(".attn.weights.branch"):
            numbers = ["", "1"] if len(value) == 2 else ["1", "2", "3", "4"]
            theirs |= {
                name.replace("weights.branch", "attn") + n: v.reshape(1) for n, v in zip(numbers, value)
            }
        else:
            theirs[name] = value
    return theirs


class TestRoundTrip:
    @pytest.mark.parametrize("mode", ["dense", "sparse", "dual", "multi"])
    @pytest.mark.parametrize("ffn", ["sefn", "gdfn", "msfn"])
    def test_ours(self, tmp_path, mode, ffn):
        model = network(NetworkConfig(width=8, blocks=(1, 1), heads=(2, 2), refinement=0, mode=mode, ffn=ffn))
        save(model, tmp_path / "m.safetensors", {"note": "ünïcode"})
        again = load(tmp_path / "m.safetensors")
        assert not again.training
        assert again.config == model.config
        assert again.built_from["note"] == "ünïcode"
        assert torch.equal(output(again), output(model))

    def test_keep_changed_on_the_built_model_is_kept(self, tmp_path):
        model = network()
        for i, layer in enumerate(model.attention_layers().values()):
            layer.weights.keep = 0.3 + 0.1 * i
        save(model, tmp_path / "m.safetensors")
        again = load(tmp_path / "m.safetensors")
        assert [x.weights.keep for x in again.attention_layers().values()] == [
            x.weights.keep for x in model.attention_layers().values()
        ]
        assert torch.equal(output(again), output(model))

    def test_what_a_file_cannot_hold_is_not_saved(self, tmp_path):
        model = network()
        next(iter(model.attention_layers().values())).weights.mode = "dense"
        with pytest.raises(LabError, match="set it back"):
            save(model, tmp_path / "m.safetensors")
        assert not list(tmp_path.iterdir())

    def test_half(self, tmp_path):
        model = network(NetworkConfig.preset("tiny"))
        save(model, tmp_path / "full.safetensors")
        save(model, tmp_path / "half.safetensors", half=True)
        sizes = [(tmp_path / f"{name}.safetensors").stat().st_size for name in ("half", "full")]
        assert sizes[0] < 0.53 * sizes[1]
        again = load(tmp_path / "half.safetensors")
        assert {value.dtype for value in again.parameters()} == {torch.float32}
        assert 0 < difference(again, model) < 5e-3

    def test_half_refuses_values_beyond_its_range(self, tmp_path):
        model = network()
        with torch.no_grad():
            model.stem.weight[0, 0, 0, 0] = 1e6
        with pytest.raises(LabError, match="float16 cannot"):
            save(model, tmp_path / "m.safetensors", half=True)

    def test_nothing_is_left_after_a_failed_save(self, tmp_path):
        (tmp_path / "file").write_text("")
        with pytest.raises(LabError, match="cannot write"):
            save(network(), tmp_path / "file" / "m.safetensors")

    def test_shipped(self):
        for name in shipped_weights():
            assert isinstance(load(name), DerainTransformer)


class TestPublished:
    @pytest.mark.parametrize("name", NETWORKS)
    @pytest.mark.parametrize(
        "shape",
        [
            {"width": 8, "blocks": (1, 2, 1), "heads": (1, 2, 2), "ffn_factor": 2.66},
            {"width": 12, "blocks": (2, 1), "heads": (2, 3), "ffn_factor": 1.75},
        ],
    )
    @pytest.mark.parametrize("form", ["safetensors", "params", "module"])
    def test_other_widths_and_depths(self, tmp_path, name, shape, form):
        model = network(NetworkConfig(**{**NETWORKS[name], **shape}))
        theirs = published_names(plain(model), model.config.ffn)
        assert not set(theirs) & set(model.state_dict()) - {
            n for n in theirs if n.startswith(("latent", "refinement."))
        }
        path = tmp_path / ("net.safetensors" if form == "safetensors" else "net.pth")
        if form == "safetensors":
            save_file(theirs, path)
        elif form == "params":
            torch.save({"params": theirs}, path)
        else:
            torch.save({"epoch": 3, "state_dict": {f"module.{n}": v for n, v in theirs.items()}}, path)
        again = load(path)
        assert again.config.stages() == model.config.stages()
        assert (again.config.mode, again.config.ffn) == (model.config.mode, model.config.ffn)
        assert torch.equal(output(again), output(model))

    @pytest.mark.parametrize(
        ("file", "stages"),
        [("idt_ddsa", (1, 1, 2)), ("restormer", (0, 1, 1)), ("drsformer", (0, 1, 1))],
    )
    def test_golden(self, golden, tmp_path, file, stages):
        tensors = load_file(golden / f"{file}_network.safetensors")
        image, expected = tensors.pop("input"), tensors.pop("output")
        save_file(
            {name.removeprefix("param."): v for name, v in tensors.items()}, tmp_path / "net.safetensors"
        )
        model = load(tmp_path / "net.safetensors")
        assert (model.config.first, *model.config.blocks[:2]) == stages
        with torch.inference_mode():
            torch.testing.assert_close(model(image), expected, atol=1e-5, rtol=0)

    def test_released_sizes_are_recognised(self):
        for preset in ("idt_ddsa", "restormer", "drsformer"):
            config = NetworkConfig.preset(preset)
            with torch.device("meta"):
                tensors = DerainTransformer.__new__(DerainTransformer)
                torch.nn.Module.__init__(tensors)
                tensors._build(config)
            assert published.recognise(tensors.state_dict(), Path("net")) == config

    def test_what_is_missing_and_left_over_is_named(self, tmp_path):
        tensors = dict(network().state_dict())
        tensors["encoder.0.0.attention.qkw.weight"] = tensors.pop("encoder.0.0.attention.qkv.weight")
        torch.save(tensors, tmp_path / "net.pth")
        with pytest.raises(
            LabError,
            match=r"1 missing \(encoder.0.0.attention.qkv.weight\); 1 left over \(encoder.0.0.attention.qkw",
        ):
            load(tmp_path / "net.pth")

    def test_half_precision_in_a_pth(self, tmp_path):
        model = network()
        torch.save(
            {n: v.bfloat16() if v.is_floating_point() else v for n, v in model.state_dict().items()},
            tmp_path / "n.pth",
        )
        assert 0 < difference(load(tmp_path / "n.pth"), model) < 0.05

    def test_old_files_of_torch(self, tmp_path):
        model = network()
        torch.save(model.state_dict(), tmp_path / "n.pth", _use_new_zipfile_serialization=False)
        assert torch.equal(output(load(tmp_path / "n.pth")), output(model))

    def test_any_header_length(self, tmp_path):
        """A length whose first bytes look like a pickle's or a zip's must not mislead."""
        model = network()
        tensors, expected = plain(model), output(model)
        for note in range(0, 140, 4):
            save_file(tensors, tmp_path / "n.safetensors", metadata={"note": "x" * note})
            assert torch.equal(output(load(tmp_path / "n.safetensors")), expected)


class TestNames:
    def test_near_names(self, tmp_path):
        if shipped_weights():
            with pytest.raises(LabError, match=f"did you mean '{shipped_weights()[0]}'"):
                find_weights(shipped_weights()[0][:-1])
        save(network(), tmp_path / "dual.safetensors")
        with pytest.raises(LabError, match=r"did you mean .*dual\.safetensors"):
            find_weights(tmp_path / "daul.safetensors")

    @pytest.mark.parametrize("name", ["", "x" * 300, "no such", "../weights/x", "a\0b"])
    def test_wrong_names(self, name):
        with pytest.raises(LabError):
            find_weights(name)

    def test_a_folder(self, tmp_path):
        with pytest.raises(LabError, match="is a folder"):
            load(tmp_path)


# Damage --------------------------------------------------------------------------------------------------


def safetensors_bytes(header, data=b""):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def with_config(**changes):
    """A checkpoint of ours whose settings say something else, as an enemy would make it: without checksum."""
    config = {**SMALL.to_dict(), **changes}
    facts = {"format": "ddsa-lab 1", "config": json.dumps(config)}
    header = {"__metadata__": facts, "stem.weight": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}}
    return safetensors_bytes(header, bytes(16))


class Executed:
    """Unpickled freely, this would make a file."""

    def __reduce__(self):
        return (os.mkdir, ("executed",))


class Reduced:
    def __init__(self, function, *arguments):
        self.reduced = function, arguments

    def __reduce__(self):
        return self.reduced


def hostile(folder):
    """Name -> file content, of files made to hurt."""
    ours, theirs = folder / "ours.safetensors", folder / "theirs.pth"
    model = network()
    save(model, ours)
    tensors = plain(model)

    def pth(value, **options):
        torch.save(value, theirs, **options)
        return theirs.read_bytes()

    def table(**changes):
        save_file({**tensors, **changes}, theirs)
        return theirs.read_bytes()

    giant = {"dtype": "F32", "shape": [1 << 40], "data_offsets": [0, 4 << 40]}
    files = {
        "empty": b"", "text": b"weights", "zeros": bytes(4096), "png": b"\x89PNG\r\n\x1a\n" + bytes(99), "nul": b"\0",
        "header longer than the file": struct.pack("<Q", 1 << 40) + b"{}", "header of 2^64": b"\xff" * 8 + b"{}",
        "header not JSON": safetensors_bytes(b"{nonsense"), "header a list": safetensors_bytes(b"[]"),
        "header not text": safetensors_bytes(b'{"\xff\xfe"}'), "deep header": safetensors_bytes(b'{"a":' + b"[" * 200_000),
        "header without tensors": safetensors_bytes(b"{}"), "tensors of no kind": safetensors_bytes({"a": 1}),
        "metadata a number": safetensors_bytes({"__metadata__": {"config": 3}}),
        "metadata a list": safetensors_bytes({"__metadata__": [1]}), "giant tensor": safetensors_bytes({"a": giant}, b"x" * 64),
        "negative offsets": safetensors_bytes({"a": {"dtype": "F32", "shape": [1], "data_offsets": [-4, 0]}}, bytes(4)),
        "overlap": safetensors_bytes({n: {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]} for n in "ab"}, bytes(4)),
        "unknown type": safetensors_bytes({"a": {"dtype": "F33", "shape": [1], "data_offsets": [0, 4]}}, bytes(4)),
        "many tensors": safetensors_bytes(
            {f"encoder.{i}.0.x": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for i in range(30_000)}
        ),
        "code": pth(Executed()), "code among tensors": pth({"a": torch.ones(1), "b": Executed()}),
        "code, old form": pth({"b": Executed()}, _use_new_zipfile_serialization=False),
        "bare pickle of code": pickle.dumps(Executed()), "bare pickle": pickle.dumps({"a": 1}),
        "protocol 5": pickle.dumps(Executed(), 5), "memory by pickle": pth(Reduced(bytearray, 10**11)),
        "memory, old form": pth(Reduced(bytearray, 10**11), _use_new_zipfile_serialization=False),
        "a number": pth(3), "a list": pth([torch.ones(2)]), "a tensor": pth(torch.ones(2)), "no tensors": pth({}),
        "texts": pth({"params": {"a": "b"}}), "numbered": pth({1: torch.ones(1)}), "nested": pth({"params": {"params": {"params": {}}}}),
        "nested for ever": pth({"state_dict": {"state_dict": {"state_dict": {"state_dict": {"state_dict": {"a": torch.ones(1)}}}}}}),
        "strides of 0": pth({**tensors, "stem.weight": torch.ones(1).expand(10**6, 3, 10**4)}),
        "one storage many times": pth({str(i): torch.zeros(10**4).view(-1) for i in [0]} | dict.fromkeys("abcdef", torch.zeros(10**4))),
        "sparse": pth({"a": torch.eye(3).to_sparse()}), "quantised": pth({"a": torch.quantize_per_tensor(torch.ones(2), 1, 0, torch.qint8)}),
        "meta": pth({"a": torch.ones(3, device="meta")}), "complex": pth({"a": torch.ones(2, dtype=torch.complex64)}),
        "whole network": pth({"a": torch.nn.Linear(2, 2)}),
        "float8": table(**{"stem.weight": tensors["stem.weight"].to(torch.float8_e4m3fn)}),
        "whole numbers": table(**{"stem.weight": tensors["stem.weight"].int()}),
        "truth values": table(**{"latent.0.norm1.weight": tensors["latent.0.norm1.weight"] > 0}),
        "NaN": table(**{"stem.weight": tensors["stem.weight"] * float("nan")}),
        "infinite": table(**{"latent.0.attention.temperature": tensors["latent.0.attention.temperature"] / 0}),
        "other shape": table(**{"head.weight": torch.ones(3, 5, 3, 3)}), "flat": table(**{"stem.weight": torch.ones(4)}),
        "no channels": table(**{"stem.weight": torch.ones(0, 3, 3, 3)}), "one more": table(more=torch.ones(1)),
        "empty latent": table(**{"latent.0.attention.qkv.weight": torch.ones(24, 0, 1, 1)}),
        "many heads": table(**{"latent.0.attention.temperature": torch.ones(4096, 1, 1)}),
        "twice by prefix": table(**{"module.stem.weight": tensors["stem.weight"].clone()}),
        "twice by renaming": table(**{"patch_embed.proj.weight": tensors["stem.weight"].clone()}),
        "strange branches": table(**{"latent.0.attn.attn7": torch.ones(1)}), "control characters": table(**{"\x1b[2J" * 99: torch.ones(1)}),
        "levels without end": table(**{f"encoder.{i}.0.x": torch.ones(1) for i in range(1, 500)}),
        "foreign network": pth(torch.nn.TransformerEncoderLayer(8, 2, 16).state_dict()),
        "newer format": safetensors_bytes({"__metadata__": {"format": "ddsa-lab 9", "config": "{}"}, "a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}, bytes(4)),
        "settings not JSON": safetensors_bytes({"__metadata__": {"format": "ddsa-lab 1", "config": "{"}, "a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}, bytes(4)),
        "settings too deep": safetensors_bytes({"__metadata__": {"format": "ddsa-lab 1", "config": "[" * 10**5}, "a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}, bytes(4)),
    }  # fmt: skip
    for changes in (
        {"width": 10**9}, {"width": 10**400}, {"width": -8}, {"width": "8"}, {"width": 8.5}, {"width": None}, {"width": True},
        {"blocks": [10**5, 1]}, {"blocks": [1] * 10**5, "heads": [1] * 10**5}, {"blocks": 3}, {"blocks": []}, {"blocks": [0, 1]},
        {"heads": [0, 1]}, {"heads": [3, 1]}, {"heads": None}, {"refinement": 10**9}, {"refinement": -1}, {"first": 10**12},
        {"ffn_factor": 1e9}, {"ffn_factor": float("inf")}, {"ffn_factor": float("nan")}, {"ffn_factor": 0}, {"ffn": "moe"},
        {"mode": "softmax"}, {"mode": ["dual"]}, {"mode": None}, {"keep": 0}, {"keep": 1.1}, {"keep": "0.7"}, {"keep": [0.7, 0.7]},
        {"keep": []}, {"keep": [0.5] * 10**6}, {"unknown": 1},
    ):  # fmt: skip
        files[f"settings {str(changes)[:40]}"] = with_config(**changes)
    return files


def bombs(folder):
    """Large files, or small ones that unpack to much; made on disk."""
    with zipfile.ZipFile(folder / "zip bomb", "w", zipfile.ZIP_DEFLATED) as archive:
        for i in range(11):
            archive.writestr(f"archive/data/{i}", bytes(100 << 20), compresslevel=1)
    with zipfile.ZipFile(folder / "pickle bomb", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", bytes(11 << 20), compresslevel=1)
    with zipfile.ZipFile(folder / "zip of nothing", "w") as archive:
        archive.writestr("readme.txt", "no checkpoint")
    with open(folder / "giant", "wb") as file:
        header = json.dumps(
            {"a": {"dtype": "F32", "shape": [3 << 28], "data_offsets": [0, 3 << 30]}}
        ).encode()
        file.write(struct.pack("<Q", len(header)) + header)
        file.truncate(8 + len(header) + (3 << 30))  # sparse: takes no room
    return ["zip bomb", "pickle bomb", "zip of nothing", "giant"]


def refused(path):
    """Load `path`; the LabError's text, after the checks that hold for every one of them."""
    start = time.monotonic()
    with pytest.raises(LabError) as caught:
        load(path)
    assert time.monotonic() - start < 10
    text = str(caught.value)
    assert str(path.name) in text
    assert len(text) < 1500
    assert text.isprintable()
    return text


@pytest.mark.filterwarnings("ignore:torch.quantize")
def test_hostile_files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    files = hostile(tmp_path)
    assert len(files) > 90
    for number, content in enumerate(files.values()):
        path = tmp_path / f"{number}{('.safetensors', '.pth')[number % 2]}"  # the suffix decides nothing
        path.write_bytes(content)
        refused(path)
        path.unlink()
    for name in bombs(tmp_path):
        refused(tmp_path / name)
    assert not (tmp_path / "executed").exists()
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 1_500_000  # kilobytes


def test_memory_of_a_hostile_file_in_a_process_of_its_own(tmp_path):
    """A limit on the address space would kill what spends the memory that a file asks for."""
    torch.save(Reduced(bytearray, 4 * 10**9), tmp_path / "a.pth")
    (tmp_path / "b.safetensors").write_bytes(with_config(width=10**4))
    code = (
        "import sys, ddsa_lab, resource\n"
        "for path in sys.argv[1:]:\n"
        "    try: ddsa_lab.load(path)\n"
        "    except ddsa_lab.LabError as error: print(error)\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
    )
    paths = [str(tmp_path / "a.pth"), str(tmp_path / "b.safetensors")]
    done = subprocess.run([sys.executable, "-c", code, *paths], capture_output=True, text=True, check=True)
    *errors, peak = done.stdout.splitlines()
    assert "bytearray" in errors[0]
    assert "declares a network of" in errors[1]
    assert int(peak) < 2e6


@pytest.mark.parametrize("form", ["ours", "pth"])
def test_truncated(tmp_path, form):
    path = tmp_path / f"n.{'safetensors' if form == 'ours' else 'pth'}"
    save(network(), path) if form == "ours" else torch.save(network().state_dict(), path)
    content = path.read_bytes()
    for length in {0, 1, 7, 8, 9, 100, 1000, len(content) // 2, len(content) - 1}:
        path.write_bytes(content[:length])
        refused(path)


def test_flipped_bits_never_change_a_network_silently(tmp_path):
    """A checkpoint of ours with any bit flipped is refused, unless the bit meant nothing."""
    model, path, rng = network(), tmp_path / "n.safetensors", random.Random(0)
    save(model, path, {"note": "text"})
    content, expected = path.read_bytes(), output(model)
    (length,) = struct.unpack("<Q", content[:8])
    places = [
        *range(8),
        *rng.sample(range(8, 8 + length), 60),
        *rng.sample(range(8 + length, len(content)), 30),
    ]
    survived = 0
    for place in places:
        damaged = bytearray(content)
        damaged[place] ^= 1 << rng.randrange(8)
        path.write_bytes(damaged)
        try:
            again = load(path)
        except LabError:
            continue
        survived += 1
        assert again.config == model.config
        assert torch.equal(output(again), expected)
    assert survived < 10


def test_flipped_bits_in_a_pth(tmp_path):
    """torch checks its records, so that here too a flip is refused or changes nothing that counts."""
    path, rng = tmp_path / "n.pth", random.Random(0)
    torch.save(network().state_dict(), path)
    content = path.read_bytes()
    for _ in range(25):
        damaged = bytearray(content)
        damaged[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
        path.write_bytes(damaged)
        try:
            load(path)
        except LabError as error:
            assert str(error).isprintable()


def test_a_file_that_cannot_be_read(tmp_path):
    path = tmp_path / "n.pth"
    os.mkfifo(path)
    with pytest.raises(LabError):
        load(path)


def test_limits_leave_room_for_the_released_networks():
    from ddsa_lab.model.cost import count_parameters

    largest = count_parameters(NetworkConfig.preset("idt_ddsa"))
    assert 2 * largest < untrusted.MAX_VALUES
    assert 4 * 4 * largest < untrusted.MAX_BYTES  # with a copy for averages and two of the optimiser
