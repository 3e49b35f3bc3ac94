"""Ask another server over HTTP without holding up the event loop. Knows nothing of speech or of what is asked.

The standard library's client in threads: one connection a question, so no client library is needed for two routes.
"""

import asyncio
import http.client
import os
import socket
import ssl
import threading
from collections.abc import AsyncGenerator, Callable
from concurrent.futures import ThreadPoolExecutor
from http import HTTPStatus
from urllib.parse import urlsplit

TIMEOUT_S = 30.0
KEY_NAME = "OPENAI_API_KEY"
_ERROR_BYTES = 300
_LINE_BYTES = 1 << 20

_threads = ThreadPoolExecutor(128, thread_name_prefix="ask-http")


class CannotAsk(Exception):
    """The other server could not be reached, refused, or broke off; the message says which and where."""


def endpoint(url: str, path: str) -> str:
    """Complete a base URL with a route; one that names a route already stays. Raises ValueError."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(f"{url!r} is not a URL such as http://localhost:8000")
    if parts.path.rstrip("/") in ("", "/v1"):
        return f"{parts.scheme}://{parts.netloc}{path}"
    return url


async def ask(url: str, content_type: str, body: bytes) -> bytes:
    """POST and return the whole answer. Raises CannotAsk."""
    return b"\n".join([line async for line in ask_lines(url, content_type, body)])


async def ask_lines(url: str, content_type: str, body: bytes) -> AsyncGenerator[bytes, None]:
    """POST and yield the answer line by line, as it comes. Closing the generator breaks the connection off."""
    loop = asyncio.get_running_loop()
    arrived: asyncio.Queue[bytes | CannotAsk | None] = asyncio.Queue()
    question = _Question(url, content_type, body)

    def hand_over(item: bytes | CannotAsk | None) -> None:
        try:
            loop.call_soon_threadsafe(arrived.put_nowait, item)
        except RuntimeError:  # The loop has ended: nobody waits any more.
            pass

    _threads.submit(question.run, hand_over)
    try:
        while (item := await arrived.get()) is not None:
            if isinstance(item, CannotAsk):
                raise item
            yield item
    finally:
        question.break_off()


class _Question:
    """One POST, run in a thread."""

    def __init__(self, url: str, content_type: str, body: bytes) -> None:
        self._url = url
        self._content_type = content_type
        self._body = body
        self._connection: http.client.HTTPConnection | None = None
        self._sock: socket.socket | None = None
        self._unwanted = threading.Event()

    def run(self, hand_over: Callable[[bytes | CannotAsk | None], None]) -> None:
        if self._unwanted.is_set():
            return
        try:
            self._post(hand_over)
            hand_over(None)
        except CannotAsk as error:
            hand_over(error)
        except (OSError, http.client.HTTPException, ValueError) as error:
            hand_over(CannotAsk(f"{self._url}: {type(error).__name__}: {error}"))
        finally:
            if self._connection is not None:
                self._connection.close()

    def break_off(self) -> None:
        self._unwanted.set()
        if self._sock is not None:
            try:
                self._sock.shutdown(socket.SHUT_RDWR)  # wakes a thread that waits for more
            except OSError:
                pass  # It has ended by itself.

    def _post(self, hand_over: Callable[[bytes | CannotAsk | None], None]) -> None:
        parts = urlsplit(self._url)
        assert parts.hostname is not None
        if parts.scheme == "https":
            context = ssl.create_default_context()
            self._connection = http.client.HTTPSConnection(
                parts.hostname, parts.port, timeout=TIMEOUT_S, context=context
            )
        else:
            self._connection = http.client.HTTPConnection(parts.hostname, parts.port, timeout=TIMEOUT_S)
        headers = {"content-type": self._content_type, "accept": "*/*"}
        if key := os.environ.get(KEY_NAME):
            headers["authorization"] = f"Bearer {key}"
        target = parts.path + (f"?{parts.query}" if parts.query else "")
        self._connection.request("POST", target, self._body, headers)
        self._sock = self._connection.sock  # which http.client forgets once the answer has begun
        with self._connection.getresponse() as answer:
            if answer.status != HTTPStatus.OK:
                said = " ".join(answer.read(_ERROR_BYTES).decode(errors="replace").split())
                raise CannotAsk(f"{self._url}: status {answer.status}: {said}")
            while not self._unwanted.is_set() and (line := answer.readline(_LINE_BYTES)):
                hand_over(line.rstrip(b"\r\n"))
