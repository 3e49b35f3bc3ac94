"""Turn what a caller said into text. Knows nothing of calls, voice activity or replies.

`none` hears nothing and costs nothing; `pocketsphinx` understands a list of known sentences, in child processes, since
it holds the interpreter lock while it decodes; a URL is any server with OpenAI's `/v1/audio/transcriptions`.
"""

import asyncio
import json
import os
import secrets
import sys
from pathlib import Path
from typing import Protocol

from gpu_server.ask_http import CannotAsk, ask, endpoint
from gpu_server.audio_out import wav_header

SAMPLE_RATE = 16_000
_ROUTE = "/v1/audio/transcriptions"
_CHILDREN = max(1, min(4, (os.cpu_count() or 1) // 2))
_STOP_S = 2.0


class CannotRecognize(Exception):
    """The recognizer asked for cannot be had; the message says how to get it."""


class Recognizer(Protocol):
    """Anything that turns s16le mono at 16 kHz into text."""

    async def start(self) -> None:
        """Load what the first call would wait for. Raises CannotRecognize."""

    async def transcribe(self, pcm: bytes) -> str: ...

    async def close(self) -> None: ...


def choose_recognizer(name: str, model: str, known_queries: Path | None) -> Recognizer | None:
    """What `--recognizer` names; None for `none`. Raises CannotRecognize."""
    if name == "none":
        return None
    if name == "pocketsphinx":
        if known_queries is None:
            raise CannotRecognize("pocketsphinx needs --known-queries FILE: the sentences it may hear, one a line")
        return SphinxRecognizer(read_queries(known_queries))
    try:
        return HttpRecognizer(endpoint(name, _ROUTE), model)
    except ValueError as error:
        raise CannotRecognize(f"--recognizer {error}; or say none or pocketsphinx") from error


def read_queries(path: Path) -> list[str]:
    """The sentences of a file, one a line. Raises CannotRecognize."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise CannotRecognize(f"cannot read the known queries {path}: {error}") from error
    queries = [line.strip() for line in lines if line.strip()]
    if not queries:
        raise CannotRecognize(f"no known query in {path}: write one sentence a line")
    return queries


class HttpRecognizer:
    """OpenAI's transcription route, wherever it is."""

    def __init__(self, url: str, model: str) -> None:
        self._url = url
        self._model = model

    async def start(self) -> None:
        """Nothing to load; a server that is down shows in the first call."""

    async def transcribe(self, pcm: bytes) -> str:
        boundary = secrets.token_hex(16)
        fields = {"model": self._model, "response_format": "json"}
        parts = [
            f'--{boundary}\r\ncontent-disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'.encode()
            for name, value in fields.items()
        ]
        wav = wav_header(len(pcm), SAMPLE_RATE) + pcm
        head = f'--{boundary}\r\ncontent-disposition: form-data; name="file"; filename="speech.wav"\r\n'
        parts += [head.encode(), b"content-type: audio/wav\r\n\r\n", wav, f"\r\n--{boundary}--\r\n".encode()]
        answer = await ask(self._url, f"multipart/form-data; boundary={boundary}", b"".join(parts))
        try:
            return str(json.loads(answer)["text"]).strip()
        except (ValueError, KeyError, TypeError) as error:
            raise CannotAsk(f"{self._url} answered no transcription: {answer[:200]!r}") from error

    async def close(self) -> None:
        """Nothing to free."""


class SphinxRecognizer:
    """A few pocketsphinx children; an utterance waits for a free one. Each takes about 5 % of its audio's length."""

    def __init__(self, queries: list[str]) -> None:
        self._queries = queries
        self._children: list[_Child] = []
        self._free: asyncio.Queue[_Child] = asyncio.Queue()

    async def start(self) -> None:
        self._children = await asyncio.gather(*(_Child.begin(self._queries) for _ in range(_CHILDREN)))
        for child in self._children:
            self._free.put_nowait(child)

    async def transcribe(self, pcm: bytes) -> str:
        child = await self._free.get()
        # Shielded: a child must not be given on while it still works on a question nobody waits for.
        return await asyncio.shield(self._ask(child, pcm))

    async def _ask(self, child: "_Child", pcm: bytes) -> str:
        try:
            return await child.transcribe(pcm)
        finally:
            self._free.put_nowait(child)

    async def close(self) -> None:
        await asyncio.gather(*(child.end() for child in self._children))


class _Child:
    """One `python -m gpu_server.sphinx`; it ends with its stdin, so it never outlives this process."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    @classmethod
    async def begin(cls, queries: list[str]) -> "_Child":
        child = cls(
            await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "gpu_server.sphinx",
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                # Ctrl-C in a terminal goes to the whole group; this one's end is ours to decide.
                start_new_session=True,
            )
        )
        answer = await child._exchange(json.dumps(queries).encode())
        if "error" in answer:
            raise CannotRecognize(answer["error"])
        return child

    async def transcribe(self, pcm: bytes) -> str:
        return (await self._exchange(pcm))["text"]

    async def end(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            await asyncio.wait_for(self._process.wait(), _STOP_S)
        except TimeoutError:
            self._process.kill()
            await self._process.wait()

    async def _exchange(self, data: bytes) -> dict[str, str]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(len(data).to_bytes(4, "little") + data)
            await self._process.stdin.drain()
        except OSError as error:
            raise CannotRecognize(f"the pocketsphinx process has gone: {error}") from error
        line = await self._process.stdout.readline()
        if not line:
            raise CannotRecognize("the pocketsphinx process has gone; its last words are above")
        answer: dict[str, str] = json.loads(line)
        return answer
