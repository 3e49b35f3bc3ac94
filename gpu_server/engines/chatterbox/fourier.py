"""HiFT's short Fourier transform and its inverse, on real numbers alone. Knows nothing of the net around them.

As torch.stft and torch.istft with 16 points, a hop of 4, a Hann window and reflection at the ends, which is what
upstream's HiFTGenerator asks for; those cannot be had here: torch.istft waits for the device (so no CUDA graph can hold
it), and complex numbers do not go into ONNX. A matrix product does both.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

POINTS = 16
HOP = 4
BINS = POINTS // 2 + 1
LARGEST_MAGNITUDE = 1e2  # as upstream's _istft clips

_HOPS_IN_WINDOW = POINTS // HOP


class Fourier(nn.Module):
    """Both transforms; the tables move with the module and are in no state dict.

    Float32 throughout. Where products may be rounded to TF32, so are these: about three digits remain.
    """

    forward_table: Tensor
    inverse_table: Tensor
    squared_window: Tensor

    def __init__(self) -> None:
        super().__init__()
        position = torch.arange(POINTS, dtype=torch.float64)
        window = 0.5 - 0.5 * torch.cos(2 * math.pi * position / POINTS)
        angle = 2 * math.pi * position[:, None] * torch.arange(BINS, dtype=torch.float64) / POINTS
        forward = torch.cat([torch.cos(angle), -torch.sin(angle)], dim=1) * window[:, None]
        each_twice = torch.full((BINS,), 2.0, dtype=torch.float64)  # its mirror image among the negative ones too
        each_twice[0] = each_twice[-1] = 1.0
        inverse = torch.cat([each_twice * torch.cos(angle), -each_twice * torch.sin(angle)], dim=1).T / POINTS * window
        self.register_buffer("forward_table", forward.float(), persistent=False)
        self.register_buffer("inverse_table", inverse.float(), persistent=False)
        self.register_buffer("squared_window", window.square().float()[None, None], persistent=False)

    def stft(self, samples: Tensor) -> tuple[Tensor, Tensor]:
        """Real and imaginary part, each [B, 9, 1 + samples // 4], of samples [B, more than 8]."""
        steps = samples.shape[-1] // HOP
        padded = functional.pad(samples, (POINTS // 2, POINTS // 2), mode="reflect")
        hops = padded[:, : steps * HOP + POINTS].reshape(samples.shape[0], -1, HOP)
        windows = torch.cat([hops[:, first : first + steps + 1] for first in range(_HOPS_IN_WINDOW)], dim=2)
        spectrum = (windows @ self.forward_table).transpose(1, 2)
        return spectrum[:, :BINS], spectrum[:, BINS:]

    def istft(self, magnitude: Tensor, phase: Tensor) -> Tensor:
        """Samples [B, 4 * (times - 1)] of a magnitude and a phase (radians), each [B, 9, at least 2 times]."""
        magnitude = torch.clamp(magnitude, max=LARGEST_MAGNITUDE)
        spectrum = torch.cat([magnitude * torch.cos(phase), magnitude * torch.sin(phase)], dim=1)
        windows = spectrum.transpose(1, 2) @ self.inverse_table
        weights = self.squared_window.expand(1, windows.shape[1], POINTS)
        return _overlapped(windows) / _overlapped(weights)


def _overlapped(windows: Tensor) -> Tensor:
    """Windows [B, times, 16] laid over each other a hop apart, without the half window at either end."""
    total = functional.pad(windows[:, :, :HOP], (0, 0, 0, _HOPS_IN_WINDOW - 1))
    for late in range(1, _HOPS_IN_WINDOW):
        piece = windows[:, :, late * HOP : (late + 1) * HOP]
        total = total + functional.pad(piece, (0, 0, late, _HOPS_IN_WINDOW - 1 - late))
    half = POINTS // 2
    return total.reshape(windows.shape[0], -1)[:, half:-half]
