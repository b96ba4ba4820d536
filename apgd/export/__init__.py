"""A merged model as a folder that transformers or open_clip loads, with a model card.

`export` is the whole interface; one file for each kind of model makes the folder's content.
"""

import shutil
import tempfile
from pathlib import Path

from apgd.checkpoints import InFiles
from apgd.errors import InputError
from apgd.export.card import Origin, card, origin_of
from apgd.export.clip import write_clip
from apgd.export.content import Content
from apgd.export.text_to_text import is_text_to_text, write_text_to_text
from apgd.files import write_text
from apgd.models.clip_geometry import Geometry
from apgd.models.clip_hub import recorded_activation, weights_file
from apgd.models.clip_layouts import Library

__all__ = ["Library", "Origin", "export", "origin_of"]

README = "README.md"


def export(
    merged: Path,
    out: Path,
    library: Library,
    origin: Origin,
    *,
    base: Path | None = None,
    geometry: Geometry | None = None,
) -> Content:
    """Write a merged model as a folder for a library, and its card as README.md.

    Args:
        merged: weights of a CLIP in any known layout, or of a T5: a file, or a folder of shards.
        out: the folder to make; it appears when it is complete.
        library: who is going to load it.
        origin: what the card tells of the merge.
        base: a folder of the base, for what the merged weights do not hold: the text tower of a
            CLIP, configuration and tokenizer of a T5. Without it, a CLIP's vision tower alone
            becomes a CLIPVisionModelWithProjection.
        geometry: which CLIP it is; told by its sizes where None.

    Raises:
        InputError: where `out` exists, weights are damaged or not completely those of a known
            model, or something is needed of a base that is not given or does not hold it.
    """
    if out.exists():
        raise InputError(f"an export makes a new folder, but {out} exists already")
    if not out.parent.is_dir():
        raise InputError(f"the folder of the export must lie in one that exists, but got {out}")
    weights = InFiles("the merged model", weights_file(merged))
    folder = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    try:
        if is_text_to_text(weights.names()):
            content = write_text_to_text(weights, folder, library, base)
        else:
            content = write_clip(
                weights, recorded_activation(merged), folder, library, base, geometry
            )
        write_text(folder / README, card(content, origin))
        folder.chmod(0o755)
        folder.rename(out)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return content
