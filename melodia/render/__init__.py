"""Pictures and sound of music: piano rolls as PNG, audio as WAV.

Names are loaded when they are first used, so that `import melodia.render` costs nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from melodia.lazy import on_demand

if TYPE_CHECKING:
    from melodia.render.audio import AudioReport as AudioReport
    from melodia.render.audio import render_audio as render_audio
    from melodia.render.pianoroll import plot_pianoroll as plot_pianoroll

_HOME = {"AudioReport": "audio", "render_audio": "audio", "plot_pianoroll": "pianoroll"}

__all__ = sorted(_HOME)

__getattr__ = on_demand(__name__, _HOME)
