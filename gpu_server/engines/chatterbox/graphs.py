"""Run a function as it is, or as a CUDA graph that was captured once for its shapes. Knows nothing of models.

On a GPU the hundreds of small kernels of one step cost more to launch than to run; a graph launches them as one.
"""

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

T = TypeVar("T", bound=Tensor | tuple[Tensor, ...])


@dataclass(slots=True)
class _Captured:
    graph: "torch.cuda.CUDAGraph"
    inputs: tuple[Tensor, ...]
    output: Tensor | tuple[Tensor, ...]


class Graphs:
    """The graphs of one thread and one stream, by key. `enabled` False runs everything eagerly.

    Captures happen in `capturing` (before the server says that it is ready): a key that was not captured then runs
    eagerly, so that no request ever waits for a capture.
    """

    def __init__(self, enabled: bool) -> None:
        self.enabled = enabled
        self.capturing = False
        self._captured: dict[Hashable, _Captured] = {}
        self._pool: Any = None

    def __len__(self) -> int:
        return len(self._captured)

    def run(self, key: Hashable, function: Callable[..., T], inputs: tuple[Tensor, ...]) -> T:
        """What `function(*inputs)` returns. From a graph it is overwritten by the next run of any graph of this pool
        with the same key: use it, or copy it, on the same stream before that.

        function: must not wait for the device, nor allocate by anything but its inputs' shapes and its key.
        """
        if not self.enabled:
            return function(*inputs)
        found = self._captured.get(key)
        if found is None:
            if not self.capturing:
                return function(*inputs)
            found = self._captured[key] = self._capture(function, inputs)
        for static, given in zip(found.inputs, inputs, strict=True):
            static.copy_(given, non_blocking=True)
        found.graph.replay()
        return found.output  # type: ignore[return-value]

    def drop(self) -> None:
        """Give the graphs' memory back."""
        self._captured.clear()
        self._pool = None

    def _capture(self, function: Callable[..., T], inputs: tuple[Tensor, ...]) -> _Captured:
        static = tuple(given.clone() for given in inputs)
        stream = torch.cuda.current_stream()
        side = torch.cuda.Stream()
        side.wait_stream(stream)
        with torch.cuda.stream(side):
            for _ in range(2):  # what is made lazily (cuBLAS, cuDNN, cuFFT plans) must not be made in the capture
                function(*static)
        stream.wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool):
            output = function(*static)
        self._pool = graph.pool()
        return _Captured(graph, static, output)
