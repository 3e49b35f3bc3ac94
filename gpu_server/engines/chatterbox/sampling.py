"""Draw the next speech token of every slot at once. Knows nothing of the model that made the logits.

Parameters are tensors on the device, one value a slot: a captured CUDA graph would freeze numbers of Python. What is
drawn of one slot depends on its own logits and its own uniform number alone, so neighbours change nothing. The steps
and their order are upstream's (T3.inference, T3.inference_turbo), which takes them from transformers.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from gpu_server.engines.chatterbox.build import Kind

CANDIDATES = 1024


@dataclass(frozen=True, slots=True)
class Sampling:
    """How tokens of one request are drawn. The defaults are upstream's for Turbo. temperature 0 takes the likeliest."""

    temperature: float = 0.8
    top_k: int = 1000
    top_p: float = 0.95
    min_p: float = 0.0
    repetition_penalty: float = 1.2
    cfg_weight: float = 0.0


DEFAULTS: dict[Kind, Sampling] = {
    "turbo": Sampling(),
    "original": Sampling(top_k=0, top_p=1.0, min_p=0.05, cfg_weight=0.5),
}


class Parameters:
    """The sampling parameters of all slots, and which tokens each has drawn. Shapes [slots] and [slots, vocabulary]."""

    def __init__(self, kind: Kind, slots: int, vocabulary: int, device: torch.device) -> None:
        """Turbo looks at its likeliest CANDIDATES tokens alone, as `top_k` says; the original at all."""
        self.kind = kind
        self.candidates = min(CANDIDATES, vocabulary)

        def column(value: float) -> Tensor:
            return torch.full((slots,), value, device=device)

        self.temperature, self.top_p, self.min_p = column(1.0), column(1.0), column(0.0)
        self.penalty, self.cfg_weight = column(1.0), column(0.0)
        self.top_k = torch.full((slots,), self.candidates, device=device)
        self.seen = torch.zeros((slots, vocabulary), dtype=torch.bool, device=device)

    def set(self, slots: Tensor, requests: list[Sampling], first_seen: int) -> None:
        """Take over the slots (indices on the device) for these requests; `first_seen` counts as drawn already.

        Raises ValueError for what this kind cannot do.
        """
        for request in requests:
            if self.kind == "turbo" and not 1 <= request.top_k <= self.candidates:
                raise ValueError(f"top_k is {request.top_k}; Turbo's is from 1 to {self.candidates}")
            if self.kind == "original" and (request.top_k or request.top_p < 1):
                raise ValueError("the original has neither top_k (0) nor top_p (1.0); it has min_p")
        device = self.temperature.device

        def column(values: list[float]) -> Tensor:
            return torch.tensor(values, dtype=torch.float32).to(device)

        self.temperature[slots] = column([request.temperature for request in requests])
        self.top_p[slots] = column([request.top_p for request in requests])
        self.min_p[slots] = column([request.min_p for request in requests])
        self.penalty[slots] = column([request.repetition_penalty for request in requests])
        self.cfg_weight[slots] = column([request.cfg_weight for request in requests])
        self.top_k[slots] = torch.tensor([max(1, request.top_k) for request in requests]).to(device)
        self.seen[slots] = False
        self.seen[slots, first_seen] = True


def draw(logits: Tensor, parameters: Parameters, rows: Tensor, uniform: Tensor) -> Tensor:
    """Next tokens, int64 [rows].

    logits: float32 [rows, vocabulary]; rows: the slot of each, [rows]; uniform: a number in [0, 1) each, [rows].
    """
    temperature = parameters.temperature[rows, None]
    greedy = temperature <= 0
    temperature = torch.where(greedy, 1.0, temperature)
    seen, penalty = parameters.seen[rows], parameters.penalty[rows, None]
    if parameters.kind == "original":
        kept = _likely(_penalized(logits, seen, penalty) / temperature, parameters.min_p[rows, None])
        return _pick(kept, uniform, greedy[:, 0])
    likeliest, tokens = (logits / temperature).topk(parameters.candidates, -1)
    kept = _top(likeliest, parameters.top_k[rows, None], parameters.top_p[rows, None])
    kept = _penalized(kept, seen.gather(-1, tokens), penalty)
    return tokens.gather(-1, _pick(kept, uniform, greedy[:, 0])[:, None])[:, 0]


def _pick(logits: Tensor, uniform: Tensor, greedy: Tensor) -> Tensor:
    cumulated = logits.softmax(-1).cumsum(-1)
    drawn = (cumulated <= uniform[:, None] * cumulated[:, -1:]).sum(-1).clamp(max=logits.shape[1] - 1)
    return torch.where(greedy, logits.max(-1).indices, drawn)


def _penalized(logits: Tensor, seen: Tensor, penalty: Tensor) -> Tensor:
    return torch.where(seen, torch.where(logits < 0, logits * penalty, logits / penalty), logits)


def _likely(logits: Tensor, min_p: Tensor) -> Tensor:
    chances = logits.softmax(-1)
    return logits.masked_fill(chances < min_p * chances.amax(-1, keepdim=True), float("-inf"))


def _top(ordered: Tensor, top_k: Tensor, top_p: Tensor) -> Tensor:
    """Of logits in falling order the first `top_k`, and of these as many as together have a chance of `top_p`."""
    place = torch.arange(ordered.shape[1], device=ordered.device)
    within = ordered.masked_fill(place >= top_k, float("-inf"))
    rarer = within.softmax(-1).flip(-1).cumsum(-1).flip(-1)  # the chance of it and of all that are less likely
    return within.masked_fill((rarer <= 1 - top_p) & (place > 0), float("-inf"))
