"""The styles: a clean one for pretraining, and a shifted one for each task."""

from types import MappingProxyType

from apgd.data.rendering.style import Style

_PLAIN_FONTS = (
    "DejaVuSans.ttf",
    "DejaVuSans-Bold.ttf",
    "DejaVuSans-Oblique.ttf",
    "DejaVuSerif.ttf",
    "DejaVuSansMono.ttf",
)
_OTHER_FONTS = (
    "STIXGeneral.ttf",
    "STIXGeneralBol.ttf",
    "STIXGeneralBolIta.ttf",
    "DejaVuSerif-BoldItalic.ttf",
    "cmr10.ttf",
    "cmb10.ttf",
    "cmss10.ttf",
    "cmtt10.ttf",
    "cmti10.ttf",
)

# Rows: how much of the true red, green and blue the shown red, green and blue have.
_INFRARED = ((-0.5, 1.7, -0.2), (0.8, 0.2, 0.0), (0.1, 0.7, 0.2))
"""Red shows the near infrared, in which plants are bright and water is dark."""
_LAMPLIGHT = ((0.55, 0.4, 0.05), (0.3, 0.45, 0.15), (0.15, 0.25, 0.3))
"""Under yellow lamps, which leave little of the colours."""
_FADED = ((0.6, 0.3, 0.1), (0.2, 0.55, 0.15), (0.2, 0.35, 0.35))
"""An old print."""

CLEAN = Style(fonts=_PLAIN_FONTS)
"""What the base model sees most of."""

IMITATION = Style(
    fonts=_PLAIN_FONTS,
    turn=15.0,
    size=(0.9, 1.15),
    shift=0.1,
    shear=0.3,
    mottle=(0.0, 0.0),
    contrast=(1.0, 1.0),
    brightness=(0.0, 0.0),
    tint=0.0,
    noise=(0.0, 6.0),
)
"""Printed digits that imitate handwritten ones."""

SHIFTED = MappingProxyType(
    {
        "scenes": Style(
            fonts=_OTHER_FONTS,
            turn=16.0,
            shift=0.35,
            stray=0.25,
            mottle=(20.0, 50.0),
            contrast=(0.4, 0.7),
            brightness=(-25.0, 30.0),
            tint=0.15,
            blur=(0.0, 0.15),
            noise=(12.0, 20.0),
            mixing=_FADED,
        ),
        "vehicles": Style(
            fonts=_OTHER_FONTS,
            turn=8.0,
            size=(0.9, 1.1),
            shift=0.12,
            shear=0.06,
            stray=0.1,
            ground=(60.0, 180.0),
            clutter=(50.0, 100.0),
            mottle=(5.0, 20.0),
            contrast=(0.7, 1.05),
            tint=0.1,
            blur=(0.0, 0.08),
            noise=(6.0, 11.0),
        ),
        "aerial": Style(
            fonts=_OTHER_FONTS,
            size=(0.85, 1.1),
            shift=0.18,
            stray=0.18,
            mottle=(15.0, 40.0),
            contrast=(0.5, 0.8),
            tint=0.2,
            blur=(0.0, 0.1),
            noise=(10.0, 18.0),
            mixing=_INFRARED,
        ),
        "landcover": Style(
            fonts=_OTHER_FONTS,
            size=(0.8, 1.3),
            stray=0.12,
            mottle=(15.0, 35.0),
            contrast=(0.6, 0.9),
            tint=0.1,
            blur=(0.05, 0.2),
            noise=(8.0, 16.0),
            mixing=_INFRARED,
        ),
        "numerals": Style(
            fonts=_OTHER_FONTS,
            turn=10.0,
            size=(0.85, 1.15),
            shift=0.12,
            shear=0.2,
            stray=0.2,
            ground=(20.0, 80.0),
            clutter=(40.0, 80.0),
            neighbours=0.6,
            mottle=(10.0, 30.0),
            contrast=(0.65, 1.0),
            tint=0.15,
            blur=(0.0, 0.1),
            noise=(9.0, 16.0),
        ),
        "signs": Style(
            fonts=_OTHER_FONTS,
            turn=12.0,
            size=(0.7, 1.0),
            shift=0.15,
            shear=0.15,
            stray=0.2,
            ground=(60.0, 180.0),
            clutter=(80.0, 140.0),
            mottle=(10.0, 40.0),
            contrast=(0.45, 0.85),
            brightness=(-30.0, 30.0),
            tint=0.15,
            blur=(0.0, 0.12),
            noise=(6.0, 12.0),
            mixing=_LAMPLIGHT,
        ),
        "textures": Style(
            fonts=_OTHER_FONTS,
            turn=30.0,
            size=(0.9, 1.35),
            shear=0.05,
            stray=0.2,
            mottle=(15.0, 40.0),
            contrast=(0.5, 0.85),
            tint=0.15,
            blur=(0.0, 0.1),
            noise=(10.0, 20.0),
        ),
        "letters": Style(
            fonts=_OTHER_FONTS,
            turn=12.0,
            size=(0.8, 1.1),
            shift=0.12,
            shear=0.2,
            stray=0.2,
            ground=(20.0, 80.0),
            clutter=(30.0, 70.0),
            neighbours=0.5,
            mottle=(10.0, 25.0),
            contrast=(0.6, 0.9),
            tint=0.12,
            blur=(0.0, 0.12),
            noise=(8.0, 16.0),
        ),
        "shapes": Style(
            fonts=_OTHER_FONTS,
            turn=25.0,
            size=(0.65, 1.0),
            shift=0.2,
            shear=0.15,
            stray=0.15,
            ground=(40.0, 110.0),
            clutter=(50.0, 100.0),
            mottle=(10.0, 30.0),
            contrast=(0.6, 0.9),
            tint=0.12,
            blur=(0.0, 0.15),
            noise=(10.0, 18.0),
        ),
    }
)
"""How the pictures of each task differ from the clean ones, by the task's name."""
