"""One place that fixes how torch computes, so that the same seed gives the same bits."""

import os

import torch


def configure(threads: int) -> None:
    """Make this process compute deterministically, on a given number of CPU threads.

    Two threads per worker on a busy machine can be ten times slower than one, so `threads` is what
    the worker owns, no more. Matrix products are float32 throughout: TF32 is off.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(True)
    # Nothing here reads memory before it is written, so there is no need to fill it.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cudnn.benchmark = False
