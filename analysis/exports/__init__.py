"""A run in the formats of the tools people compare with: one module a format, each with `export` and `console`.

EXPORTS names them for `python -m analysis.report RUN --export NAME`.
"""

from collections.abc import Callable
from pathlib import Path

from analysis.exports import personaplex, voice_agent
from analysis.runs import Run

Export = Callable[[Run, Path], tuple[list[Path], str]]

# Name -> writes the files of a run into a directory (personaplex: or as the .json named); the paths written, and what
# to print.
EXPORTS: dict[str, Export] = {"personaplex": personaplex.export, "voice_agent": voice_agent.export}
