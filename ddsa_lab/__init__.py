"""ddsa_lab: a laboratory for sparse attention in image restoration.

    import ddsa_lab as lab

    pair = lab.rainy_pair("coffee", rain="heavy", seed=0)   # .clean .rainy .streaks, (3, H, W) in [0, 1]
    model = lab.load("dual-tiny")
    restored = lab.derain(model, pair.rainy)
    lab.score(restored, pair.clean)

Names are loaded when first used, so that importing the package costs little more than importing torch.
"""

from importlib import import_module

from ddsa_lab.errors import LabError

__version__ = "0.1.0"

_HOME = {
    "data.images": ["load_image", "read_photo", "save_image"],
    "data.photos": ["HELD_OUT_PHOTOS", "TRAIN_PHOTOS", "dead_leaves", "sample_photo"],
    "data.rain": ["add_rain", "rainy_pair", "render_rain", "sample_rain"],
    "model.checkpoints": ["load", "save", "shipped_weights"],
    "model.network": ["DerainTransformer", "NetworkConfig"],
    "model.restore": ["derain"],
    "training.config": ["TrainConfig"],
    "training.loop": ["fit"],
    "evaluation.metrics": ["psnr", "score", "ssim"],
    "training.study": ["run_study"],
    "evaluation.benchmark": ["evaluate_folder"],
    "analysis.probe": ["record"],
    "analysis.sparsity": ["dead_keys", "overlap_table", "sparsity_table"],
    "analysis.surgery": ["surgery", "sweep"],
    "analysis.attribution": ["attribute"],
    "analysis.local_attribution": ["local_attribution"],
}
_WHERE = {name: module for module, names in _HOME.items() for name in names}
__all__ = ["LabError", "__version__", *sorted(_WHERE)]


def __getattr__(name: str):
    if name not in _WHERE:
        raise AttributeError(f"module 'ddsa_lab' has no attribute {name!r}")
    return getattr(import_module(f"ddsa_lab.{_WHERE[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
