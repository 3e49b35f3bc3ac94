"""How the verbs speak to whoever started them, and write JSON. Knows nothing of figures."""

import json
import math
import os
import shutil
import sys
from pathlib import Path
from typing import Any

FALLBACK_WIDTH = 120
NARROWEST, WIDEST = 100, 140


def say(text: str) -> None:
    """Print to wherever standard output goes: a log may not know every character, a reader may have left."""
    encoding = sys.stdout.encoding or "utf-8"
    try:
        print(text.encode(encoding, "replace").decode(encoding), flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python complains when it flushes at exit


def width(asked: int | None) -> int:
    """Columns of a page: as asked, else the terminal's within reason, else a log's."""
    if asked:
        return asked
    if not sys.stdout.isatty() and "COLUMNS" not in os.environ:
        return FALLBACK_WIDTH
    return min(WIDEST, max(NARROWEST, shutil.get_terminal_size((FALLBACK_WIDTH, 40)).columns))


def write_json(path: Path, figures: Any) -> None:
    """Write figures as JSON, which knows no NaN and no infinity: they are null. Raises OSError."""
    path.write_text(json.dumps(_plain(figures), indent=1, ensure_ascii=False, allow_nan=False) + "\n", "utf-8")


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
