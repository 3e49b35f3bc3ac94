"""The device that is measured: prepared, emptied, waited for, asked about its memory. Knows nothing of models."""

import gc
import platform
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from gpu_server.speech import EngineUnavailable

INSTALL = "pip install -e '.[chatterbox]' && pip install --no-deps -r requirements-chatterbox.txt"


class Memory(NamedTuple):
    """GPU memory that PyTorch has allocated, GB (1e9 bytes): the most since `reset_peak`, and now."""

    peak_gb: float
    current_gb: float


class Device(Protocol):
    """Where a model runs."""

    name: str  # cuda or cpu

    def clear(self) -> bool:
        """Free what nobody holds; whether memory of a GPU was emptied."""

    def synchronize(self) -> bool:
        """Wait for all that was begun; whether there was a GPU to wait for."""

    def reset_peak(self) -> None: ...

    def memory(self) -> Memory | None:
        """None where there is no GPU: main memory is not what is asked for."""

    def facts(self) -> dict[str, Any]:
        """gpu, gpu_memory_gb (1e9 bytes), cuda_version, pytorch_version; null where there is no GPU."""


class Cuda:
    """The current CUDA device. Source of each call: S2, "Benchmark Protocol"."""

    name = "cuda"

    def __init__(self, torch: Any) -> None:
        self._torch = torch

    def clear(self) -> bool:
        self._torch.cuda.empty_cache()
        gc.collect()
        return True

    def synchronize(self) -> bool:
        self._torch.cuda.synchronize()
        return True

    def reset_peak(self) -> None:
        self._torch.cuda.reset_peak_memory_stats()

    def memory(self) -> Memory | None:
        cuda = self._torch.cuda
        return Memory(cuda.max_memory_allocated() / 1e9, cuda.memory_allocated() / 1e9)

    def facts(self) -> dict[str, Any]:
        torch = self._torch
        properties = torch.cuda.get_device_properties(torch.cuda.current_device())
        return {
            "gpu": properties.name,
            "gpu_memory_gb": round(properties.total_memory / 1e9, 2),
            "cuda_version": torch.version.cuda,
            "pytorch_version": torch.__version__,
        }


class Cpu:
    """A machine without a GPU, or one that was asked not to use it."""

    name = "cpu"

    def __init__(self, torch: Any) -> None:
        self._torch = torch

    def clear(self) -> bool:
        gc.collect()
        return False

    def synchronize(self) -> bool:
        return False

    def reset_peak(self) -> None:
        pass

    def memory(self) -> Memory | None:
        return None

    def facts(self) -> dict[str, Any]:
        return {
            "gpu": f"none (CPU: {_cpu_model()})",
            "gpu_memory_gb": None,
            "cuda_version": None,
            "pytorch_version": self._torch.__version__,
        }


def open_device(name: str | None) -> Device:
    """The device asked for, or a GPU where there is one; made repeatable. Raises EngineUnavailable.

    Source: S2, "Environment Preparation".
    """
    if find_spec("torch") is None:
        raise EngineUnavailable(f"PyTorch is not installed; run: {INSTALL}")
    import torch

    found = torch.cuda.is_available()
    if name == "cuda" and not found:
        built = "" if torch.version.cuda else f"; this PyTorch ({torch.__version__}) is built without CUDA"
        raise EngineUnavailable(f"--device cuda: no CUDA device was found{built}; --device cpu runs without one")
    torch.backends.cudnn.deterministic = True
    torch.backends.cudnn.benchmark = False
    return Cuda(torch) if found and name != "cpu" else Cpu(torch)


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8", "replace").splitlines()
    except OSError:
        lines = []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, "") or platform.processor() or platform.machine()
