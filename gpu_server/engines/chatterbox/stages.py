"""The two stages on one device, as the step loop calls them. Knows nothing of threads, clients or the command line.

T3 runs on the stream of the loop's thread, S3Gen and HiFT on another one: on a GPU they overlap.
"""

import zlib
from collections.abc import Hashable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gpu_server.engines.chatterbox import text, upstream, voices
from gpu_server.engines.chatterbox.build import TOKENS_OF_SPEECH
from gpu_server.engines.chatterbox.checkpoint import Model
from gpu_server.engines.chatterbox.flow import FRAMES, LOOKAHEAD, MELS, Flow
from gpu_server.engines.chatterbox.graphs import Graphs
from gpu_server.engines.chatterbox.heap import give_large_blocks_back
from gpu_server.engines.chatterbox.sampling import DEFAULTS, Sampling
from gpu_server.engines.chatterbox.sounds import ROWS, WINDOWS, Sounds, Streaming
from gpu_server.engines.chatterbox.stopwatch import Stopwatch
from gpu_server.engines.chatterbox.t3 import BATCHES, BEGINS, Start, T3Slots
from gpu_server.engines.chatterbox.vocoder import Piece, Vocoder
from gpu_server.engines.chatterbox.voices import Voice, Voices
from gpu_server.request import HOPS, Request, Segment
from gpu_server.speech import Pcm

_POSITIONS = {"turbo": 1280, "original": 1024}
_TEXT_TOKENS = 160  # of a segment, at most
_SILENCE = 4299  # upstream's S3GEN_SIL, which Turbo's answers end with


@dataclass(frozen=True, slots=True)
class Setting:
    """How a model is run."""

    slots: int
    device: torch.device
    dtype: torch.dtype  # of T3 and the flow; HiFT is float32 always
    graphs: bool
    streaming: Streaming = "masks"
    prompt_s: float = 10.0  # of the voice's recording, that S3Gen hears
    sampling: Sampling | None = None  # None: upstream's


class ChatterboxStages:
    """Owns the model and all that is on the device."""

    def __init__(self, model: Model, setting: Setting, recordings: dict[str, Path | None]) -> None:
        self._model, self._setting = model, setting
        self.slots, self.device = setting.slots, setting.device
        self.speech_tokens = TOKENS_OF_SPEECH
        self.closing: Sequence[int] = (_SILENCE,) * LOOKAHEAD if model.kind == "turbo" else ()
        self.never_ends = model.weights == "random"
        self._sampling = setting.sampling or DEFAULTS[model.kind]
        model.t3.to(setting.device, setting.dtype)
        model.s3gen.flow.to(setting.device, setting.dtype)
        model.s3gen.mel2wav.to(setting.device)
        self._step_graphs, self._sound_graphs = Graphs(setting.graphs), Graphs(setting.graphs)
        self._t3 = T3Slots(
            model.kind,
            model.t3,
            slots=setting.slots,
            positions=_POSITIONS[model.kind],
            most_tokens=text.MOST_TOKENS,
            never_ends=self.never_ends,
            graphs=self._step_graphs,
        )
        self.end_token = self._t3.end_token
        vocoder = Vocoder(model.s3gen, self._sound_graphs)
        self._flow = Flow(model.s3gen, self._sound_graphs)
        self._vocoder = vocoder
        self._sounds = Sounds(self._flow, vocoder, setting.streaming, text.MOST_TOKENS)
        self._on_stream = torch.cuda.Stream(setting.device) if setting.device.type == "cuda" else None
        self.voices = Voices(recordings, self._voice)
        self._conditionals: dict[Path | None, Any] = {None: model.conds}
        self.t3_time, self.s3gen_time = Stopwatch(setting.device), Stopwatch(setting.device)
        self.t3_tokens = 0
        if setting.device.type == "cpu":
            give_large_blocks_back()

    # ---- texts and voices, from any thread

    def plan(self, words: str) -> list[Segment]:
        """The segments of a text, none of them of more tokens than a slot has room for."""
        found = []
        for segment in text.segments(words):
            found += self._fitting(segment)
        return found

    def _fitting(self, segment: Segment) -> list[Segment]:
        if len(self._tokens(segment.text)) <= _TEXT_TOKENS or len(segment.text) < 2:
            return [segment]
        halves = text.segments(segment.text, -(-len(segment.text) // 2))
        return [piece for half in halves for piece in self._fitting(half)]

    def _tokens(self, words: str) -> Tensor:
        """Of the text as upstream reads it, int64 [length], on the CPU."""
        model = self._model
        if model.kind == "turbo":
            normed = upstream.module("tts_turbo").punc_norm(words)
            return torch.tensor(model.tokenizer(normed, truncation=False).input_ids, dtype=torch.int64)
        hp = model.t3.hp
        ids = model.tokenizer.encode(upstream.module("tts").punc_norm(words))
        return torch.tensor([hp.start_text_token, *ids, hp.stop_text_token], dtype=torch.int64)

    def hear(self, name: str) -> None:
        """Listen to a voice's recording, if nobody has: some seconds. Raises EngineUnavailable that names it."""
        path = self.voices.recording(name)
        if path not in self._conditionals:
            assert path is not None
            self._conditionals[path] = voices.conditionals(self._model, path, self._setting.prompt_s)

    @torch.inference_mode()
    def _voice(self, path: Path | None) -> Voice:
        conds = self._conditionals[path]
        device = self.device
        cond = type(conds.t3)(**vars(conds.t3)).to(device=device, dtype=self._model.t3.speech_emb.weight.dtype)
        with upstream.quiet():
            prefix = self._t3.prefix(cond)
        prompt = voices.shortened(conds.gen, self._setting.prompt_s)
        mel = prompt["prompt_feat"][0].T.contiguous().to(device, self._flow.dtype)
        noise = torch.randn(mel.shape, generator=torch.Generator().manual_seed(0)).to(device)
        tokens = prompt["prompt_token"][0].to(device)
        return Voice(prefix, tokens, mel, self._flow.speaker(prompt["embedding"]), noise)

    # ---- what the loop calls

    @torch.inference_mode()
    def begin(self, requests: list[Request]) -> "_OnDevice":
        starts = []
        for request in requests:
            voice = self.voices.get(request.voice)
            seed = zlib.crc32(f"{request.seed} {request.number}".encode())
            assert request.slot is not None
            request.state = self._sounds.begin(voice, seed)
            tokens = self._tokens(request.segment.text)[:_TEXT_TOKENS]
            starts.append(Start(request.slot, voice.prefix, tokens, self._sampling, seed))
        with self.t3_time.over():
            self._t3.begin(starts)
        self.t3_tokens += len(starts)
        return _OnDevice([self._t3.first_drawn([start.slot for start in starts])])

    @torch.inference_mode()
    def step(self, busy: int) -> "_OnDevice":
        with self.t3_time.over():
            drawn = self._t3.step(busy)
        self.t3_tokens += busy
        return _OnDevice([drawn[:busy]])

    @torch.inference_mode()
    def free(self, slot: int) -> None:
        self._t3.free(slot)

    def shape(self, request: Request) -> Hashable:
        return self._sounds.length(request)

    @torch.inference_mode()
    def sound(self, requests: list[Request]) -> "_OnDevice":
        with torch.cuda.stream(self._on_stream) if self._on_stream else nullcontext(), self.s3gen_time.over():
            return _OnDevice(self._sounds.make(requests))

    def close(self) -> None:
        self._step_graphs.drop()
        self._sound_graphs.drop()

    # ---- before the first request

    @torch.inference_mode()
    def capture(self) -> int:
        """Run every usual shape once, as a graph where there are graphs; how many graphs there are then."""
        voice = self.voices.get(self.voices.names[0])
        for graphs in (self._step_graphs, self._sound_graphs):
            graphs.capturing = True
        try:
            self._capture_t3(voice)
            with torch.cuda.stream(self._on_stream) if self._on_stream else nullcontext():
                self._capture_sounds(voice)
        finally:
            for graphs in (self._step_graphs, self._sound_graphs):
                graphs.capturing = False
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return len(self._step_graphs) + len(self._sound_graphs)

    def _capture_t3(self, voice: Voice) -> None:
        counts = [count for count in BATCHES if count <= self.slots] if self._setting.graphs else [self.slots]
        begins = BEGINS if self._setting.graphs else (1,)
        lengths = (14, 30, 62, 126) if self._setting.graphs else (14,)
        for count in begins:
            for length in lengths:
                tokens = torch.zeros(length, dtype=torch.int64)
                starts = [
                    Start(slot, voice.prefix, tokens, self._sampling, 0) for slot in range(min(count, self.slots))
                ]
                self._t3.begin(starts)
                for start in starts:
                    self._t3.free(start.slot)
        for count in dict.fromkeys((*counts, self.slots)):
            for span in self._t3.spans(voice.prefix) if self._setting.graphs else (1,):
                self._t3.step(count, at_least=span)
        for slot in range(self.slots):
            self._t3.free(slot)

    def _capture_sounds(self, voice: Voice) -> None:
        prompt = len(voice.prompt_tokens)
        lengths = []
        made = 0
        for hop in (*HOPS, *(HOPS[-1],) * 3):
            made += hop
            lengths.append(-(-(prompt + made + LOOKAHEAD) // 32) * 32)
        device = self.device
        for rows in ROWS if self._setting.graphs else (1,):
            for length in dict.fromkeys(lengths if self._setting.graphs else lengths[:1]):
                shape = (rows, MELS, FRAMES * length)
                self._flow.mel(
                    torch.zeros((rows, length), dtype=torch.int64, device=device),
                    torch.zeros((rows, length), dtype=torch.int64, device=device),
                    torch.zeros(shape, dtype=self._flow.dtype, device=device),
                    voice.speaker.expand(rows, -1),
                    torch.zeros(shape, device=device),
                )
            for frames in WINDOWS if self._setting.graphs else WINDOWS[:1]:
                zero = torch.zeros((), device=device)
                mel, source = torch.zeros((MELS, frames), device=device), torch.zeros(0, device=device)
                phases = torch.zeros(self._vocoder.harmonics, device=device)
                self._vocoder.make([Piece(mel, 0, 0, source, zero, phases)] * rows)


class _OnDevice:
    """Tensors on their way to the host; nobody waits before their values are asked for."""

    def __init__(self, tensors: list[Tensor]) -> None:
        self._event: torch.cuda.Event | None = None
        if tensors[0].is_cuda:
            self._tensors = [torch.empty(one.shape, dtype=one.dtype, pin_memory=True) for one in tensors]
            for host, one in zip(self._tensors, tensors, strict=True):
                host.copy_(one, non_blocking=True)
            self._event = torch.cuda.Event()
            self._event.record()
        else:
            self._tensors = [one.clone() for one in tensors]

    def ready(self) -> bool:
        return self._event is None or self._event.query()

    def _wait(self) -> list[Tensor]:
        if self._event is not None:
            self._event.synchronize()
        return self._tensors

    def tokens(self) -> list[int]:
        found: list[int] = self._wait()[0].tolist()
        return found

    def pieces(self) -> list[Pcm]:
        return [one.numpy() for one in self._wait()]
