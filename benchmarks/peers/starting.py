"""Start the servers that load is put on, each in its own process on the server's core, and ask them how they fared."""

import json
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks import voice
from benchmarks.peers import duplex_pages
from benchmarks.peers.building import built
from benchmarks.processes import PYTHON, ROOT, SERVER_CORE, ProcessFailed, Running

ANSWER_S, DUPLEX_ANSWER_S = 3.0, 2.0
_ONSETS = (0, 200, 481, 963, 1444, 1900)  # samples in the first chunk of an answer: anywhere in a message
_TRACE, _RECEIPTS = "trace.jsonl", "receipts.bin"


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


class AgentPeer(Peer):
    """A voice agent at work. made_of: "C", or "Python" where no compiler is there."""

    def __init__(self, running: Running, url: str, secure: str, made_of: str, folder: Path) -> None:
        super().__init__(running, url)
        self.made_of, self.trace, self.receipts = made_of, folder / _TRACE, folder / _RECEIPTS
        self.port = int(url.rpartition(":")[2])
        self.ws_url, self.wss_url = url.replace("http", "ws", 1), secure


@contextmanager
def agent_peer(
    folder: Path, *options: str, tls: bool = False, says: voice.Samples | None = None
) -> Iterator[AgentPeer]:
    """benchmarks/peers/agent_peer.c, or agent_peer.py; its trace and receipts are written into `folder`.

    Files are whole once `figures` was asked. tls: the same port takes wss:// too. says: its answers, 16 kHz; by default
    ANSWER_S of a made voice, loud from its first sample to its last. Raises ImportError without trustme.
    """
    folder.mkdir(parents=True, exist_ok=True)
    answer = folder / "answer.s16"
    answer.write_bytes((voice.voiced(ANSWER_S) if says is None else says).tobytes())
    files = ("--answer", str(answer), "--trace", str(folder / _TRACE), "--receipts", str(folder / _RECEIPTS))
    if tls:
        files += _certificate(folder)
    program = built("agent_peer", folder, tls)
    command = [str(program)] if program else [*PYTHON, "benchmarks.peers.agent_peer"]
    with Running([*command, *files, *options], cwd=ROOT, core=SERVER_CORE) as running:
        secure = running.wait_for("wss://").rpartition(" ")[2] if tls and not program else None
        url = running.wait_for("ready on ").rpartition(" ")[2]
        made_of = "C" if program else "Python"
        yield AgentPeer(running, url, secure or url.replace("http", "wss", 1), made_of, folder)


class DuplexPeer(Peer):
    """A full-duplex model at work."""

    def __init__(self, running: Running, url: str, folder: Path) -> None:
        super().__init__(running, url)
        self.trace = folder / _TRACE
        self.ws_url = url.replace("http", "ws", 1)


@contextmanager
def duplex_peer(folder: Path, *options: str) -> Iterator[DuplexPeer]:
    """benchmarks/peers/duplex_peer.c; its trace is whole once `figures` was asked. Raises ProcessFailed."""
    program = built("duplex_peer", folder)
    if program is None:
        raise ProcessFailed("the peer of full-duplex sessions needs a C compiler")
    pages = folder / "pages.bin"
    duplex_pages.write(pages, duplex_pages.answers(DUPLEX_ANSWER_S, _ONSETS))
    files = ("--pages", str(pages), "--trace", str(folder / _TRACE))
    with Running([str(program), *files, *options], cwd=ROOT, core=SERVER_CORE) as running:
        yield DuplexPeer(running, running.wait_for("ready on ").rpartition(" ")[2], folder)


def _certificate(folder: Path) -> tuple[str, ...]:
    import trustme

    issued = trustme.CA().issue_cert("localhost", "127.0.0.1")
    chain, key = folder / "chain.pem", folder / "key.pem"
    key.write_bytes(issued.private_key_pem.bytes())
    chain.write_bytes(b"".join(part.bytes() for part in issued.cert_chain_pems))
    return "--cert", str(chain), "--key", str(key)


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
