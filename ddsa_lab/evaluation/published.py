"""Published scores to stand beside one's own, each with its protocol and its source.

They are other people's claims, copied from the tables named, not measurements of ours. The table of the DDSA
paper (arXiv 2308.07781) was not at hand, so no number here is that paper's.
"""

from dataclasses import dataclass
from types import MappingProxyType

from ddsa_lab.errors import choose

# Which protocol each benchmark's published luma scores follow.
BENCHMARK_PROTOCOLS = MappingProxyType(
    {
        "Rain100L": "y_uint8",
        "Rain100H": "y_uint8",
        "Rain200L": "y_uint8",
        "Rain200H": "y_uint8",
        "DID": "y_double",
        "DDN": "y_double",
        "SPA": "y_uint8",
    }
)


@dataclass(frozen=True)
class Published:
    """One published score: PSNR in dB and SSIM (None where it was not given)."""

    method: str
    benchmark: str
    psnr: float
    ssim: float | None
    source: str

    @property
    def protocol(self) -> str:
        """The protocol of the benchmark's published scores."""
        return BENCHMARK_PROTOCOLS[self.benchmark]


_COLUMNS = ("Rain200L", "Rain200H", "DID", "DDN", "SPA")
_TABLES = "DRSformer (CVPR 2023) and NeRD-Rain (CVPR 2024), comparison tables"
_ROWS = {
    "PReNet": ((37.80, 0.9814), (29.04, 0.8991), (33.17, 0.9481), (32.60, 0.9459), (40.16, 0.9816)),
    "MPRNet": ((39.47, 0.9825), (30.67, 0.9110), (33.99, 0.9590), (33.10, 0.9347), (43.64, 0.9844)),
    "Restormer": ((40.99, 0.9890), (32.00, 0.9329), (35.29, 0.9641), (34.20, 0.9571), (47.98, 0.9921)),
    "IDT (Xiao et al.; not DDSA)": (
        (40.74, 0.9884), (32.10, 0.9344), (34.89, 0.9623), (33.84, 0.9549), (47.35, 0.9930),
    ),
    "DRSformer": ((41.23, 0.9894), (32.17, 0.9326), (35.35, 0.9646), (34.35, 0.9588), (48.54, 0.9924)),
    "NeRD-Rain": ((41.71, 0.9903), (32.40, 0.9373), (35.53, 0.9659), (34.45, 0.9596), (49.58, 0.9940)),
}  # fmt: skip
_RAIN100 = (
    Published("untouched input", "Rain100L", 26.90, None, "deraining papers' tables"),
    Published("PReNet", "Rain100L", 37.48, 0.979, "PReNet (CVPR 2019)"),
    Published("Restormer, trained on Rain13K", "Rain100L", 38.99, 0.978, "Restormer (CVPR 2022)"),
    Published("untouched input", "Rain100H", 13.56, None, "deraining papers' tables"),
    Published("PReNet", "Rain100H", 29.46, 0.899, "PReNet (CVPR 2019)"),
    Published("Restormer, trained on Rain13K", "Rain100H", 31.46, 0.904, "Restormer (CVPR 2022)"),
)
PUBLISHED = _RAIN100 + tuple(
    Published(method, benchmark, psnr, ssim, _TABLES)
    for method, scores in _ROWS.items()
    for benchmark, (psnr, ssim) in zip(_COLUMNS, scores)
)


def published(benchmark: str) -> tuple[Published, ...]:
    """Return the published scores of a benchmark, lowest PSNR first.

    Args:
        benchmark: a name in BENCHMARK_PROTOCOLS.

    Raises:
        LabError: an unknown benchmark.
    """
    choose("benchmark", benchmark, BENCHMARK_PROTOCOLS)
    return tuple(sorted((p for p in PUBLISHED if p.benchmark == benchmark), key=lambda p: p.psnr))
