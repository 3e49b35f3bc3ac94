"""A title, a table and some lines as GitHub's Markdown, for pull requests. Knows not what they are of."""

from collections.abc import Sequence
from pathlib import Path

# Marks that could begin code, emphasis, a tag or a link. A bar ends a cell.
_PLAIN = str.maketrans({mark: f"\\{mark}" for mark in "\\`*_<[|"})


def write_markdown(path: Path, title: str, table: Sequence[Sequence[str]], lines: Sequence[str] = ()) -> None:
    """Write `title`, `table` (the header, then its rows; nothing: no table) and `lines`, a paragraph each.

    Texts are shown as they are, on one line: no mark in them means anything. Raises OSError.
    """
    parts = [f"### {_plain(title)}"]
    if table:
        header, *rows = [[_plain(cell) for cell in row] for row in table]
        parts.append("\n".join(f"| {' | '.join(row)} |" for row in [header, ["---"] * len(header), *rows]))
    parts += [_plain(line) for line in lines]
    path.write_text("\n\n".join(parts) + "\n", "utf-8")


def _plain(text: str) -> str:
    return " ".join(text.split()).translate(_PLAIN)
