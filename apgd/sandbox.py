"""Files of PyTorch, read in a process of their own."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from torch import Tensor

from apgd import pickled
from apgd.checkpoints import load_weights, read_metadata
from apgd.errors import InputError

_SECONDS = 900
_KEPT_ENVIRONMENT = ("LD_LIBRARY_PATH",)


def load_pickled(source: Path) -> tuple[dict[str, Tensor], str | None]:
    """The tensors of a state dict, or of a module of any class, without running any of it.

    They are read in a process (apgd.pickled) that has limits on memory, time and written bytes,
    knows nothing of this one's environment, and hands them over as safetensors.

    Args:
        source: a file of PyTorch.

    Returns:
        Names and tensors as `state_dict()` of the module gives them; and the activation that its
        classes tell, `quick_gelu` or `gelu`.

    Raises:
        InputError: where the file is damaged, or asks for anything but tensors.
    """
    if not source.is_file():
        raise InputError(f"{source} must be a file, but is none")
    with tempfile.TemporaryDirectory(prefix="apgd-") as folder:
        extracted = Path(folder) / "tensors.safetensors"
        _extract(source.resolve(), extracted)
        activation = read_metadata(extracted).get("activation")
        return load_weights(extracted, str(source)), str(activation) if activation else None


def _extract(source: Path, out: Path) -> None:
    environment = {n: os.environ[n] for n in _KEPT_ENVIRONMENT if n in os.environ}
    try:
        # By its path and isolated: neither this folder nor the user's can put modules in its way.
        finished = subprocess.run(  # noqa: S603 - our own program
            [sys.executable, "-I", pickled.__file__, str(source), str(out)],
            env={**environment, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            cwd=out.parent,
            timeout=_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise InputError(f"{source} could not be read within {_SECONDS} s") from None
    if finished.returncode == pickled.REFUSED:
        raise InputError(f"{source} was refused: {finished.stderr.decode(errors='replace')}")
    if finished.returncode != 0:
        raise InputError(
            f"{source} was refused: the process that read it ended with status "
            f"{finished.returncode}, as it does beyond its limits of memory and time"
        )
