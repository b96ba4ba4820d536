"""How pictures of a subject look: the same drawing code, in a clean or in a shifted style."""

from dataclasses import dataclass

Range = tuple[float, float]
"""Lower and upper end; a value is drawn uniformly between them for each picture."""
Row = tuple[float, float, float]


@dataclass(frozen=True, kw_only=True)
class Style:
    """Everything about a picture that its label does not say."""

    fonts: tuple[str, ...]
    """File names in matplotlib's font folder."""
    turn: float = 6.0
    """Largest rotation, in degrees to either side."""
    size: Range = (0.85, 1.05)
    """Factor on the size of the thing shown."""
    shift: float = 0.08
    """Largest move of the thing shown, as a share of half the picture."""
    shear: float = 0.05
    """Largest slant."""
    stray: float = 0.10
    """How far colours stray from the usual ones, in [0, 1]."""
    ground: Range = (20.0, 110.0)
    """Mean grey level of the background behind things that do not fill the picture."""
    clutter: Range = (0.0, 40.0)
    """Amplitude of the coloured blotches in that background, in grey levels."""
    neighbours: float = 0.0
    """Chance, for either side, that a glyph stands next to the one that is meant."""
    mottle: Range = (0.0, 10.0)
    """Amplitude of blotches over the whole picture, in grey levels."""
    contrast: Range = (0.8, 1.1)
    """Gain around middle grey."""
    brightness: Range = (-12.0, 12.0)
    """Offset, in grey levels."""
    tint: float = 0.05
    """Largest change of a single channel's gain."""
    blur: Range = (0.0, 0.05)
    """Weight that either neighbour gets in the smoothing kernel (at most 1/3)."""
    noise: Range = (2.0, 10.0)
    """Standard deviation of pixel noise, in grey levels."""
    mixing: tuple[Row, Row, Row] | None = None
    """Matrix from true to shown colours, for false-colour pictures."""
