"""T3 for many requests at once: each has a slot with its own length, its own voice and its own sampling.

Knows nothing of requests' texts, of scheduling or of sound. Keys and values lie in one static tensor
[layers, rows, heads, positions, size]; the original has two rows a slot (with and without the text: classifier-free
guidance), Turbo one. A step draws one token for each of the first slots up to the highest busy one. `begin` and `step`
wait for nothing on the device: what was drawn is read with `drawn`, usually one step later.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from gpu_server.engines.chatterbox import backbone, sampling
from gpu_server.engines.chatterbox.build import Kind
from gpu_server.engines.chatterbox.graphs import Graphs
from gpu_server.engines.chatterbox.sampling import Sampling

_TEXT_BUCKETS = (16, 32, 64, 128, 256, 512, 1024, 2048)
BATCHES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
BEGINS = (1, 4, 16)
_SPAN = 256  # attended positions are rounded up to a multiple of it


@dataclass(frozen=True, slots=True)
class VoicePrefix:
    """Keys and values of a voice, which come before every text: [layers, 1, heads, length, size] each."""

    keys: Tensor
    values: Tensor

    @property
    def length(self) -> int:
        return self.keys.shape[3]


class Start(NamedTuple):
    """What a slot is to say. tokens: of the text, with what upstream puts round them, [length], on the CPU."""

    slot: int
    prefix: VoicePrefix
    tokens: Tensor
    sampling: Sampling
    seed: int


class T3Slots:
    """The batch. Not thread-safe: one thread owns it."""

    def __init__(
        self,
        kind: Kind,
        t3: Any,
        *,
        slots: int,
        positions: int,
        most_tokens: int,
        never_ends: bool,
        graphs: Graphs,
    ) -> None:
        """t3: on its device, in its type. positions: the longest row. most_tokens: the longest answer.

        never_ends: no end token, nor any that is no speech, is ever drawn: of random weights.
        """
        self.kind, self._t3, self.slots = kind, t3, slots
        self._rows_each = 2 if kind == "original" else 1
        self.device = t3.device
        self._graphs = graphs
        dtype = t3.speech_emb.weight.dtype
        layers, heads, size = backbone.layers_heads_size(t3)
        rows = (slots + 1) * self._rows_each  # the last slot takes what pads a batch
        self.positions = -(-positions // _SPAN) * _SPAN
        cache = (layers, rows, heads, self.positions, size)
        self._keys = torch.zeros(cache, dtype=dtype, device=self.device)
        self._values = torch.zeros(cache, dtype=dtype, device=self.device)
        self.end_token: int = t3.hp.stop_speech_token
        self._start_token: int = t3.hp.start_speech_token
        vocabulary = t3.speech_head.out_features
        self._parameters = sampling.Parameters(kind, slots + 1, vocabulary, self.device)
        self._token, self._position, self._step = (
            torch.zeros(slots + 1, dtype=torch.int64, device=self.device) for _ in range(3)
        )
        self._uniform = torch.zeros((slots + 1, most_tokens + 1), device=self.device)
        self._barred = torch.zeros(vocabulary, dtype=torch.bool, device=self.device)
        if never_ends:
            self._barred[self._start_token :] = True
        self._lengths = [0] * slots  # as the device has them, known without asking it
        self.most_tokens = most_tokens

    # ---- voices

    def prefix(self, cond: Any) -> VoicePrefix:
        """What a voice (upstream's T3Cond, on the device) puts before every text."""
        layers, heads, size = backbone.layers_heads_size(self._t3)
        embedded = self._t3.prepare_conditioning(cond).to(self._keys.dtype)
        length = embedded.shape[1]
        keys, values = (self._keys.new_empty((layers, 1, heads, length, size)) for _ in range(2))

        def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            keys[layer], values[layer] = k, v
            return functional.scaled_dot_product_attention(q, k, v, is_causal=True)

        backbone.walk(self._t3, embedded, torch.arange(length, device=self.device)[None], attend)
        return VoicePrefix(keys, values)

    # ---- a request

    def begin(self, starts: list[Start]) -> None:
        """Read these texts and draw the first token of each, all in one go; the slots must be free."""
        for start in starts:
            rows = slice(start.slot * self._rows_each, (start.slot + 1) * self._rows_each)
            self._keys[:, rows, :, : start.prefix.length] = start.prefix.keys
            self._values[:, rows, :, : start.prefix.length] = start.prefix.values
            generator = torch.Generator().manual_seed(start.seed)
            uniform = torch.rand(self.most_tokens + 1, generator=generator)
            self._uniform[start.slot] = uniform.to(self.device, non_blocking=True)
        slots = torch.tensor([start.slot for start in starts]).to(self.device)
        self._parameters.set(slots, [start.sampling for start in starts], self._start_token)
        self._read(starts)
        if self.kind == "turbo":  # upstream's forgets it, unless it was drawn first of all
            self._parameters.seen[slots, self._start_token] = self._token[slots] == self._start_token
        for start in starts:
            self._lengths[start.slot] = start.prefix.length + self._text_length(start) + 1

    def _text_length(self, start: Start) -> int:
        return len(start.tokens) + (2 if self.kind == "original" else 1)

    def _read(self, starts: list[Start]) -> None:
        """Prefill: padded to a bucket of lengths and of rows, so that it can be a graph."""
        count = _bucket(len(starts), BEGINS)
        length = _bucket(max(map(self._text_length, starts)), _TEXT_BUCKETS)
        tokens = torch.zeros((count, length), dtype=torch.int64)
        facts = torch.zeros((count, 3), dtype=torch.int64)  # slot, begins at, last position of the text
        facts[:, 0] = self.slots
        for number, start in enumerate(starts):
            tokens[number, : len(start.tokens)] = start.tokens
            facts[number] = torch.tensor((start.slot, start.prefix.length, self._text_length(start) - 1))
        span = self._span(max(start.prefix.length for start in starts) + length)
        self._graphs.run(
            ("begin", count, length, span),
            lambda tokens, facts: self._prefill(tokens, facts, span),
            (tokens.to(self.device), facts.to(self.device)),
        )

    def _prefill(self, tokens: Tensor, facts: Tensor, span: int) -> Tensor:
        slots, begins, last = facts.unbind(1)
        count, length = tokens.shape
        place = torch.arange(length, device=self.device)
        embedded = self._embed_text(tokens, last)
        if self._rows_each == 2:  # with the text, and without it
            rows = (slots[:, None] * 2 + torch.arange(2, device=self.device)).flatten()
            begins, last = begins.repeat_interleave(2), last.repeat_interleave(2)
        else:
            rows = slots
        # Positions beyond the text's own are written too, and written again before anything attends to them.
        positions = (begins[:, None] + place).clamp(max=self.positions - 1)
        hidden = backbone.walk(self._t3, embedded, positions, self._attend(rows, positions, span, gather=True))
        final = hidden[torch.arange(len(rows), device=self.device), last]
        self._position[slots] = (begins + last + 1).view(count, -1)[:, 0]
        self._step.index_fill_(0, slots, 0)  # a number of Python's would be copied from the host: no graph holds that
        return self._draw(final, slots)

    def _embed_text(self, tokens: Tensor, last: Tensor) -> Tensor:
        t3 = self._t3
        place = torch.arange(tokens.shape[1], device=self.device)
        text = t3.text_emb(tokens)
        if self.kind == "turbo":
            start = t3.speech_emb.weight[self._start_token]
            return torch.where((place == last[:, None])[:, :, None], start, text)
        seen = (place < t3.text_pos_emb.emb.num_embeddings).long()
        where = t3.text_pos_emb.emb(place * seen)
        pair = torch.stack((text, torch.zeros_like(text)), 1).flatten(0, 1) + where
        start = t3.speech_emb.weight[self._start_token] + t3.speech_pos_emb.emb.weight[0]
        begins = (place >= (last - 1)[:, None]).repeat_interleave(2, 0)  # upstream has the start token twice
        return torch.where(begins[:, :, None], start, pair)

    # ---- a step

    def spans(self, prefix: VoicePrefix) -> list[int]:
        """How far the rows of a voice attend, rounded up, from the shortest to the longest."""
        return list(range(self._span(prefix.length + 1), self.positions + 1, _SPAN))

    def step(self, busy: int, at_least: int = 1) -> Tensor:
        """Draw one token for each of the slots 0 … busy - 1; what the free ones among them draw means nothing.

        Returns the tokens, int64 [busy or more], on the device: not to be kept beyond the next step. at_least: attend
        so far at least.
        """
        count = min(_bucket(busy, BATCHES), self.slots)
        span = self._span(max(at_least, *(length + 1 for length in self._lengths[:count])))
        drawn = self._graphs.run(("step", count, span), lambda: self._decode(count, span), ())
        for slot in range(count):
            if self._lengths[slot]:  # somebody's
                self._lengths[slot] = min(self._lengths[slot] + 1, self.positions - 1)
        return drawn

    def free(self, slot: int) -> None:
        """The slot is nobody's: it no longer makes the others attend further than they need."""
        self._lengths[slot] = 0
        self._position[slot] = 0
        self._step[slot] = 0

    def first_drawn(self, slots: list[int]) -> Tensor:
        """The tokens that these slots drew last, int64, on the device."""
        return self._token[torch.tensor(slots).to(self.device)]

    def _decode(self, count: int, span: int) -> Tensor:
        t3 = self._t3
        slots = torch.arange(count, device=self.device)
        embedded = t3.speech_emb(self._token[:count])[:, None]
        if self.kind == "original":
            where = self._step[:count].clamp(max=t3.speech_pos_emb.emb.num_embeddings - 1)
            embedded = (embedded + t3.speech_pos_emb.emb(where)[:, None]).repeat_interleave(2, 0)
        positions = self._position[:count, None].repeat_interleave(self._rows_each, 0)
        rows = torch.arange(count * self._rows_each, device=self.device)
        hidden = backbone.walk(t3, embedded, positions, self._attend(rows, positions, span, gather=False))
        self._position[:count] = (self._position[:count] + 1).clamp(max=self.positions - 1)
        return self._draw(hidden[:, 0], slots)

    def _draw(self, hidden: Tensor, slots: Tensor) -> Tensor:
        logits = self._t3.speech_head(hidden).float()
        if self._rows_each == 2:
            with_text, without = logits.view(len(slots), 2, -1).unbind(1)
            logits = with_text + self._parameters.cfg_weight[slots, None] * (with_text - without)
        logits = logits.masked_fill(self._barred, float("-inf"))
        step = self._step[slots].clamp(max=self.most_tokens)
        uniform = self._uniform[slots, step]
        drawn = sampling.draw(logits, self._parameters, slots, uniform)
        self._token[slots] = drawn
        self._step[slots] = step + 1
        self._parameters.seen[slots, drawn] = torch.ones_like(drawn, dtype=torch.bool)
        return drawn

    def _attend(self, rows: Tensor, positions: Tensor, span: int, *, gather: bool) -> backbone.Attend:
        """Attention of each row to its own past, and to itself. gather: the rows are any, else the first ones."""
        sees = torch.arange(span, device=self.device) <= positions[:, None, :, None]
        bias = torch.zeros(sees.shape, dtype=self._keys.dtype, device=self.device).masked_fill(~sees, float("-inf"))

        def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            keys, values = self._keys[layer], self._values[layer]
            keys[rows[:, None], :, positions] = k.transpose(1, 2)
            values[rows[:, None], :, positions] = v.transpose(1, 2)
            if gather:
                keys, values = keys[rows, :, :span], values[rows, :, :span]
            else:
                keys, values = keys[: len(rows), :, :span], values[: len(rows), :, :span]
            return functional.scaled_dot_product_attention(q, keys, values, attn_mask=bias)

        return attend

    def _span(self, length: int) -> int:
        return min(-(-length // _SPAN) * _SPAN, self.positions)


def _bucket(size: int, buckets: tuple[int, ...]) -> int:
    """The smallest bucket that holds `size`; beyond the largest, `size` itself."""
    return next((bucket for bucket in buckets if size <= bucket), size)
