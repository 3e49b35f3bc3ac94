"""S3Gen's first half for several requests at once: speech tokens in, mel frames out. Knows nothing of requests.

Upstream's own layers, walked here with an attention mask of each row's own. A row is the voice's prompt, then what it
says, then padding. Every token belongs to a part, and attends to its own part and to those before; the voice's prompt
is part 0. Where the parts are the hops in which the audio is streamed, a frame never changes once it is made: all
convolutions look back only, and the encoder's look ahead of LOOKAHEAD tokens is what a hop waits for. With one part
in all it is upstream's own, bidirectional, whole answer.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from gpu_server.engines.chatterbox.graphs import Graphs

LOOKAHEAD = 3  # tokens
FRAMES = 2  # of mel, a token
MELS = 80
NEVER = 1 << 20  # the part of what pads a row


class _Given(NamedTuple):
    """What every step of the diffusion is given: who sees whom, text and voice. Guidance takes two rows a request."""

    mask: Tensor  # [rows, 1, frames], 0 where padding
    bias: Tensor  # [rows, 1, frames, frames], of all heads
    mu: Tensor  # [rows, 80, frames]
    speaker: Tensor  # [rows, 80]
    conditions: Tensor  # [rows, 80, frames]


class Flow:
    """Token-to-mel of one model. Not thread-safe: one thread owns it."""

    def __init__(self, s3gen: Any, graphs: Graphs) -> None:
        """s3gen: upstream's, on its device; the flow in its type."""
        self._flow = s3gen.flow
        self._meanflow: bool = s3gen.meanflow
        self._graphs = graphs
        weight = self._flow.encoder_proj.weight
        self.device, self.dtype = weight.device, weight.dtype
        steps = 2 if self._meanflow else 10  # upstream's
        times = torch.linspace(0, 1, steps + 1)
        if not self._meanflow:
            times = 1 - torch.cos(times * 0.5 * torch.pi)
        self._times = times.to(self.device)
        self._guidance = float(self._flow.decoder.inference_cfg_rate)
        estimator = self._flow.decoder.estimator
        for _, blocks, *_ in (*estimator.down_blocks, *estimator.mid_blocks, *estimator.up_blocks):
            for block in blocks:
                block.attn1.set_processor(_attention)

    def speaker(self, embedding: Tensor) -> Tensor:
        """Upstream's x-vector [1, 192] as the layers want it, [80]."""
        normed = functional.normalize(torch.atleast_2d(embedding).to(self.device, self.dtype), dim=1)
        projected: Tensor = self._flow.spk_embed_affine_layer(normed)[0]
        return projected

    def mel(self, tokens: Tensor, parts: Tensor, prompt: Tensor, speaker: Tensor, noise: Tensor) -> Tensor:
        """Mel frames of all rows, float32 [rows, 80, 2 x length], the prompt's own frames included.

        tokens: int64 [rows, length]; parts: int64 [rows, length], NEVER where a row is padding; prompt: the voice's
        frames and zeros after them, [rows, 80, 2 x length]; speaker: [rows, 80]; noise: [rows, 80, 2 x length].
        """
        key = ("mel", *tokens.shape)
        return self._graphs.run(key, self._mel, (tokens, parts, prompt, speaker, noise))

    def _mel(self, tokens: Tensor, parts: Tensor, prompt: Tensor, speaker: Tensor, noise: Tensor) -> Tensor:
        real = parts < NEVER
        mu = self._encode(tokens, parts, real).transpose(1, 2).contiguous()
        parts, real = parts.repeat_interleave(FRAMES, 1), real.repeat_interleave(FRAMES, 1)
        # Padding attends to all that is real, so that no row of scores is empty; nothing attends to it.
        sees = (parts[:, None, :] <= parts[:, :, None]) & real[:, None, :]
        bias = ((~sees).to(self.dtype) * -1.0e10)[:, None]  # as upstream's mask_to_bias
        mask = real[:, None].to(self.dtype)
        given = _Given(mask, bias, mu, speaker, prompt.to(self.dtype))
        if not self._meanflow:  # the second half is without text and voice
            nothing = (torch.zeros_like(one) for one in given[2:])
            given = _Given(*map(torch.cat, zip(given, (mask, bias, *nothing), strict=True)))
        x = noise.float()
        for begin, end in zip(self._times[:-1], self._times[1:], strict=True):
            x = x + (end - begin) * self._slope(x.to(self.dtype), given, begin, end)
        return x

    def _slope(self, x: Tensor, given: _Given, begin: Tensor, end: Tensor) -> Tensor:
        rows = x.shape[0]
        if self._meanflow:
            return self._estimate(x, given, begin.expand(rows), end.expand(rows)).float()
        both = self._estimate(torch.cat((x, x)), given, begin.expand(2 * rows), None).float()
        with_text, without = both.chunk(2)
        return (1.0 + self._guidance) * with_text - self._guidance * without

    def _encode(self, tokens: Tensor, parts: Tensor, real: Tensor) -> Tensor:
        """As UpsampleConformerEncoder.forward, and encoder_proj: [rows, 2 x length, 80]."""
        flow, encoder = self._flow, self._flow.encoder
        present = real[:, :, None].to(self.dtype)
        x = flow.input_embedding(tokens) * present
        x, places, _ = encoder.embed(x, real[:, None])
        x = encoder.pre_lookahead_layer(x * present)  # what pads a row is as if it were not there
        sees = (parts[:, None, :] <= parts[:, :, None]) & real[:, None, :]
        for layer in encoder.encoders:
            x, *_ = layer(x, sees, places.to(self.dtype), real[:, None])
        x, _ = encoder.up_layer(x.transpose(1, 2).contiguous(), 0)  # the 0 is for lengths, which nobody reads
        x, places, _ = encoder.up_embed(x.transpose(1, 2).contiguous(), real[:, None])
        sees = sees.repeat_interleave(FRAMES, 1).repeat_interleave(FRAMES, 2)
        for layer in encoder.up_encoders:
            x, *_ = layer(x, sees, places.to(self.dtype), real[:, None])
        projected: Tensor = flow.encoder_proj(encoder.after_norm(x))
        return projected

    def _estimate(self, x: Tensor, given: _Given, begin: Tensor, end: Tensor | None) -> Tensor:
        """As ConditionalDecoder.forward, with the mask given: [rows, 80, frames]."""
        estimator = self._flow.decoder.estimator
        mask, bias = given.mask, given.bias
        time = estimator.time_mlp(estimator.time_embeddings(begin).to(self.dtype))
        if end is not None:
            until = estimator.time_mlp(estimator.time_embeddings(end).to(self.dtype))
            time = estimator.time_embed_mixer(torch.cat((time, until), 1))
        speakers = given.speaker[:, :, None].expand(-1, -1, x.shape[-1])
        x = torch.cat((x, given.mu, speakers, given.conditions), 1)
        hidden = []
        for resnet, blocks, down in estimator.down_blocks:
            x = _attend(resnet(x, mask, time), blocks, bias, time)
            hidden.append(x)
            x = down(x * mask)
        for resnet, blocks in estimator.mid_blocks:
            x = _attend(resnet(x, mask, time), blocks, bias, time)
        for resnet, blocks, up in estimator.up_blocks:
            x = _attend(resnet(torch.cat((x, hidden.pop()), 1), mask, time), blocks, bias, time)
            x = up(x * mask)
        x = estimator.final_block(x, mask)
        projected: Tensor = estimator.final_proj(x * mask) * mask
        return projected


def _attend(x: Tensor, blocks: Any, bias: Tensor, time: Tensor) -> Tensor:
    x = x.transpose(1, 2).contiguous()
    for block in blocks:
        x = block(hidden_states=x, attention_mask=bias, timestep=time)
    return x.transpose(1, 2).contiguous()


def _attention(attn: Any, hidden_states: Tensor, attention_mask: Tensor, **_: Any) -> Tensor:
    """As diffusers' AttnProcessor2_0, but for the mask: one for all heads, where that one makes each a copy."""
    q, k, v = (
        project(hidden_states).unflatten(-1, (attn.heads, -1)).transpose(1, 2)
        for project in (attn.to_q, attn.to_k, attn.to_v)
    )
    found = functional.scaled_dot_product_attention(q, k, v, attn_mask=attention_mask)
    projected: Tensor = attn.to_out[0](found.transpose(1, 2).flatten(2))
    return projected
