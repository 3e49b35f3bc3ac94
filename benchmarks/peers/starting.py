"""Start the servers that load is put on, each in its own process on the server's core, and ask them how they fared."""

import json
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.processes import PYTHON, ROOT, SERVER_CORE, Running


class Peer:
    """A server at work."""

    def __init__(self, running: Running, url: str) -> None:
        self.running, self.url = running, url

    def forget(self) -> None:
        """Let a paced server's figures begin anew."""
        self._ask("/forget")

    def figures(self) -> dict[str, Any]:
        """What a paced server did since it was told to forget."""
        return self._ask("/figures")

    def _ask(self, path: str) -> dict[str, Any]:
        with urllib.request.urlopen(self.url + path, timeout=30) as answer:
            found: dict[str, Any] = json.load(answer)
        return found


@contextmanager
def paced_server() -> Iterator[Peer]:
    """benchmarks/peers/paced_server.py."""
    with Running([*PYTHON, "benchmarks.peers.paced_server"], cwd=ROOT, core=SERVER_CORE) as running:
        yield Peer(running, running.wait_for("ready on ").rpartition(" ")[2])


@contextmanager
def bundled_server(folder: Path, *options: str) -> Iterator[tuple[Peer, Path]]:
    """python -m gpu_server, and where its trace is."""
    folder.mkdir(parents=True, exist_ok=True)
    trace = folder / "trace.jsonl"
    command = [*PYTHON, "gpu_server", "--port", "0", "--trace", str(trace), *options]
    with Running(command, cwd=folder, core=SERVER_CORE) as running:
        yield Peer(running, running.wait_for(" on http").split(" on ", 1)[1].split()[0]), trace


def path(**asked: float) -> str:
    """The target of a paced server's answer: chunks, bytes, first_ms, gap_ms."""
    return "/speech?" + "&".join(f"{key}={value:g}" for key, value in asked.items())
