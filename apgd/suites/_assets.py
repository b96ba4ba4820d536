"""Files of the embedded suites that come with the package, each known by its hash."""

from functools import cache
from pathlib import Path

from apgd.errors import InputError
from apgd.files import sha256_file

_FOLDER = Path(__file__).parent / "assets"

PINNED = {
    "mini_vision.safetensors": "c4c6c860cef42ad25becfdcf1664c8a103d1bcefe18fb60f4a28a31a58492958",
    "mini_text.safetensors": "8961ca370bfbd5cbea46750d8085061dce76605653978935e957996e55ad7833",
    "mini_text_tokenizer.json": "e86c72d11ec8fb0326ce26a0a8c88aec862f18fd4c65597fcd2e0b640340f90c",
}
"""SHA-256 by name.

Whoever makes a base anew, with experiments/pretrain_mini.py or pretrain_mini_text.py, pins the hash
that the script prints.
"""


@cache
def asset(name: str) -> Path:
    """A file of the package, read once per process to see that it is what was pinned.

    Raises:
        InputError: where it is another one, or missing.
    """
    path = _FOLDER / name
    if not path.is_file():
        raise InputError(f"{path} is missing; `git checkout -- {path.name}` there brings it back")
    found = sha256_file(path)
    if found != PINNED[name]:
        raise InputError(
            f"{path} must have the SHA-256 {PINNED[name][:12]}… that apgd/suites/_assets.py pins, "
            f"but has {found[:12]}…; `git checkout -- {path.name}` there brings it back"
        )
    return path
