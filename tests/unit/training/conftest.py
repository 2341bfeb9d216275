"""One thread, and torch's own deprecated code out of the way of `-W error`."""

from __future__ import annotations

import warnings

import torch

torch.set_num_threads(1)

with warnings.catch_warnings():
    # torch.fx.experimental.optimization imports it, and it uses what torch has deprecated.
    warnings.simplefilter("ignore", DeprecationWarning)
    import torch.utils.mkldnn
