"""Speech to text: known queries through pocketsphinx, and any server with OpenAI's route."""

import asyncio
import http.server
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from gpu_server.ask_http import CannotAsk, ask_lines, endpoint
from gpu_server.recognizer import CannotRecognize, HttpRecognizer, SphinxRecognizer, choose_recognizer, read_queries
from gpu_server.reply import ChatReplier, Said, ScriptedReplier, SentenceCutter
from gpu_server.sphinx import plain_words
from tests.agent_client import call, tone
from tests.server_process import running_server
from tests.test_agent import turns_of

QUERIES = (
    "What time do you open on Saturday?",
    "I would like to book a table for two people tomorrow evening.",
    "Please tell me about your refund policy.",
)
DELTAS = ("Yes", ", I can", ". It is ", "open")


class _Api(http.server.BaseHTTPRequestHandler):
    """OpenAI's two routes, as far as they are asked for. `/broken` in a path breaks off, `/rude` answers no JSON."""

    seen: list[tuple[str, bytes, str | None]]

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        self.seen.append((self.path, body, self.headers.get("authorization")))
        if "busy" in self.path:
            self.send_error(503, "no room")
            return
        self.send_response(200)
        self.end_headers()
        if "rude" in self.path:
            self.wfile.write(b"data: <html>\n")
        elif "transcriptions" in self.path:
            self.wfile.write(b'{"text": " what time is it "}')
        else:
            for delta in DELTAS:
                event = {"choices": [{"delta": {"content": delta}}]}
                self.wfile.write(b"data: " + json.dumps(event).encode() + b"\n\n")
            self.wfile.write(b'data: {"choices": []}\n\ndata: [DONE]\n\n')

    def log_message(self, format: str, *args: object) -> None:
        """Quiet."""


@contextmanager
def serving() -> Iterator[tuple[str, list[tuple[str, bytes, str | None]]]]:
    seen: list[tuple[str, bytes, str | None]] = []
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), type("Api", (_Api,), {"seen": seen}))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", seen
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_known_queries_spoken_by_espeak_are_recognized() -> None:
    pytest.importorskip("espeakng_loader", reason="espeak speaks the queries")
    pytest.importorskip("pocketsphinx")
    from gpu_server.agent_voice import AgentVoice
    from gpu_server.speech import EngineOptions, load_espeak

    async def hear_all() -> list[str]:
        engine = load_espeak(EngineOptions())
        voice = AgentVoice(engine, 16_000, None)
        recognizer = SphinxRecognizer(list(QUERIES))
        await recognizer.start()
        heard = []
        for query in QUERIES:
            speech = b"".join([piece async for piece in voice.speak(query)])
            heard.append(await recognizer.transcribe(speech + bytes(9600)))
        await recognizer.close()
        engine.close()
        return heard

    heard = asyncio.run(hear_all())
    wanted = [plain_words(query).split() for query in QUERIES]
    missed = sum(word not in got.split() for words, got in zip(wanted, heard, strict=True) for word in words)
    assert missed <= 2, heard  # of 26 words
    assert [max(range(3), key=lambda k: len({*wanted[k]} & {*got.split()})) for got in heard] == [0, 1, 2]


def test_an_agent_that_hears_elsewhere_and_thinks_elsewhere(tmp_path: Path) -> None:
    with (
        serving() as (url, seen),
        running_server(
            *("--engine", "tone", "--tone-seconds", "0.2", "--recognizer", url, "--reply-url", url),
            *("--reply-model", "small", "--recognizer-model", "tiny"),
            trace=tmp_path / "trace.jsonl",
            env={"OPENAI_API_KEY": "k3y"},
        ) as server,
        call(server.port, "/ws/far") as caller,
    ):
        caller.say(0.5)
        caller.stay_silent_until(caller.bot_stopped)
        row = turns_of(server, "far")[0]
        (transcription,) = caller.rtvi("user-transcription")
        spoken = [message["data"]["text"] for message in caller.rtvi("bot-llm-text")]
    assert row["transcript"] == transcription["data"]["text"] == "what time is it"
    assert transcription["data"]["final"] is True
    assert (tuple(spoken), row["tokens"], row["audio_s"]) == (DELTAS, 4, 0.4)  # two sentences
    (heard_path, heard, key), (chat_path, chat, _) = seen
    assert (heard_path, chat_path, key) == ("/v1/audio/transcriptions", "/v1/chat/completions", "Bearer k3y")
    assert b"tiny" in heard
    # The whole utterance is in it, with what came before it was certain, as a WAV of 16 kHz.
    assert tone(0.5) in heard
    assert b"RIFF" in heard
    asked = json.loads(chat)
    assert (asked["model"], asked["stream"]) == ("small", True)
    assert asked["messages"][-1] == {"role": "user", "content": "what time is it"}


@pytest.mark.parametrize("path", ["/busy/v1/audio/transcriptions", "/rude/v1/audio/transcriptions"])
def test_a_recognizer_that_fails_names_itself(path: str) -> None:
    with serving() as (url, _), pytest.raises(CannotAsk, match=url):
        asyncio.run(HttpRecognizer(url + path, "m").transcribe(bytes(3200)))


@pytest.mark.parametrize("path", ["/busy", "/rude"])
def test_a_language_model_that_fails_names_itself(path: str) -> None:
    async def read(url: str) -> list[str]:
        return [piece async for piece in ChatReplier(url, "m").stream(0, [Said("user", "hi")])]

    with serving() as (url, _), pytest.raises(CannotAsk, match=url):
        asyncio.run(read(url + path))


def test_a_recognizer_nobody_runs_closes_the_call_with_1011(tmp_path: Path) -> None:
    options = ("--engine", "tone", "--recognizer", "http://127.0.0.1:9")
    with (
        running_server(*options, trace=tmp_path / "trace.jsonl") as server,
        call(server.port, "/ws/deaf") as caller,
    ):
        caller.say(0.3)
        assert caller.close_code() == 1011
        assert turns_of(server, "deaf")[0]["outcome"] == "failed"
        server.until(lambda: any("call deaf failed" in line for line in server.stderr_lines) or None)


def test_breaking_off_a_stream_frees_its_thread() -> None:
    async def read_one(url: str) -> bytes:
        lines = ask_lines(f"{url}/v1/chat/completions", "application/json", b"{}")
        line = await anext(lines)
        await lines.aclose()
        return line

    with serving() as (url, _):
        assert asyncio.run(read_one(url)).startswith(b"data: ")


def test_what_cannot_be_had_is_said(tmp_path: Path) -> None:
    empty = tmp_path / "empty.txt"
    empty.write_text("\n \n")
    for name, queries, named in (
        ("pocketsphinx", None, "--known-queries"),
        ("pocketsphinx", tmp_path / "none.txt", "none.txt"),
        ("pocketsphinx", empty, "empty.txt"),
        ("whisper", None, "whisper"),
    ):
        with pytest.raises(CannotRecognize, match=named):
            choose_recognizer(name, "m", queries)
    assert choose_recognizer("none", "m", None) is None


def test_known_queries_are_the_lines_that_are_not_empty(tmp_path: Path) -> None:
    path = tmp_path / "queries.txt"
    path.write_text("One.\n\n  Two? \n")
    assert read_queries(path) == ["One.", "Two?"]
    assert plain_words("It's two\u2011fold: I can\u2019t, No. 5!") == "it's two fold i can't no 5"


def test_a_base_url_is_completed_and_a_whole_one_kept() -> None:
    assert endpoint("http://h:1", "/v1/x") == "http://h:1/v1/x"
    assert endpoint("http://h:1/v1/", "/v1/x") == "http://h:1/v1/x"
    assert endpoint("https://h/other/y", "/v1/x") == "https://h/other/y"
    for wrong in ("h:1", "ftp://h", "http://"):
        with pytest.raises(ValueError, match="URL"):
            endpoint(wrong, "/v1/x")


@pytest.mark.parametrize(
    ("pieces", "sentences"),
    [
        (("One. ", "Two. "), [["One."], ["Two."], []]),
        (("One", ". T", "wo"), [[], ["One."], [], ["Two"]]),
        (("Ask Dr. ", "Who. Now"), [[], ["Ask Dr. Who."], ["Now"]]),
        (("A! B? C",), [["A!", "B?"], ["C"]]),
        (("x" * 301,), [["x" * 301], []]),
        (("", " "), [[], [], []]),
    ],
)
def test_sentences_are_cut_as_soon_as_they_are_whole(pieces: tuple[str, ...], sentences: list[list[str]]) -> None:
    cutter = SentenceCutter()
    assert [*(cutter.feed(piece) for piece in pieces), cutter.finish()] == sentences


def test_scripted_replies_follow_the_turn() -> None:
    async def reply(turn: int) -> str:
        return "".join([word async for word in ScriptedReplier(replies=("One two.", "Three.")).stream(turn, [])])

    assert [asyncio.run(reply(turn)) for turn in range(3)] == ["One two. ", "Three. ", "One two. "]
