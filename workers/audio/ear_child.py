"""The hearing subprocess: answers what ear.py asks, one question after the other. Knows nothing of gevent or Locust.

Questions come on standard input as msgpack [number, verb, arguments] and are answered on standard output as
[number, None, result] or [number, what was wrong, None]. It ends with its input.
"""

import io
import os
import signal
from collections.abc import Callable
from functools import cache
from typing import Any

import msgpack
import numpy as np
import numpy.typing as npt

Samples = npt.NDArray[np.int16]

NICE = 19  # pacing goes first: an answer may come later, a chunk may not
_READ_BYTES = 1 << 20
LARGEST_BYTES = 256 << 20


def onset(pcm: bytes, rate: int, coarse: int) -> int | None:
    """turns.onset of s16le bytes."""
    from workers.audio import turns

    return turns.onset(np.frombuffer(pcm, "<i2"), rate, coarse)


def offset(pcm: bytes, rate: int, coarse: int) -> int | None:
    """turns.offset of s16le bytes."""
    from workers.audio import turns

    return turns.offset(np.frombuffer(pcm, "<i2"), rate, coarse)


def flac(user_pcm: bytes, user_rate: int, agent_pcm: bytes, agent_rate: int, title: str) -> bytes:
    """Both sides of a turn as one FLAC file: the user left, the agent right, at the higher of the two rates."""
    import soundfile

    rate = max(user_rate, agent_rate)
    sides = [_at_rate(user_pcm, user_rate, rate), _at_rate(agent_pcm, agent_rate, rate)]
    both = np.zeros((max(1, *map(len, sides)), 2), np.int16)  # libsndfile makes no file of no samples
    for column, side in enumerate(sides):
        both[: len(side), column] = side
    file = io.BytesIO()
    with soundfile.SoundFile(file, "w", rate, 2, "PCM_16", format="FLAC") as out:
        if title:  # nor does it take an empty one
            out.title = title
        out.write(both)
    return file.getvalue()


@cache
def _decoders() -> Any:
    from workers.audio.opus import Decoders

    return Decoders()


def decode_opus(batch: list[Any]) -> list[Any]:
    """opus.Decoders.decode: of each stream its messages."""
    return _decoders().decode(batch)  # type: ignore[no-any-return]


def forget_opus(stream: int) -> None:
    """A stream is over."""
    _decoders().forget(stream)


def ping() -> str:
    """Whether anybody listens."""
    return "pong"


VERBS: dict[str, Callable[..., Any]] = {
    "onset": onset,
    "offset": offset,
    "flac": flac,
    "opus": decode_opus,
    "forget_opus": forget_opus,
    "ping": ping,
}


def answer(verb: str, arguments: list[Any]) -> tuple[str | None, Any]:
    """(None, the result) or (what was wrong, None): a bad question costs its asker an answer and nobody else."""
    try:
        return None, VERBS[verb](*arguments)
    except Exception as error:  # whatever a library makes of bad arguments goes back to who asked
        return f"{type(error).__name__}: {error}", None


def _at_rate(pcm: bytes, rate: int, wanted: int) -> Samples:
    samples = np.frombuffer(pcm, "<i2")
    if rate == wanted:
        return samples
    import soxr

    resampled = soxr.resample(samples.astype(np.float32), rate, wanted)  # in float: soxr dithers int16 at random
    rounded: Samples = np.clip(np.rint(resampled), -32768, 32767).astype(np.int16)
    return rounded


def main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the worker, which still has questions while it drains
    os.nice(NICE)
    questions, answers = os.dup(0), os.dup(1)
    os.set_blocking(questions, True)  # gevent made the socket non-blocking
    os.dup2(2, 1)  # a library that prints must not print into an answer
    unpacker = msgpack.Unpacker(max_buffer_size=LARGEST_BYTES)
    while data := os.read(questions, _READ_BYTES):
        unpacker.feed(data)
        for number, verb, arguments in unpacker:
            left = memoryview(msgpack.packb([number, *answer(verb, arguments)]))
            while left:
                left = left[os.write(answers, left) :]


if __name__ == "__main__":
    try:
        main()
    except (BrokenPipeError, ConnectionResetError):
        pass  # the worker is gone; so are we
