"""Pictures drawn in code: subjects, styles, and the camera that takes one in the other."""

from apgd.data.rendering.aerial import AERIAL
from apgd.data.rendering.glyphs import DIGITS, LETTERS
from apgd.data.rendering.handwriting import HANDWRITTEN_SIZES, IMITATIONS, handwritten
from apgd.data.rendering.landcover import LANDCOVER
from apgd.data.rendering.render import render
from apgd.data.rendering.scenes import SCENES
from apgd.data.rendering.shapes import SHAPES
from apgd.data.rendering.signs import SIGNS
from apgd.data.rendering.style import Style
from apgd.data.rendering.styles import CLEAN, IMITATION, SHIFTED
from apgd.data.rendering.subject import Subject
from apgd.data.rendering.textures import TEXTURES
from apgd.data.rendering.vehicles import VEHICLES

__all__ = [
    "AERIAL",
    "CLEAN",
    "DIGITS",
    "HANDWRITTEN_SIZES",
    "IMITATION",
    "IMITATIONS",
    "LANDCOVER",
    "LETTERS",
    "SCENES",
    "SHAPES",
    "SHIFTED",
    "SIGNS",
    "TEXTURES",
    "VEHICLES",
    "Style",
    "Subject",
    "handwritten",
    "render",
]
