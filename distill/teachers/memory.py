"""Keep memory that was freed: half of the original encoder's time on a CPU goes into getting the same pages from the kernel again.

glibc gives blocks above a threshold back to the kernel when they are freed and asks for fresh, zeroed pages at the next
allocation. A network's activations are such blocks; segment-anything's ViT-B touches 3.9 million fresh pages per 1024 px image.
``mallopt`` (glibc manual, "Malloc Tunable Parameters") changes that in the running process, so nothing has to be
started again with ``GLIBC_TUNABLES`` in its environment. What it sets, and why each is needed:

- ``M_MMAP_MAX = 0``: no block gets a mapping of its own. Raising the threshold instead stops at 32 MiB, below a layer's logits.
- ``M_TRIM_THRESHOLD`` at its maximum: the heap's end is kept. Set alone it makes matters worse, since it freezes the threshold.
- ``M_TOP_PAD``: the heap grows in large steps.
- ``M_ARENA_MAX = 1``: threads share the main heap, as their own ones cannot hold large blocks and each would keep its own peak.

The process then stays at its largest size; it does not grow further (``tests/end_to_end/test_memory.py``).
"""

import ctypes
import os
import sys
from functools import cache

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX, M_ARENA_MAX = -1, -2, -4, -8
"""Numbers of the parameters in glibc's ``malloc.h``."""
SETTINGS = {M_MMAP_MAX: 0, M_TRIM_THRESHOLD: 2**31 - 1, M_TOP_PAD: 64 << 20, M_ARENA_MAX: 1}
OPT_OUT = "SAMDISTILL_MALLOC"
"""``SAMDISTILL_MALLOC=default`` in the environment leaves the allocator alone."""


@cache
def keep_freed_memory() -> bool:
    """Tell glibc to keep freed memory for the rest of this process. Call it early; again is harmless.

    Returns:
        True if it was told; False on other systems and C libraries, or where the environment says not to.
    """
    if os.environ.get(OPT_OUT) == "default" or not sys.platform.startswith("linux"):
        return False
    library = ctypes.CDLL(None)
    if not hasattr(library, "gnu_get_libc_version") or not hasattr(library, "mallopt"):
        return False
    told = [library.mallopt(parameter, value) == 1 for parameter, value in SETTINGS.items()]
    return all(told)
