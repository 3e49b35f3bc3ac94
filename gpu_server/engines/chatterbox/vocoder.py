"""HiFT, S3Gen's second half, for several requests at once and piece by piece: mel frames in, samples out.

Knows nothing of tokens or requests. A piece is made from a window of mel that ends where the mel ends: the frames
before the new ones are there so that every convolution sees what it would see in the whole; the source (the voice's
sine waves and noise) goes on where it was. What is not known yet lies after the window, so the last AHEAD frames of a
piece are held back and made again with the next one; at the end nothing is held back.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from gpu_server.engines.chatterbox.fourier import Fourier
from gpu_server.engines.chatterbox.graphs import Graphs

FRAME = 480  # samples of a mel frame
BEHIND = 16  # frames that a convolution looks back on
AHEAD = 4  # frames held back

_NOISE_FRAMES = 256  # the source's noise repeats after so many


@dataclass(frozen=True, slots=True)
class Piece:
    """A row of work, on the device.

    mel: [80, frames] of the window, which ends where the mel ends; begins: frames of the window that were made before;
    first: frames of the whole before the window; source: the window's source up to `begins`, [begins x FRAME] (more is
    cut off at the left, less is silence); cycles: of the fundamental up to there, a tensor of one float; phases: of
    the harmonics at the start, [harmonics].
    """

    mel: Tensor
    begins: int
    first: int
    source: Tensor
    cycles: Tensor
    phases: Tensor


class Vocoder:
    """Mel-to-samples of one model. Not thread-safe: one thread owns it."""

    def __init__(self, s3gen: Any, graphs: Graphs) -> None:
        self._hift = s3gen.mel2wav
        self._graphs = graphs
        self.device = self._hift.conv_pre.bias.device
        self._fourier = Fourier().to(self.device)
        self.harmonics: int = self._hift.nb_harmonics + 1
        generator = torch.Generator().manual_seed(0)
        noise = torch.randn((self.harmonics, _NOISE_FRAMES * FRAME), generator=generator)
        self._noise = noise.to(self.device)
        self._harmonic = torch.arange(1, self.harmonics + 1, device=self.device)[:, None]
        self.fade: Tensor = s3gen.trim_fade.to(self.device)  # upstream's, over the first samples of all

    def phases(self, generator: torch.Generator) -> Tensor:
        """Where the harmonics of a request start, [harmonics], as upstream draws them."""
        drawn = (torch.rand(self.harmonics, generator=generator) * 2 - 1) * torch.pi
        drawn[0] = 0
        return drawn.to(self.device)

    def make(self, pieces: list[Piece]) -> tuple[Tensor, Tensor, Tensor]:
        """Samples, source and cycles of windows that are equally long.

        Returns samples [rows, frames x FRAME] and source, of the same shape, float32; and the cycles of the fundamental
        at the end of each frame, [rows, frames].
        """
        frames = pieces[0].mel.shape[1]
        known = torch.stack([_right(piece.source, piece.begins * FRAME, frames * FRAME) for piece in pieces])
        facts = torch.tensor([(piece.begins, piece.first) for piece in pieces]).to(self.device)
        return self._graphs.run(
            ("samples", len(pieces), frames),
            self._make,
            (
                torch.stack([piece.mel for piece in pieces]).float(),
                facts,
                known,
                torch.stack([piece.cycles for piece in pieces]),
                torch.stack([piece.phases for piece in pieces]),
            ),
        )

    def _make(
        self, mel: Tensor, facts: Tensor, known: Tensor, cycles: Tensor, phases: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        rows, _, frames = mel.shape
        begins, first = facts.unbind(1)
        samples = torch.arange(frames * FRAME, device=self.device)
        fresh = samples >= begins[:, None] * FRAME
        pitch = self._hift.f0_predictor(mel).repeat_interleave(FRAME, 1)  # Hz, as upstream's f0_upsamp
        turned = cycles[:, None] + (pitch / self._hift.m_source.l_sin_gen.sampling_rate * fresh).cumsum(1)
        place = (samples + first[:, None] * FRAME) % self._noise.shape[1]
        new = self._source(pitch, turned, phases, self._noise[:, place.flatten()].view(-1, rows, len(samples)))
        source = torch.where(fresh, new, known)
        ends = turned[:, FRAME - 1 :: FRAME] % 1
        return self._decode(mel, source), source, ends

    def _source(self, pitch: Tensor, turned: Tensor, phases: Tensor, noise: Tensor) -> Tensor:
        """As SineGen and SourceModuleHnNSF, with their random numbers given: [rows, samples]."""
        module = self._hift.m_source
        sines = module.l_sin_gen
        theta = 2 * torch.pi * ((turned[:, None] * self._harmonic) % 1) + phases[:, :, None]
        voiced = (pitch > sines.voiced_threshold)[:, None].float()
        loudness = voiced * sines.noise_std + (1 - voiced) * sines.sine_amp / 3
        waves = sines.sine_amp * torch.sin(theta) * voiced + loudness * noise.transpose(0, 1)
        merged: Tensor = module.l_tanh(module.l_linear(waves.transpose(1, 2)))[:, :, 0]
        return merged

    def _decode(self, mel: Tensor, source: Tensor) -> Tensor:
        """As HiFTGenerator.decode, without complex numbers: [rows, samples]."""
        hift = self._hift
        spectrum = torch.cat(self._fourier.stft(source), 1)
        x = hift.conv_pre(mel)
        for number in range(hift.num_upsamples):
            x = hift.ups[number](functional.leaky_relu(x, hift.lrelu_slope))
            if number == hift.num_upsamples - 1:
                x = hift.reflection_pad(x)
            x = x + hift.source_resblocks[number](hift.source_downs[number](spectrum))
            blocks = hift.resblocks[number * hift.num_kernels : (number + 1) * hift.num_kernels]
            x = sum(block(x) for block in blocks) / hift.num_kernels
        x = hift.conv_post(functional.leaky_relu(x))
        bins = hift.istft_params["n_fft"] // 2 + 1
        samples = self._fourier.istft(torch.exp(x[:, :bins]), torch.sin(x[:, bins:]))
        return samples.clamp(-hift.audio_limit, hift.audio_limit)


def _right(source: Tensor, length: int, size: int) -> Tensor:
    """The last `length` values of `source` at the left of `size`, zeros after them."""
    kept = source[max(0, len(source) - length) :]
    return functional.pad(kept, (length - len(kept), size - length))
