"""Decide what to answer, as a stream of text. Knows nothing of audio, calls or clocks other than its own pace."""

import json
import re
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Protocol

from gpu_server.ask_http import CannotAsk, ask_lines
from gpu_server.pace import wait_until

Pieces = AsyncGenerator[str, None]  # text as it comes: a word or less at a time

REPLIES = (
    "The shop opens at nine in the morning on Saturday. It closes at six in the evening.",
    "You can park behind the building. Parking is free for two hours.",
    "Yes, I can book that for you. Which day would suit you best?",
    "I have found your order. It left our warehouse yesterday and should arrive on Thursday.",
    "That is no problem at all. I will send you a new one today.",
    "Let me check that for you. There are three tables free at eight o'clock.",
    "You can return it within thirty days. Please keep the receipt.",
    "I am sorry to hear that. Let us try to put it right.",
)
_SYSTEM = "You are on the telephone. Answer in one or two short spoken sentences, without lists or markup."
_REMEMBERED = 20  # messages
_LONGEST_SENTENCE = 300  # characters; a model that never stops a sentence is spoken all the same
# Between sentences, but not after a title. The same as where speech engines cut.
_SENTENCE_END = re.compile(r"(?<=[.!?])(?<!\bDr\.)(?<!\bMr\.)(?<!\bMs\.)(?<!\bSt\.)(?<!\bMrs\.)\s+")


@dataclass(frozen=True, slots=True)
class Said:
    """One thing said in a call, by `user` or `assistant`."""

    who: str
    text: str


class Replier(Protocol):
    """Anything that answers."""

    def stream(self, turn: int, history: Sequence[Said]) -> Pieces:
        """Stream the reply to the last thing said. Closing the generator stops the work."""


class ScriptedReplier:
    """The same replies in the same order, in every call; words at a set pace, 0 for all at once."""

    def __init__(self, words_per_s: float = 0.0, replies: Sequence[str] = REPLIES) -> None:
        self._words_per_s = words_per_s
        self._replies = [[f"{word} " for word in reply.split()] for reply in replies]

    async def stream(self, turn: int, history: Sequence[Said]) -> Pieces:
        words = self._replies[turn % len(self._replies)]
        yield words[0]
        started_at = time.monotonic()  # when the first word was taken
        for number, word in enumerate(words[1:], start=1):
            if self._words_per_s:
                await wait_until(started_at + number / self._words_per_s)
            yield word


class ChatReplier:
    """A language model behind a URL of OpenAI's `/v1/chat/completions`."""

    def __init__(self, url: str, model: str) -> None:
        self._url = url
        self._model = model

    async def stream(self, turn: int, history: Sequence[Said]) -> Pieces:
        messages = [{"role": "system", "content": _SYSTEM}]
        messages += [{"role": said.who, "content": said.text} for said in history[-_REMEMBERED:]]
        body = json.dumps({"model": self._model, "messages": messages, "stream": True}).encode()
        async with aclosing(ask_lines(self._url, "application/json", body)) as lines:
            async for line in lines:
                if line.startswith(b"data:") and (text := self._delta(line[5:].strip())):
                    yield text

    def _delta(self, data: bytes) -> str:
        if data == b"[DONE]":
            return ""
        try:
            event = json.loads(data)
            if "error" in event:
                raise CannotAsk(f"{self._url}: {event['error']}")
            choices = event["choices"]
            return (choices[0]["delta"].get("content") or "") if choices else ""
        except (ValueError, KeyError, TypeError, IndexError) as error:
            raise CannotAsk(f"{self._url} sent no chat completion: {data[:200]!r}") from error


class SentenceCutter:
    """Cuts a stream of text into sentences, each as soon as it is whole."""

    def __init__(self) -> None:
        self._text = ""

    def feed(self, piece: str) -> list[str]:
        self._text += piece
        *whole, self._text = _SENTENCE_END.split(self._text)
        if len(self._text) > _LONGEST_SENTENCE:
            whole.append(self._text)
            self._text = ""
        return [sentence.strip() for sentence in whole if sentence.strip()]

    def finish(self) -> list[str]:
        """What is left when nothing more comes."""
        rest, self._text = self._text.strip(), ""
        return [rest] if rest else []
