"""Freed memory that the process keeps: on a CPU a model's large tensors come and go by the thousand."""

import ctypes
import platform

# Of malloc.h; part of glibc's ABI.
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
_LARGEST = 2**31 - 1  # an int
# Older versions of glibc take no higher one.
_MMAP_THRESHOLDS = (2**30, 2**25)


def keep_freed_memory() -> bool:
    """Let glibc keep freed tensors for the next ones, for the rest of the process.

    By default it gives large ones back to the system at once and gets fresh, zeroed pages for each new one: about a
    tenth of the time of an 84M model on a CPU (benchmarks/README.md). The process then holds its highest memory until
    it ends. `unimol2-hf` does this by itself; a script of one's own may, before it makes its first tensor.

    Returns:
        Whether it took effect; False where the C library is not glibc.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    set_option = ctypes.CDLL(None).mallopt
    kept = bool(set_option(_TRIM_THRESHOLD, _LARGEST))
    return kept and any(set_option(_MMAP_THRESHOLD, threshold) for threshold in _MMAP_THRESHOLDS)
