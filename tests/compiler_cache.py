"""Where torch's compiler keeps its code during the tests; imports no torch, which sets a folder of its own."""

import getpass
import hashlib
import os
import tempfile
from contextlib import suppress
from pathlib import Path


def compiler_cache() -> str:
    """A folder for each set of instructions.

    The compiler does not ask for which of them the code in its cache is: code for others gives NaN, or aborts.
    """
    used = os.environ.get("ATEN_CPU_CAPABILITY", "")
    with suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        used += next((line for line in lines if line.startswith("flags")), "")
    name = f"torchinductor_tests_{getpass.getuser()}_{hashlib.blake2b(used.encode(), digest_size=6).hexdigest()}"
    return str(Path(tempfile.gettempdir()) / name)
