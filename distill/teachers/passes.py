"""Work in passes of one size, so that on a CPU no result depends, to the last bit, on what else is computed with it.

Libraries for products choose their order of additions by the sizes of the whole call. What is computed in calls of one size alone does not change with
company, whatever its place among them.
"""

import torch


def whole_passes(count: int, size: int) -> torch.Tensor:
    """Return the indices of ``count`` items, at least one, the last repeated until they fill passes of ``size``: ``(N,)`` int64."""
    return torch.arange(-(-count // size) * size).clamp_(max=count - 1)
