"""Pictures and sound of music: piano rolls as PNG, audio as WAV.

Names are loaded when they are first used, so that `import melodia.render` costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from melodia.render.audio import AudioReport as AudioReport
    from melodia.render.audio import render_audio as render_audio
    from melodia.render.pianoroll import plot_pianoroll as plot_pianoroll

_HOME = {"AudioReport": "audio", "render_audio": "audio", "plot_pianoroll": "pianoroll"}

__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = value
    return value
