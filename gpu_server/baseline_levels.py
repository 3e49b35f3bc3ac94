"""Many streams at once: how soon each begins, and whether each keeps up with its listener. Knows nothing of models.

Closed loops: every stream says one text after the other, and its listener asks for the next as soon as one has ended
(all are always busy, which is harder than as many listeners), or, `heard`, once it has heard the last one to its end.
Their starts are spread over the first seconds. Answers begun within the window count; streams go on, uncounted, until
the last of these has ended, so that the load is the same to the end.
"""

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from gpu_server.baseline_device import Device
from gpu_server.baseline_protocol import Speaker, as_dict, first_line, real_time_factor, since
from gpu_server.speech import SAMPLE_RATE

PREBUFFER_S = 0.1
STALL_MIN_S = 0.001  # shorter waits are no underrun: no device plays in smaller periods
P95_NEEDS = 72  # answers; of fewer the largest one would pretend to be a percentile
SPREAD_S = 2.0


@dataclass(slots=True)
class Answer:
    """One text said by one stream. Instants: when it was asked for, when each chunk came; samples of each chunk."""

    stream: int
    began_at: float
    counted: bool
    chunk_at: list[float] = field(default_factory=list)
    chunk_samples: list[int] = field(default_factory=list)
    error: str = ""
    ended: bool = False


@dataclass(frozen=True, slots=True)
class Level:
    """All that was said at one level. All streams spoke from `full_at` to `over_at`."""

    streams: int
    answers: Sequence[Answer]
    full_at: float
    over_at: float


def run_level(
    speaker: Speaker,
    streams: int,
    texts: Mapping[str, str],
    window_s: float,
    *,
    heard: bool = False,
    clock: Callable[[], float] = time.perf_counter,
) -> Level:
    """Keep so many streams speaking: `window_s` seconds, and until the last answer begun in them has ended."""
    said = list(texts.values())
    started_at = clock()
    spread_s = min(SPREAD_S, window_s / 2) if streams > 1 else 0.0
    until = started_at + window_s
    over, lock = threading.Event(), threading.Lock()
    answers: list[Answer] = []
    over_at: list[float] = []

    def end_if_done() -> None:
        with lock:
            if not over.is_set() and clock() >= until and all(a.ended for a in answers if a.counted):
                over_at.append(clock())
                over.set()

    def keep_speaking(number: int) -> None:
        if over.wait(spread_s * number / streams):
            return
        turn = number  # each begins with another text
        while not over.is_set():
            now = clock()
            answer = Answer(number, now, counted=now < until)
            with lock:
                answers.append(answer)
            _say(speaker.speak(said[turn % len(said)]), answer, over, clock)
            turn += 1
            end_if_done()
            if answer.error or (heard and over.wait(_left_to_hear_s(answer, clock()))):
                return

    threads = [threading.Thread(target=keep_speaking, args=(n,), daemon=True) for n in range(streams)]
    try:
        for thread in threads:
            thread.start()
        over.wait(max(0.0, until - clock()))
        end_if_done()  # all may be listening
        for thread in threads:
            thread.join()
    finally:
        over.set()  # Ctrl-C: nobody begins another text
    return Level(streams, answers, started_at + spread_s, over_at[0] if over_at else clock())


def _say(chunks: Iterator[Any], answer: Answer, over: threading.Event, clock: Callable[[], float]) -> None:
    try:
        for chunk in chunks:
            if len(chunk):
                answer.chunk_at.append(clock())
                answer.chunk_samples.append(len(chunk))
            if over.is_set():  # an uncounted one: nobody waits for it
                break
        else:
            if not answer.chunk_at:
                answer.error = "no audio"
    except Exception as error:  # of the model; it is told in the level's figures
        answer.error = first_line(error)
    finally:
        if close := getattr(chunks, "close", None):
            close()  # stops the work at once
        answer.ended = True


def _left_to_hear_s(answer: Answer, now: float, sample_rate: int = SAMPLE_RATE) -> float:
    """Until a listener has heard it all, who began a prebuffer after the first chunk."""
    return max(0.0, answer.chunk_at[0] + PREBUFFER_S + sum(answer.chunk_samples) / sample_rate - now)


def figures(level: Level, sample_rate: int = SAMPLE_RATE) -> dict[str, Any]:
    """What a level says. ttfc_p95_ms is null with fewer than P95_NEEDS answers; all is null without any."""
    counted = [answer for answer in level.answers if answer.counted]
    good = [answer for answer in counted if not answer.error]
    ttfc_ms = [(answer.chunk_at[0] - answer.began_at) * 1000 for answer in good]
    took_s = sum(answer.chunk_at[-1] - answer.began_at for answer in good)
    samples = sum(sum(answer.chunk_samples) for answer in good)
    behind = {answer.stream for answer in counted if answer.error or stalls(answer, sample_rate)}
    spoke = {answer.stream for answer in counted}
    window_s = level.over_at - level.full_at
    errors = [answer.error for answer in counted if answer.error]
    return {
        "streams": level.streams,
        "answers": len(good),
        "failed": len(errors),
        "error": errors[0] if errors else None,
        "ttfc_p50_ms": round(float(np.percentile(ttfc_ms, 50)), 2) if ttfc_ms else None,
        "ttfc_p95_ms": round(float(np.percentile(ttfc_ms, 95)), 2) if len(ttfc_ms) >= P95_NEEDS else None,
        "ttfc_max_ms": round(max(ttfc_ms), 2) if ttfc_ms else None,
        "rtf": round(real_time_factor(took_s * 1000, samples, sample_rate), 3) if samples else None,
        "streams_in_real_time": len(spoke - behind),
        "audio_s_per_s": round(_samples_within(level) / sample_rate / window_s, 2) if window_s > 0 else None,
        "window_s": round(window_s, 2),
    }


def stalls(answer: Answer, sample_rate: int = SAMPLE_RATE, prebuffer_s: float = PREBUFFER_S) -> bool:
    """Whether a player would run dry that begins `prebuffer_s` after the first chunk and never skips."""
    delay_s, media_s = prebuffer_s, 0.0
    for at, samples in zip(answer.chunk_at, answer.chunk_samples, strict=True):
        late_s = at - answer.chunk_at[0] - media_s
        if late_s - delay_s >= STALL_MIN_S:
            return True
        delay_s = max(delay_s, late_s)
        media_s += samples / sample_rate
    return False


def _samples_within(level: Level) -> int:
    return sum(
        samples
        for answer in level.answers
        for at, samples in zip(answer.chunk_at, answer.chunk_samples, strict=True)
        if level.full_at <= at <= level.over_at
    )


def measure(
    speaker: Speaker, device: Device, streams: int, texts: Mapping[str, str], window_s: float, *, heard: bool = False
) -> dict[str, Any]:
    """Run one level; its figures, the seconds of each stage and the GPU's memory."""
    device.clear()
    device.reset_peak()
    before = speaker.spent()
    level = run_level(speaker, streams, texts, window_s, heard=heard)
    device.synchronize()
    memory = device.memory()
    return {
        **figures(level),
        "stages": as_dict(since(before, speaker.spent())),
        "vram_peak_gb": None if memory is None else round(memory.peak_gb, 2),
    }


def line(found: Mapping[str, Any]) -> str:
    """One level as people read it."""
    p95 = _ms(found["ttfc_p95_ms"]) if found["ttfc_p95_ms"] is not None else f"n too small ({found['answers']})"
    told = [
        f"{found['streams']:>4} streams",
        f"TTFC p50 {_ms(found['ttfc_p50_ms'])}, p95 {p95}",
        f"RTF {'-' if found['rtf'] is None else format(found['rtf'], '.3f')}",
        f"{found['streams_in_real_time']} of {found['streams']} in real time",
        f"{'-' if found['audio_s_per_s'] is None else format(found['audio_s_per_s'], '.1f')} s of audio a second",
    ]
    if found["failed"]:
        told.append(f"{found['failed']} failed ({found['error']})")
    return " | ".join(told)


def _ms(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f} ms"
