"""One HTTP/1.1 request and its answer over a Link, heard as it comes. Knows nothing of Locust or rows' columns.

The greenlet that owns the turn sends and waits; `receive` and `closed` run in gevent's hub and only parse, stamp and
hear. Compressed audio waits until the end and is decoded in a thread (libsndfile releases the GIL).
"""

import json
import re
import time
from contextlib import suppress
from urllib.parse import SplitResult

import gevent
from gevent.event import Event
from geventhttpclient.response import HTTPParseError, HTTPResponse

from workers.audio.containers import COMPRESSED, BadAudio, Decoded, PcmStream, Truncated, WavStream, decode, sniff
from workers.audio.track import Track
from workers.clients.http_speech import Decoder, Dialect, said_failure
from workers.clients.inbox import Arrival
from workers.failures import TurnFailed

_KEPT_OF_AN_ERROR = 4096
_MOST_COMPRESSED = 64 << 20
_LONGEST_HEAD = 1 << 20


class _Parser(HTTPResponse):
    """geventhttpclient's parser, with the body handed on piece by piece."""

    def __init__(self) -> None:
        super().__init__("POST")
        self.pieces: list[bytearray] = []

    def _on_body(self, piece: bytearray) -> None:
        self.pieces.append(piece)


def request_bytes(url: SplitResult, path: str, body: bytes, request_id: str, token: str | None) -> bytes:
    """The request on the wire."""
    authorization = f"Authorization: Bearer {token}\r\n" if token else ""
    head = (
        f"POST {path} HTTP/1.1\r\nHost: {url.netloc.rpartition('@')[2]}\r\nUser-Agent: cicada\r\nAccept: */*\r\n"
        "Accept-Encoding: identity\r\n"
        f"{authorization}Content-Type: application/json\r\nX-Request-ID: {request_id}\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    return head.encode("utf-8") + body


class Exchange:
    """One request's answer, as a Link's receiver."""

    def __init__(self, dialect: Dialect, asked_format: str, pcm_rate: int, track: Track) -> None:
        self.track = track
        self.audio_bytes = 0
        self.status: int | None = None
        self.answering = False  # at least one byte of the answer came
        self.reusable = False
        self._dialect, self._asked, self._pcm_rate = dialect, asked_format, pcm_rate
        self._parser = _Parser()
        self._decoder: Decoder | None = None
        self._stream: PcmStream | WavStream | None = None
        self._format = self._content_type = ""
        self._pcm_channels = 1
        self._first = b""
        self._head_bytes = 0
        self._compressed: list[bytes] = []
        self._arrivals: list[tuple[int, float, float]] = []
        self._error_body = b""
        self._failure: TurnFailed | None = None
        self._over = Event()

    # ---- in the hub

    def receive(self, data: bytes, arrival: Arrival) -> None:
        self.answering = True
        parser = self._parser
        if self.status is None:
            self._head_bytes += len(data)
            if self._head_bytes > _LONGEST_HEAD and not parser.headers_complete:
                self._fail(TurnFailed("protocol_error", "not_http", f"a header of more than {_LONGEST_HEAD} bytes"))
                return
        try:
            parser.feed(data)
        except (HTTPParseError, ValueError) as error:
            self._fail(TurnFailed("protocol_error", "not_http", f"the answer is no HTTP: {error} ({data[:60]!r})"))
            return
        if parser.headers_complete and self.status is None and parser.get_code() >= 200:
            self._read_head()
        if parser.pieces:
            body = bytes(parser.pieces[0]) if len(parser.pieces) == 1 else b"".join(parser.pieces)
            parser.pieces.clear()
            self._take(body, arrival)
        if parser.message_complete and self.status is not None:
            self.reusable = bool(parser.should_keep_alive())
            self._over.set()

    def closed(self, error: OSError | None) -> None:
        if self._over.is_set():
            return
        whole = False
        if error is None:
            with suppress(HTTPParseError):
                self._parser.feed(b"")  # the end of a body that has no length
                whole = bool(self._parser.message_complete)
        if not whole:
            why = "the connection broke" if error else "the server closed the connection"
            detail = f" ({error.strerror or error})" if error else ""
            if self.status is None:
                self._fail(TurnFailed("disconnected", "closed_before_answer", f"{why} before it answered{detail}"))
            else:
                line = f"{why} after {self._heard()}{detail}"
                self._fail(TurnFailed("disconnected", "cut_mid_stream", line))
        self._over.set()

    def _fail(self, failure: TurnFailed) -> None:
        if self._failure is None:
            self._failure = failure
        self._over.set()

    def _read_head(self) -> None:
        self.status = self._parser.get_code()
        kind = self._header("content-type").lower()
        coding = self._header("content-encoding").lower()
        if coding not in ("", "identity"):
            line = f"the answer is {coding}-encoded, though only plain bytes were asked for"
            self._failure = TurnFailed("protocol_error", "wrong_content_type", line)
        elif self.status < 300 and (not kind or kind.startswith(self._dialect.content_types)):
            self._decoder = self._dialect.decoder()
            self._content_type = kind
            named = re.search(r"[;\s]rate=(\d{1,9})", kind) or re.search(r"^(\d{1,9})$", self._header("x-sample-rate"))
            if named:
                self._pcm_rate = int(named[1])
            channels = re.search(r"[;\s]channels=(\d)\b", kind)
            self._pcm_channels = max(1, int(channels[1])) if channels else 1

    def _header(self, name: str) -> str:
        value = self._parser.get(name) or ""
        return value if isinstance(value, str) else value[-1]

    def _take(self, body: bytes, arrival: Arrival) -> None:
        if self._decoder is None:
            self._error_body += body[: _KEPT_OF_AN_ERROR - len(self._error_body)]
            return
        if self._failure is not None:
            return
        try:
            audio = self._decoder.feed(body)
            if audio:
                self._hear(audio, arrival)
        except TurnFailed as failure:
            self._fail(failure)
        except BadAudio as error:
            self._fail(TurnFailed("answered", "undecodable_audio", str(error)))

    def _hear(self, audio: bytes, arrival: Arrival) -> None:
        self.audio_bytes += len(audio)
        if not self._format:
            self._first += audio
            if len(self._first) < 4:
                return  # too little to know a format by
            audio, self._first = self._first, b""
            self._format = sniff(audio, self._asked, self._content_type)
            if self._format == "pcm":
                if len(audio) >= 16 and all(32 <= byte < 127 or byte in b"\r\n\t" for byte in audio[:16]):
                    raise BadAudio(f"text instead of audio: {audio[:80]!r}")
                if not 1000 <= self._pcm_rate <= 768_000:
                    raise BadAudio(f"the server says its audio has {self._pcm_rate} samples a second")
                self._stream = PcmStream(self._pcm_rate, self._pcm_channels)
                self.track.sample_rate = self._pcm_rate
            elif self._format == "wav":
                self._stream = WavStream()
        width_s = arrival.at - arrival.empty_at
        if self._stream is None:
            if self.audio_bytes > _MOST_COMPRESSED:
                raise BadAudio(f"more than {_MOST_COMPRESSED} bytes of {self._format} in one answer")
            self._compressed.append(audio)
            self._arrivals.append((self.audio_bytes, arrival.at, width_s))
            return
        samples = self._stream.feed(audio)
        if len(samples):
            self.track.sample_rate = self._stream.sample_rate
            self.track.hear(samples, arrival.at, width_s)

    # ---- in the turn's greenlet

    def wait(self, deadline: float) -> None:
        """Wait for the answer's end; raise TurnFailed where it is late, cut or wrong."""
        if not self._over.wait(max(0.0, deadline - time.monotonic())):
            if not (self.track.first_chunk_at or self._compressed):
                came = "no byte of an answer came" if not self.answering else "no audio came"
                raise TurnFailed("timed_out", "no_answer_in_time", f"{came} within timeout_s")
            raise TurnFailed("timed_out", "answer_too_slow", f"only {self._heard()} came within timeout_s")
        if self._failure is not None and self._failure.outcome != "answered":
            raise self._failure
        self._check_head()
        if self._failure is not None:
            raise self._failure
        assert self._decoder is not None
        self._decoder.finish()
        self._finish_audio()

    def _heard(self) -> str:
        audio_s = self.track.audio_s
        return f"{audio_s:.2f} s of audio" if audio_s else f"{self.audio_bytes} bytes of audio"

    def _check_head(self) -> None:
        if self._decoder is not None:
            return
        text = self._error_body.decode("utf-8", "replace")
        try:
            answer = json.loads(text)
        except ValueError:
            answer = None
        assert self.status is not None
        if self.status >= 300:
            said = said_failure(answer) if isinstance(answer, dict) else " ".join(text.split())[:200]
            hint = _HINTS.get(self.status, "")
            if place := self._header("location"):
                hint = f" (redirected to {place[:200]}: name that as --host and --path)"
            raise TurnFailed("refused", f"http_{self.status}", f"HTTP {self.status}{hint}: {said or 'no text'}")
        if isinstance(answer, dict) and answer.get("success") is False:
            raise TurnFailed("protocol_error", "server_said_failure", said_failure(answer))
        kind = self._header("content-type")
        expected = " or ".join(self._dialect.content_types[:2])
        raise TurnFailed(
            "protocol_error",
            "wrong_content_type",
            f"HTTP {self.status} with {kind} instead of {expected}: {' '.join(text.split())[:120]}",
        )

    def _finish_audio(self) -> None:
        try:
            if self._stream is not None:
                self._stream.finish()
            elif self._compressed:
                data = b"".join(self._compressed)
                if self._format not in COMPRESSED:
                    raise BadAudio(f"audio that is neither {self._asked} nor any format known: {data[:16]!r}")
                decoded = gevent.get_hub().threadpool.apply(_decode, (self._format, data))
                if isinstance(decoded, BadAudio):
                    raise decoded
                self.track.hear_decoded(decoded, self._arrivals)
        except Truncated as error:
            raise TurnFailed("answered", "truncated", str(error)) from None
        except BadAudio as error:
            raise TurnFailed("answered", "undecodable_audio", str(error)) from None


def _decode(name: str, data: bytes) -> Decoded | BadAudio:
    """In a thread: gevent prints what a thread raises, so the error is handed over instead."""
    try:
        return decode(name, data)
    except BadAudio as error:
        return error


_HINTS = {
    401: " (unauthorised: put the token into CICADA_TOKEN or .env)",
    403: " (forbidden)",
    404: " (no such route: check --host, --dialect and --path)",
    405: " (not a route for POST: check --dialect and --path)",
    503: " (the server is full)",
}
