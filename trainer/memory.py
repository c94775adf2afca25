"""Memory: what a training will take, what there is, what was taken, and what is kept for the next picture.

Invariant: a batch that cannot fit is refused with the number that would, before the kernel ends the process for it.
"""

import ctypes
import math
import resource
from pathlib import Path
from typing import TYPE_CHECKING

from trainer.errors import InputError

if TYPE_CHECKING:
    import keras  # the commands that only ask for the peak do without

LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current")
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # malloc.h
BYTES = 4  # of a float32
KEPT_BYTES = 8 << 20  # a photo's buffers; larger ones go back to the system at once
COPIES = 3  # of each activation: kept for the gradient, the gradient itself, and what the kernels need on the way


def require(network: "keras.Model", batch_size: int) -> None:
    """Raise InputError where training with such batches would take more memory than there is."""
    per_photo = activation_bytes(network)
    free = available()
    if free is not None and per_photo * batch_size > free:
        fits = max(1, 2 ** int(math.log2(max(1, free // per_photo))))
        raise InputError(
            f"trainer.batch_size {batch_size} takes about {per_photo * batch_size / 1e9:.1f} GB of memory, and "
            f"{free / 1e9:.1f} GB are free: set it to {fits} or less"
        )


def activation_bytes(network: "keras.Model") -> int:
    """Estimate the bytes that training takes for each photo of a batch."""
    shapes = [layer.output.shape[1:] for layer in network.layers if hasattr(layer.output, "shape")]
    values: int = sum(math.prod(shape) for shape in shapes)
    return COPIES * BYTES * values


def available() -> int | None:
    """Return how many bytes this process may still take; None where the system does not say."""
    found = [*_meminfo(), *_cgroup()]
    return min(found) if found else None


def keep_buffers() -> None:
    """Have malloc use the buffers of one picture for the next; without glibc nothing is done.

    Else each would be fresh pages from the kernel: a fifth of a photo's CPU where TensorFlow has run a generator
    (`ApplyPython311MemoryPatch` ends glibc's own adapting), and a third of its decoding in the main thread.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_MMAP_THRESHOLD, KEPT_BYTES)
        mallopt(M_TRIM_THRESHOLD, 2 * KEPT_BYTES)


def peak() -> int:
    """Return the most bytes that this process has had in memory."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _meminfo() -> list[int]:
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return []
    return [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")]


def _cgroup() -> list[int]:
    try:
        most, used = (Path(name).read_text().strip() for name in LIMITS)
    except OSError:
        return []
    return [] if most == "max" else [int(most) - int(used)]
