"""Tokens to samples, a piece at a time, for several requests together: flow, then vocoder. Knows nothing of T3.

Two ways to stream, by switch. `masks`: every piece is made from all that was said before, under masks that let no frame
see a later piece: what is streamed is what a whole answer under these masks would be, to the last digit. `overlap`: a
piece is made from the voice, CONTEXT tokens before it and those after it, all seeing one another as upstream has it,
and its first frames are blended with what the piece before had for them.
"""

from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from gpu_server.engines.chatterbox.flow import FRAMES, LOOKAHEAD, MELS, NEVER, Flow
from gpu_server.engines.chatterbox.vocoder import AHEAD, BEHIND, FRAME, Piece, Vocoder
from gpu_server.engines.chatterbox.voices import Voice
from gpu_server.request import HOPS, Request

Streaming = Literal["masks", "overlap"]

CONTEXT = 50  # tokens
ROWS = (1, 2, 4, 8, 16)
_LENGTHS = 32  # lengths are rounded up to a multiple of it
_BLEND = FRAMES * LOOKAHEAD


def _windows() -> tuple[int, ...]:
    """Frames of the vocoder's windows when the pieces are as HOPS says: 8, 24, 70, 120."""
    found, made, sent = [], 0, 0
    for hop in (*HOPS, HOPS[-1]):
        made += hop * FRAMES
        found.append(min(made, made - sent + BEHIND))
        sent = made - AHEAD
    return tuple(dict.fromkeys(found))


WINDOWS = _windows()


@dataclass(slots=True)
class Sounding:
    """How far a segment's audio is; all tensors on the device."""

    voice: Voice
    noise: Tensor  # [80, frames], of what is said
    phases: Tensor
    cycles: Tensor
    mel: Tensor  # [80, frames made]
    source: Tensor
    parts: list[int] = field(default_factory=list)  # of the tokens made
    emitted: int = 0  # frames that are audio
    tail: Tensor | None = None  # frames that the last piece had beyond its end; `overlap` only


@dataclass(frozen=True, slots=True)
class _Job:
    """What a piece is made of: from `begins` on, `hop` tokens; all that is known where it is the last."""

    sounding: Sounding
    tokens: list[int]
    begins: int
    hop: int
    last: bool
    all_see_all: bool  # as upstream has it, where nothing is streamed under masks


class Sounds:
    """The second stage. Not thread-safe: one thread owns it."""

    def __init__(self, flow: Flow, vocoder: Vocoder, streaming: Streaming, most_tokens: int) -> None:
        self._flow, self._vocoder, self.streaming = flow, vocoder, streaming
        self._most_frames = FRAMES * (most_tokens + LOOKAHEAD)
        self.device = flow.device

    def begin(self, voice: Voice, seed: int) -> Sounding:
        """A segment that has said nothing yet. What is random follows from the seed alone."""
        generator = torch.Generator().manual_seed(seed)
        noise = torch.randn((MELS, self._most_frames), generator=generator).to(self.device)
        nothing = torch.zeros((MELS, 0), device=self.device)
        phases = self._vocoder.phases(generator)
        zero = torch.zeros((), device=self.device)
        return Sounding(voice, noise, phases, zero, nothing, torch.zeros(0, device=self.device))

    def length(self, request: Request) -> int:
        """Tokens, padding included, that the next piece's row has: rows of one length go together."""
        sounding: Sounding = request.state
        known = _known(request)
        if self.streaming == "overlap":
            known -= max(0, request.made - CONTEXT)
        return _rounded(len(sounding.voice.prompt_tokens) + known)

    def make(self, requests: list[Request]) -> list[Tensor]:
        """Samples of the next piece of each, int16, on the device; the requests are of one `length`."""
        jobs = [self._job(request) for request in requests]
        self._make_mel(jobs, self.length(requests[0]))
        return self._make_samples(jobs)

    def _job(self, request: Request) -> _Job:
        return _Job(
            request.state,
            request.tokens[: _known(request)],
            request.made,
            request.next_hop,
            request.is_last_piece,
            self.streaming == "overlap" or request.whole,
        )

    # ---- mel

    def _make_mel(self, jobs: list[_Job], length: int) -> None:
        rows = _rows(len(jobs))
        tokens = torch.zeros((rows, length), dtype=torch.int64)
        parts = torch.full((rows, length), NEVER, dtype=torch.int64)
        starts = []
        for row, job in enumerate(jobs):
            prompt = len(job.sounding.voice.prompt_tokens)
            first = max(0, job.begins - CONTEXT) if self.streaming == "overlap" else 0
            said = job.tokens[first:]
            tokens[row, prompt : prompt + len(said)] = torch.tensor(said)
            parts[row, :prompt] = 0
            parts[row, prompt : prompt + len(said)] = torch.tensor(self._parts(job)[first:])
            starts.append((prompt, first))
        parts[len(jobs) :, 0] = 0  # rows that only pad
        tokens, parts = tokens.to(self.device), parts.to(self.device)
        shape = (rows, MELS, FRAMES * length)
        dtype = self._flow.dtype
        prompts, noise = torch.zeros(shape, dtype=dtype, device=self.device), torch.zeros(shape, device=self.device)
        speaker = torch.zeros((rows, MELS), dtype=dtype, device=self.device)
        for row, (job, (prompt, first)) in enumerate(zip(jobs, starts, strict=True)):
            voice, begins = job.sounding.voice, FRAMES * prompt
            tokens[row, :prompt] = voice.prompt_tokens
            prompts[row, :, :begins] = voice.prompt_mel
            speaker[row] = voice.speaker
            noise[row, :, :begins] = voice.noise
            frames = FRAMES * len(job.tokens[first:])
            noise[row, :, begins : begins + frames] = job.sounding.noise[:, FRAMES * first : FRAMES * first + frames]
        made = self._flow.mel(tokens, parts, prompts, speaker, noise)
        for row, (job, (prompt, first)) in enumerate(zip(jobs, starts, strict=True)):
            begins = FRAMES * (prompt + job.begins - first)
            ends = begins + FRAMES * job.hop
            self._append(job, made[row, :, begins:ends], made[row, :, ends : ends + _BLEND])

    def _parts(self, job: _Job) -> list[int]:
        """Of each token the part it belongs to; the voice is part 0."""
        sounding = job.sounding
        if job.all_see_all:
            return [0] * len(job.tokens)
        number = 1 + (sounding.parts[-1] if sounding.parts else 0)
        sounding.parts += [number] * job.hop
        return sounding.parts + [number + 1] * (len(job.tokens) - len(sounding.parts))

    def _append(self, job: _Job, fresh: Tensor, beyond: Tensor) -> None:
        sounding = job.sounding
        if self.streaming == "overlap":
            if sounding.tail is not None:
                size = min(_BLEND, fresh.shape[1])
                rising = torch.linspace(0, 1, size + 2, device=self.device)[1:-1]
                blended = sounding.tail[:, :size] * (1 - rising) + fresh[:, :size] * rising
                fresh = torch.cat((blended, fresh[:, size:]), 1)
            sounding.tail = None if job.last else beyond.clone()
        sounding.mel = torch.cat((sounding.mel, fresh), 1)  # a copy: what a graph made is overwritten

    # ---- samples

    def _make_samples(self, jobs: list[_Job]) -> list[Tensor]:
        by_frames: dict[int, list[int]] = {}
        for number, job in enumerate(jobs):
            by_frames.setdefault(_window(job.sounding), []).append(number)
        samples: list[Tensor] = [torch.zeros(0)] * len(jobs)
        for frames, numbers in by_frames.items():
            pieces = [_piece(jobs[number].sounding, frames) for number in numbers]
            pieces += [pieces[0]] * (_rows(len(pieces)) - len(pieces))
            made, source, cycles = self._vocoder.make(pieces)
            for row, number in enumerate(numbers):
                samples[number] = self._emit(jobs[number], pieces[row], made[row], source[row], cycles[row])
        return samples

    def _emit(self, job: _Job, piece: Piece, made: Tensor, source: Tensor, cycles: Tensor) -> Tensor:
        sounding = job.sounding
        frames = sounding.mel.shape[1]
        until = frames if job.last else max(sounding.emitted, frames - AHEAD)
        begins, ends = sounding.emitted - piece.first, until - piece.first
        samples = made[begins * FRAME : ends * FRAME].clone()
        fade = self._vocoder.fade
        if (faded := len(fade) - sounding.emitted * FRAME) > 0:
            size = min(faded, len(samples))
            samples[:size] *= fade[len(fade) - faded :][:size]
        keep = max(0, ends - WINDOWS[-1]) * FRAME
        sounding.source = source[keep : ends * FRAME].clone()
        if ends:
            sounding.cycles = cycles[ends - 1].clone()
        sounding.emitted = until
        return (samples * 32767.0).round().to(torch.int16)


def _known(request: Request) -> int:
    """Tokens that the next piece may look at."""
    ends = request.made + request.next_hop
    return len(request.tokens) if request.is_last_piece else ends + LOOKAHEAD


def _window(sounding: Sounding) -> int:
    """Frames of the window that makes the next samples: a usual size where there is one that fits."""
    frames = sounding.mel.shape[1]
    needed = min(frames, frames - sounding.emitted + BEHIND)
    return next((usual for usual in WINDOWS if needed <= usual <= frames), needed)


def _piece(sounding: Sounding, frames: int) -> Piece:
    first = sounding.mel.shape[1] - frames
    mel = sounding.mel[:, first:]
    return Piece(mel, sounding.emitted - first, first, sounding.source, sounding.cycles, sounding.phases)


def _rows(count: int) -> int:
    return next((rows for rows in ROWS if count <= rows), count)


def _rounded(length: int) -> int:
    return -(-length // _LENGTHS) * _LENGTHS
