"""How the C library hands memory out: kept between uses, instead of returned and taken anew."""

import ctypes
import functools
import sys

# Parameters of glibc's mallopt (malloc.h).
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4


@functools.cache
def keep_freed_memory() -> bool:
    """Let this process keep the memory that it frees, for the next tensor.

    By default glibc gives every block above 32 MB, and the top of its heap, back to the system and gets it
    again page by page: a training step of the tiny network took 69,000 page faults, 17 % of its time on
    a virtual machine. The price: the process stays as large as it has once been. Used by training,
    by `ddsa-lab evaluate` and by benchmarks (for both sides), not by importing or by restoring photos.

    Returns:
        Whether the C library knows the setting (Linux with glibc); elsewhere nothing happens.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    return bool(mallopt(_M_MMAP_MAX, 0)) and bool(mallopt(_M_TRIM_THRESHOLD, -1))
