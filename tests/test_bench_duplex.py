"""The benchmarks' full-duplex peer keeps PersonaPlex's wire and notes the truth; rows meet the truth that is theirs."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import sphn
import websocket

from benchmarks import duplex_truth
from benchmarks.peers import duplex_pages, starting
from benchmarks.peers.duplex_pages import pages

RATE, CHUNK = duplex_pages.RATE, duplex_pages.CHUNK
QUERY = "/api/chat?voice_prompt=NATF0.pt&text_prompt=Be%20brief."
DELAY = 156  # samples: the encoder's look-ahead
NEAR = 120  # samples: at this rate the codec smears a sharp onset over some milliseconds
AUDIO = b"\1"


@pytest.fixture(scope="module")
def peer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[starting.DuplexPeer]:
    if not any(map(shutil.which, ("cc", "gcc", "clang"))):
        pytest.skip("no C compiler")
    options = ("--prompt-ms", "200", "--hangover-chunks", "3", "--reply-chunks", "2")
    with starting.duplex_peer(tmp_path_factory.mktemp("duplex"), *options) as running:
        yield running


class Client:
    """A session whose silence is one chunk, repeated."""

    def __init__(self, peer: starting.DuplexPeer, query: str = QUERY) -> None:
        writer = sphn.OpusStreamWriter(RATE)
        first = writer.append_pcm(np.zeros(CHUNK, np.float32))
        self.head = first[: first.index(b"OggS", first.index(b"OpusTags"))]
        self.quiet = [writer.append_pcm(np.zeros(CHUNK, np.float32)) for _ in range(20)][-1]
        time_s = np.arange(10 * CHUNK, dtype=np.float32) / RATE
        self.words = [writer.append_pcm(chunk) for chunk in np.sin(2000 * time_s).astype(np.float32).reshape(10, CHUNK)]
        self.pieces: list[bytes] = []
        self.socket = websocket.create_connection(peer.ws_url + query, timeout=10)
        self.port = self.socket.sock.getsockname()[1]

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def shake_hands(self) -> list[bytes]:
        said = [self.socket.recv() for _ in range(3)]
        self.socket.send_binary(AUDIO + self.head)
        return said

    def exchange(self, chunks: list[bytes]) -> list[bytes]:
        """The audio messages that come for these, one each."""
        for chunk in chunks:
            self.socket.send_binary(AUDIO + chunk)
        came: list[bytes] = []
        while len(came) < len(chunks):
            message = self.socket.recv()
            (came if message[:1] == AUDIO else self.pieces).append(message)
        return came


def notes(peer: starting.DuplexPeer, port: int) -> list[dict[str, Any]]:
    peer.figures()  # so that they are on the disk
    found = [json.loads(line) for line in peer.trace.read_text().splitlines()]
    return [note for note in found if note["port"] == port]


def test_every_chunk_is_answered_and_onsets_are_where_the_trace_says(peer: starting.DuplexPeer) -> None:
    with Client(peer) as client:
        handshake, head, tags = client.shake_hands()
        assert handshake == b"\0"
        assert (b"OpusHead" in head, b"OpusTags" in tags) == (True, True)
        turn = [client.quiet] * 5 + client.words + [client.quiet] * 45
        came = client.exchange(turn + turn)
    [first, second] = notes(peer, client.port)
    assert first["user_chunk"] == 14, "the last of ten chunks after five"
    assert first["onset_position"] // CHUNK == 15 + 3 + 1, "16, 17, 18 are as 15; from 18 on the second one"
    assert second["user_chunk"] == 14 + len(turn)
    reader = sphn.OpusStreamReader(RATE)
    heard = np.concatenate([reader.append_bytes(message[1:]) for message in (head, tags, *came)])
    assert len(heard) == len(came) * CHUNK
    loud = np.flatnonzero(np.abs(heard) > 0.1)
    assert loud[0] == pytest.approx(first["onset_position"] + DELAY, abs=NEAR)
    again = loud[loud > second["onset_position"] - RATE][0]
    assert again == pytest.approx(second["onset_position"] + DELAY, abs=NEAR)
    numbers = [int.from_bytes(page[18:22], "little") for message in (head, tags, *came) for page in pages(message[1:])]
    assert numbers == list(range(len(numbers)))
    last = pages(came[-1][1:])[-1]
    assert int.from_bytes(last[6:14], "little") == len(came) * CHUNK * 2, "granules tell how much came"
    assert len(client.pieces) == 2 * 9, "one with every third of an answer's 26 or 27 chunks"
    assert set(client.pieces) == {b"\2 word"}


def test_a_session_without_a_prompt_is_dropped_without_a_close_frame(peer: starting.DuplexPeer) -> None:
    dropped = pytest.raises((websocket.WebSocketConnectionClosedException, ConnectionError))
    with Client(peer, "/api/chat?voice_prompt=NATF0.pt&text_prompt=") as client, dropped:
        client.socket.recv()


def test_what_comes_before_the_handshake_is_swallowed(peer: starting.DuplexPeer) -> None:
    with Client(peer) as client:
        peer.forget()
        client.socket.send_binary(AUDIO + client.head)
        client.socket.send_binary(AUDIO + client.quiet)
        client.shake_hands()
        client.exchange([client.quiet])
    figures = peer.figures()
    assert (figures["swallowed"], figures["chunks_heard"], figures["chunks_said"]) == (2, 1, 1)


def written(path: Path, *rows: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"port": 1')  # the next one is half written
    return path


def test_onsets_are_held_against_the_nearest_of_their_own_session(tmp_path: Path) -> None:
    note = {"onset_at": 240, "onset_write_ns": 50_000_000_000}
    positions = ((7001, 48_000), (7001, 240_000), (7002, 48_240))
    answers = duplex_truth.told_by_peer(
        written(tmp_path / "t.jsonl", *(note | {"port": port, "onset_position": at} for port, at in positions))
    )
    sessions = pd.DataFrame({"session": ["a", "b", "c"], "local_port": [7001, 7002, 7003]})
    turns = pd.DataFrame(
        {
            "session": ["a", "a", "b", "c", "a"],
            "agent_onset_position_s": [10.003, 2.002, 2.0, 2.0, None],
            "agent_onset_at": [50.017, 50.01, 50.012, 50.0, None],
        }
    )
    met = duplex_truth.joined(turns, sessions, answers).sort_values(["session", "agent_onset_position_s"])
    assert met["session"].tolist() == ["a", "a", "b"], "nothing is known of c"
    assert met["position_error_s"].tolist() == pytest.approx([0.002, 0.003, -0.01])
    assert met["heard_error_s"].tolist() == pytest.approx([0.0, 0.007, 0.002]), "0.01 s into its chunk"


def test_the_bundled_servers_trace_is_read_by_the_clients_port(tmp_path: Path) -> None:
    trace = written(
        tmp_path / "t.jsonl",
        {"cicada_trace": 1},
        {"duplex_session": 0, "duplex_answer": 0, "onset_position_s": 3.2, "onset_at": 9.0},
        {"duplex_session": 0, "duplex_answer": 1, "onset_position_s": None, "onset_at": None},
        {"duplex_session": 0, "client": "127.0.0.1:7001", "lag_max_s": 0.5},
        {"duplex_session": 1, "client": "127.0.0.1:7002", "lag_max_s": None},
    )
    answers, sessions = duplex_truth.told_by_server(trace)
    assert answers.to_dict("records") == [{"port": 7001, "onset_position_s": 3.2, "onset_at": 9.0}]
    ours = pd.DataFrame({"local_port": [7001, 7002, None], "lag_max_s": [0.56, 0.08, None]})
    assert duplex_truth.lag_error_s(ours, sessions).tolist() == pytest.approx([0.06]), "of 7002 no truth is known"


def test_a_trace_without_answers_matches_nothing(tmp_path: Path) -> None:
    answers, sessions = duplex_truth.told_by_server(written(tmp_path / "t.jsonl", {"cicada_trace": 1}))
    turns = pd.DataFrame({"session": ["a"], "agent_onset_position_s": [1.0], "agent_onset_at": [2.0]})
    ours = pd.DataFrame({"session": ["a"], "local_port": [7001], "lag_max_s": [0.1]})
    met = duplex_truth.joined(turns, ours, answers)
    assert duplex_truth.summary(met) == {"position_error_ms": {"n": 0}, "heard_error_ms": {"n": 0}}
    assert duplex_truth.lag_error_s(ours, sessions).empty
