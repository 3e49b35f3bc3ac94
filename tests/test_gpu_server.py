"""The bundled server as its clients meet it: routes, refusals, streaming, the trace. A real process throughout."""

import base64
import json
import socket
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from gpu_server.trace import TraceRow
from tests.server_process import Server, running_server
from tests.server_wire import open_request, post, read_answer, read_until

RATE = 24_000
TEXT = "Hi, this is Sarah from customer service. How can I help you today?"
ROUTES = {"/v1/audio/speech": "input", "/v1/synthesize": "text"}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The server as it is without options: espeak."""
    with running_server(trace=tmp_path_factory.mktemp("server") / "trace.jsonl") as server:
        yield server


@pytest.fixture(scope="module")
def client(server: Server) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, timeout=30) as client:
        yield client


def test_the_ready_line(server: Server) -> None:
    assert server.ready_line.startswith(f"gpu_server: ready on http://127.0.0.1:{server.port} engine=espeak voices=")
    assert server.stdout_lines == [server.ready_line + "\n"]


def test_health(client: httpx.Client) -> None:
    health = client.get("/health").raise_for_status().json()
    assert (health["status"], health["engine"], health["streams"], health["queued"]) == ("ready", "espeak", 0, 0)
    assert health["monotonic_s"] > 0
    assert health["wall_s"] > 1.6e9


def test_voices(client: httpx.Client) -> None:
    voices = client.get("/v1/voices").raise_for_status().json()["voices"]
    assert voices[0] == "default"
    assert len(voices) >= 4


def test_docs(client: httpx.Client) -> None:
    assert client.get("/docs").status_code == 200
    paths = client.get("/openapi.json").raise_for_status().json()["paths"]
    assert {*ROUTES, "/health", "/metrics", "/v1/voices"} <= set(paths)


def test_unknown_paths_and_methods(client: httpx.Client) -> None:
    assert client.get("/v2").status_code == 404
    assert client.get("/v1/synthesize").status_code == 405
    assert "/v2" in client.get("/v2").json()["error"]["message"]


def test_the_body_a_locust_user_posts(client: httpx.Client) -> None:
    """S2's user: wait_time = between(1, 3), POST with text and speaker_id, nothing else."""
    answer = client.post("/v1/synthesize", json={"text": TEXT, "speaker_id": "default"})
    assert (answer.status_code, answer.headers["content-type"]) == (200, "audio/wav")
    assert answer.content[:4] == b"RIFF"
    pcm = np.frombuffer(answer.content[44:], "<i2")
    assert 2.5 < len(pcm) / RATE < 6.0
    assert np.abs(pcm.astype(int)).max() > 3000


def test_the_body_an_openai_client_posts(client: httpx.Client) -> None:
    body = {"model": "gpt-4o-mini-tts", "input": TEXT, "voice": "alto", "instructions": "Be kind.", "speed": 1.25}
    answer = client.post("/v1/audio/speech", json=body | {"response_format": "pcm"})
    assert (answer.status_code, answer.headers["content-type"]) == (200, "audio/pcm;rate=24000")
    assert len(answer.content) % 2 == 0
    assert 2.0 < len(answer.content) / 2 / RATE < 5.0


def test_voices_sound_different_and_the_same_voice_the_same(client: httpx.Client) -> None:
    def say(voice: str) -> bytes:
        return client.post("/v1/synthesize", json={"text": TEXT, "speaker_id": voice, "format": "pcm"}).content

    voices = client.get("/v1/voices").json()["voices"]
    assert len({say(voice) for voice in voices}) == len(voices)
    assert say("default") == say("default")


def test_server_sent_events(client: httpx.Client) -> None:
    body = {"input": TEXT, "response_format": "wav", "stream_format": "sse"}
    answer = client.post("/v1/audio/speech", json=body)
    assert answer.headers["content-type"].startswith("text/event-stream")
    lines = answer.text.split("\n\n")
    assert lines.pop() == ""
    assert all(line.startswith("data: ") for line in lines)
    *deltas, done = (json.loads(line.removeprefix("data: ")) for line in lines)
    assert len(deltas) > 5
    assert all(set(delta) == {"type", "audio"} and delta["type"] == "speech.audio.delta" for delta in deltas)
    assert done["type"] == "speech.audio.done"
    usage = done["usage"]
    assert usage["total_tokens"] == usage["input_tokens"] + usage["output_tokens"] > 0
    audio = b"".join(base64.b64decode(delta["audio"]) for delta in deltas)
    assert audio == client.post("/v1/synthesize", json={"text": TEXT}).content


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize(
    ("change", "status", "named"),
    [
        ({"TEXT": ""}, 400, "empty"),
        ({"TEXT": " \n"}, 400, "empty"),
        ({"TEXT": "x" * 4097}, 413, "4096"),
        ({"TEXT": 3}, 400, "string"),
        ({"TEXT": None}, 400, "string"),
        ({"VOICE": "bob"}, 400, "default, alto"),
        ({"FORMAT": "aac"}, 400, "wav, pcm, flac, mp3, opus"),
        ({"speed": 5}, 400, "speed"),
        ({"speed": "fast"}, 400, "speed"),
    ],
)
def test_refusals_say_what_would_be_right(
    client: httpx.Client, route: str, change: dict[str, Any], status: int, named: str
) -> None:
    openai = route == "/v1/audio/speech"
    names = {
        "TEXT": ROUTES[route],
        "VOICE": "voice" if openai else "speaker_id",
        "FORMAT": "response_format" if openai else "format",
    }
    body = {ROUTES[route]: TEXT} | {names.get(key, key): value for key, value in change.items()}
    answer = client.post(route, json=body)
    expect_error(answer, status, named)


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("body", [b"", b"{", b"[]", b'"text"', b"{}", b"\xff\xfe", b'{"text": "a", "input": "a"'])
def test_bodies_that_are_no_request(client: httpx.Client, route: str, body: bytes) -> None:
    expect_error(client.post(route, content=body), 400)


def expect_error(answer: httpx.Response, status: int, named: str = "") -> None:
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/json"
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "code"}
    assert named in error["message"]
    assert "\n" not in error["message"]


def test_a_text_of_just_the_longest_length(client: httpx.Client) -> None:
    assert client.post("/v1/synthesize", json={"text": "word " * 819 + "x"}).status_code == 200


def test_a_large_body_is_refused_before_it_is_sent(server: Server) -> None:
    with open_request(server.port, "/v1/synthesize", b"{", {"Content-Length": str(1 << 30)}) as connection:
        said = read_until(connection, b"body_too_large")
    assert said.startswith(b"HTTP/1.1 413 ")


def test_a_large_body_sent_anyway_still_gets_its_answer(client: httpx.Client) -> None:
    expect_error(client.post("/v1/synthesize", content=b"x" * (3 << 20)), 413, "1048576")


def test_a_large_body_of_unannounced_length(client: httpx.Client) -> None:
    parts = (b"x" * (1 << 16) for _ in range(40))
    expect_error(client.post("/v1/synthesize", content=parts), 413, "1048576")


def test_the_request_id_comes_back(client: httpx.Client) -> None:
    for body in ({"text": TEXT}, {"text": ""}):
        answer = client.post("/v1/synthesize", json=body, headers={"X-Request-ID": "abc-1"})
        assert answer.headers["x-request-id"] == "abc-1"
    assert "x-request-id" not in client.post("/v1/synthesize", json={"text": TEXT}).headers


def test_a_connection_serves_many_requests(client: httpx.Client, server: Server) -> None:
    with socket.create_connection(("127.0.0.1", server.port), 30) as connection:
        for _ in range(3):
            body = json.dumps({"text": "Hello."}).encode()
            head = f"POST /v1/synthesize HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
            connection.sendall(head.encode() + body)
            assert read_until(connection, b"\r\n0\r\n\r\n").startswith(b"HTTP/1.1 200 ")


def test_metrics(client: httpx.Client) -> None:
    client.post("/v1/synthesize", json={"text": TEXT})
    text = client.get("/metrics").raise_for_status().text
    assert 'gpu_server_requests_total{outcome="ok",route="/v1/synthesize"}' in text
    for name in ("active_streams", "queue_depth", "ttfb_seconds_bucket", "audio_seconds_total"):
        assert f"gpu_server_{name}" in text


def test_the_trace_of_an_answer(client: httpx.Client, server: Server) -> None:
    body = {"text": TEXT, "speaker_id": "bass", "format": "pcm"}
    answer = client.post("/v1/synthesize", json=body, headers={"X-Request-ID": "traced"})
    row = server.row("traced")
    assert set(row) == TraceRow.__required_keys__ | {"marks"}
    assert row["marks"] is None
    assert row["admitted_at"] is not None
    assert row["first_audio_at"] is not None
    assert row["received_at"] <= row["admitted_at"] <= row["first_audio_at"] <= row["finished_at"]
    assert row["queue_wait_s"] == row["admitted_at"] - row["received_at"]
    assert row["ttfb_s"] == row["first_audio_at"] - row["received_at"]
    assert row["audio_s"] == pytest.approx(len(answer.content) / 2 / RATE, abs=1e-5)
    assert (row["route"], row["characters"], row["voice"], row["format"]) == (
        "/v1/synthesize",
        len(TEXT),
        "bass",
        "pcm",
    )
    assert (row["outcome"], row["status"], row["fault"], row["fault_s"]) == ("ok", 200, None, None)


def test_the_trace_of_a_refusal(client: httpx.Client, server: Server) -> None:
    client.post("/v1/audio/speech", json={"input": TEXT, "voice": "bob"}, headers={"X-Request-ID": "refused"})
    row = server.row("refused")
    assert (row["outcome"], row["status"], row["audio_s"]) == ("bad_request", 400, 0)
    assert (row["admitted_at"], row["first_audio_at"], row["ttfb_s"], row["queue_wait_s"]) == (None,) * 4


def test_the_trace_begins_with_its_header(server: Server) -> None:
    header = server.header()
    assert (header["cicada_trace"], header["server"], header["engine"]) == (1, "gpu_server", "espeak")
    assert header["pid"] == server.process.pid


def test_nothing_was_said_on_stderr(server: Server) -> None:
    assert server.stderr_lines == []


# What only a paced or a small server shows.


@pytest.fixture(scope="module")
def slow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """0.3 s to the first audio, then 60 s of tone in real time: whoever waits for its end waits for ever."""
    trace = tmp_path_factory.mktemp("slow") / "trace.jsonl"
    args = ("--engine", "tone", "--tone-seconds", "60", "--pace", "300,1", "--streams", "2", "--queue", "1")
    with running_server(*args, trace=trace) as server:
        yield server


def counts(server: Server) -> tuple[int, int]:
    health = httpx.get(f"{server.url}/health").json()
    return health["streams"], health["queued"]


def wait_for_counts(server: Server, streams: int, queued: int) -> None:
    server.until(lambda: True if counts(server) == (streams, queued) else None)


def ask(server: Server, name: str, body: dict[str, Any] | None = None) -> socket.socket:
    return open_request(server.port, "/v1/synthesize", body or {"text": "x"}, {"X-Request-ID": name})


@pytest.mark.parametrize("body", [{"text": "x"}, {"text": "x", "format": "mp3"}, {"text": "x", "format": "opus"}])
def test_audio_arrives_while_it_is_made(slow: Server, body: dict[str, Any]) -> None:
    name = f"streaming-{body.get('format')}"
    with ask(slow, name, body) as connection:
        head, _, rest = read_until(connection, b"\r\n\r\n").partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200 ")
        assert rest or connection.recv(65536)
        assert counts(slow)[0] == 1  # 60 s of it are still being made
    row = slow.row(name)
    assert row["first_audio_at"] is not None
    assert row["admitted_at"] is not None
    assert row["first_audio_at"] >= row["admitted_at"] + 0.3


def test_no_status_line_before_the_first_audio(slow: Server) -> None:
    with ask(slow, "status-line") as connection:
        wait_for_counts(slow, 1, 0)
        connection.setblocking(False)
        with pytest.raises(BlockingIOError):
            connection.recv(1)
        connection.settimeout(30)
        read_until(connection, b"RIFF")
    wait_for_counts(slow, 0, 0)


def test_a_client_who_leaves_stops_the_work(slow: Server) -> None:
    connection = ask(slow, "leaver")
    read_until(connection, b"RIFF")
    connection.close()
    row = slow.row("leaver")
    assert (row["outcome"], row["status"]) == ("client_gone", 200)
    assert 0 < row["audio_s"] < 30
    wait_for_counts(slow, 0, 0)


def test_a_client_who_leaves_with_a_reset_stops_the_work(slow: Server) -> None:
    connection = ask(slow, "resetter")
    read_until(connection, b"RIFF")
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()
    assert slow.row("resetter")["outcome"] == "client_gone"
    wait_for_counts(slow, 0, 0)


def test_a_client_who_leaves_before_the_first_audio_leaves_no_status(slow: Server) -> None:
    connection = ask(slow, "early", {"text": "x", "stream": False})
    wait_for_counts(slow, 1, 0)
    connection.close()
    row = slow.row("early")
    assert (row["outcome"], row["status"], row["audio_s"], row["first_audio_at"]) == ("client_gone", None, 0, None)
    wait_for_counts(slow, 0, 0)


def test_a_full_queue_turns_away_and_a_place_given_up_is_free(slow: Server) -> None:
    inside = [ask(slow, f"inside-{number}") for number in range(2)]
    wait_for_counts(slow, 2, 0)
    waiting = ask(slow, "waiting")
    wait_for_counts(slow, 2, 1)

    turned_away = read_answer(ask(slow, "turned-away"))
    assert turned_away.status == 503
    assert int(turned_away.headers["retry-after"]) >= 1
    assert json.loads(turned_away.body)["error"]["code"] == "busy"
    assert slow.row("turned-away")["outcome"] == "refused"

    waiting.close()
    wait_for_counts(slow, 2, 0)
    row = slow.row("waiting")
    assert (row["outcome"], row["admitted_at"], row["status"]) == ("client_gone", None, None)

    next_in_line = ask(slow, "next-in-line")
    wait_for_counts(slow, 2, 1)
    inside[0].close()
    read_until(next_in_line, b"RIFF")
    for connection in (inside[1], next_in_line):
        connection.close()
    row = slow.row("next-in-line")
    assert row["admitted_at"] is not None
    assert row["queue_wait_s"] == row["admitted_at"] - row["received_at"] > 0
    wait_for_counts(slow, 0, 0)


def test_a_reader_who_does_not_read_holds_nobody_else_up(tmp_path: Path) -> None:
    """Unpaced audio far beyond what sockets buffer: the one stream waits, the other goes on."""
    args = ("--engine", "tone", "--tone-seconds", "400")
    with running_server(*args, trace=tmp_path / "trace.jsonl") as server:
        lazy = ask(server, "lazy")
        wait_for_counts(server, 1, 0)
        eager = ask(server, "eager")
        read_until(eager, b"RIFF")
        assert counts(server)[0] == 2
        lazy.close()
        eager.close()
        assert server.row("lazy")["audio_s"] < 400


def test_chunks_of_a_chosen_size_at_their_pace(tmp_path: Path) -> None:
    args = ("--engine", "tone", "--tone-seconds", "0.55", "--chunk-ms", "100", "--pace", "50,0.5")
    with running_server(*args, trace=tmp_path / "trace.jsonl") as server:
        answer = post(server.port, "/v1/synthesize", {"text": "x", "format": "pcm"})
        row = server.rows(1)[0]
    assert [len(piece) for piece in answer.pieces] == [4800] * 5 + [2400]
    assert row["admitted_at"] is not None
    assert row["first_audio_at"] is not None
    assert row["first_audio_at"] - row["admitted_at"] >= 0.05
    assert row["finished_at"] - row["admitted_at"] >= 0.05 + 0.5 * 0.5


def test_a_token_is_wanted_and_never_written(tmp_path: Path) -> None:
    secret = "s3cret-T0ken"
    trace = tmp_path / "trace.jsonl"
    with running_server("--engine", "tone", trace=trace, env={"CICADA_SERVER_TOKEN": secret}) as server:
        for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": f"Basic {secret}"}):
            for route, text in ROUTES.items():
                answer = post(server.port, route, {text: "x"}, headers)
                assert answer.status == 401
                assert answer.headers["www-authenticate"] == "Bearer"
                assert secret.encode() not in answer.body
        assert post(server.port, "/v1/synthesize", {"text": "x"}, {"Authorization": f"Bearer {secret}"}).status == 200
        assert httpx.get(f"{server.url}/health").status_code == 200
        rows = server.rows(7)
        server.stop()
    assert [row["outcome"] for row in rows] == ["refused"] * 6 + ["ok"]
    assert secret not in trace.read_text() + "".join(server.stderr_lines) + "".join(server.stdout_lines)
