"""How torch's threads wait for each other on a CPU: spinning, they keep the cores from others, and from themselves."""

import os

# Who has set one of them has decided how threads wait.
_OF_THE_USER = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")


def let_waiting_threads_sleep() -> None:
    """Set how OpenMP's threads wait, for this process and its children, unless the environment says it already.

    By default a thread of libgomp that waits for another one spins for milliseconds. Where the other one has lost its
    core to a busy neighbour, two threads on two cores then take twenty times as long (benchmarks/speed/neighbour.md).
    OpenMP reads its variables when it is loaded: call this before the first import of torch.
    """
    if not any(name in os.environ for name in _OF_THE_USER):
        os.environ["GOMP_SPINCOUNT"] = "1000"
