"""Look at this host's NVIDIA GPUs once a second, through NVML. Knows nothing of engines, of traces or of Prometheus.

Without its library (`nvidia-ml-py`), a driver or a GPU there is nothing to look at, which is no error. Needs no torch.
"""

import asyncio
import math
import os
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

from gpu_server.trace import GpuSample

EVERY_S = 1.0
VISIBLE_NAME = "CUDA_VISIBLE_DEVICES"

_MHZ = 1_000_000
_STOP_S = 1.0  # a driver that hangs holds up nobody


class NoGpu(Exception):
    """There is nothing to look at, or the driver does not answer; one line that says why."""


class Gpus:
    """The GPUs that this process may use, by NVML's indices.

    visible: as in CUDA_VISIBLE_DEVICES, indices or UUIDs (or their beginnings); with anything else in it, such as a
    slice of a GPU (MIG), every GPU of the host is looked at. Raises NoGpu where there is none.
    """

    def __init__(self, visible: str | None = None) -> None:
        try:
            import pynvml
        except ImportError as error:
            raise NoGpu(f"{error}; run: pip install nvidia-ml-py") from None
        self._nvml: Any = pynvml
        self._not_told = (
            pynvml.NVML_ERROR_NOT_SUPPORTED,
            pynvml.NVML_ERROR_FUNCTION_NOT_FOUND,
            pynvml.NVML_ERROR_NO_PERMISSION,
        )
        try:
            pynvml.nvmlInit()
        except pynvml.NVMLError as error:
            raise NoGpu(f"NVML: {error}") from None
        try:
            handles = [pynvml.nvmlDeviceGetHandleByIndex(gpu) for gpu in range(pynvml.nvmlDeviceGetCount())]
            uuids = [str(pynvml.nvmlDeviceGetUUID(handle)) for handle in handles]
            names = [str(pynvml.nvmlDeviceGetName(handle)) for handle in handles]
        except pynvml.NVMLError as error:
            self.close()
            raise NoGpu(f"NVML: {error}") from None
        self._gpus = [(gpu, names[gpu], handles[gpu]) for gpu in chosen(visible, uuids)]
        if not self._gpus:
            self.close()
            hidden = f"{VISIBLE_NAME}={visible} hides all {len(handles)}" if handles else "NVML counts none"
            raise NoGpu(hidden)

    def look(self) -> list[GpuSample]:
        """A sample of each GPU. Raises NoGpu where the driver fails."""
        try:
            return [self._sample(gpu, name, handle) for gpu, name, handle in self._gpus]
        except self._nvml.NVMLError as error:
            raise NoGpu(f"NVML: {error}") from None

    def close(self) -> None:
        try:
            self._nvml.nvmlShutdown()
        except self._nvml.NVMLError:  # it has failed before, and was said to
            pass

    def _sample(self, gpu: int, name: str, handle: Any) -> GpuSample:
        nvml = self._nvml
        busy = self._told(nvml.nvmlDeviceGetUtilizationRates, handle)
        memory = self._told(nvml.nvmlDeviceGetMemoryInfo, handle)
        power_mw = self._told(nvml.nvmlDeviceGetPowerUsage, handle)
        sm_mhz = self._told(nvml.nvmlDeviceGetClockInfo, handle, nvml.NVML_CLOCK_SM)
        memory_mhz = self._told(nvml.nvmlDeviceGetClockInfo, handle, nvml.NVML_CLOCK_MEM)
        temperature_c = self._told(nvml.nvmlDeviceGetTemperature, handle, nvml.NVML_TEMPERATURE_GPU)
        return GpuSample(
            gpu=gpu,
            name=name,
            at=time.monotonic(),
            utilisation_ratio=None if busy is None else busy.gpu / 100,
            memory_used_bytes=None if memory is None else int(memory.used),
            memory_total_bytes=None if memory is None else int(memory.total),
            power_w=None if power_mw is None else power_mw / 1000,
            sm_clock_hz=None if sm_mhz is None else sm_mhz * _MHZ,
            memory_clock_hz=None if memory_mhz is None else memory_mhz * _MHZ,
            temperature_c=None if temperature_c is None else float(temperature_c),
        )

    def _told(self, ask: Callable[..., Any], *of: Any) -> Any:
        """What NVML answers; None where this GPU or this driver does not tell that."""
        try:
            return ask(*of)
        except self._nvml.NVMLError as error:
            if error.value in self._not_told:
                return None
            raise


def chosen(visible: str | None, uuids: list[str]) -> list[int]:
    """Which of the GPUs with these UUIDs are meant by a CUDA_VISIBLE_DEVICES; all where it is not understood.

    As CUDA reads it (CUDA C++ Programming Guide, "CUDA Environment Variables"): what follows an index that no GPU has
    does not count.
    """
    if visible is None:
        return list(range(len(uuids)))
    found: list[int] = []
    for entry in (part.strip() for part in visible.split(",")):
        if entry.startswith("GPU-"):
            meant = [gpu for gpu, uuid in enumerate(uuids) if uuid.startswith(entry)]
        elif entry.removeprefix("-").isdecimal():
            meant = [int(entry)] if 0 <= int(entry) < len(uuids) else []
        elif entry:
            return list(range(len(uuids)))
        else:
            meant = []
        if not meant:
            break
        found += [gpu for gpu in meant if gpu not in found]
    return sorted(found)


class Telemetry:
    """A look every EVERY_S, from `start` to `stop`, in a thread of its own: a driver may take its time.

    `record` gets each look's samples, on the event loop; none where the driver failed. expected: the engine uses a GPU,
    so that it is worth a line where none is found.
    """

    def __init__(self, record: Callable[[list[GpuSample]], None], *, expected: bool) -> None:
        self._record = record
        self._expected = expected
        self._stopped = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Begin, on the running loop."""
        loop = asyncio.get_running_loop()
        self._thread = threading.Thread(target=self._watch, args=(loop,), name="telemetry", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._stopped.set()
        if self._thread is not None:
            self._thread.join(_STOP_S)

    def _watch(self, loop: asyncio.AbstractEventLoop) -> None:
        try:
            gpus = Gpus(os.environ.get(VISIBLE_NAME))
        except NoGpu as error:
            if self._expected:
                _say(f"no NVIDIA GPU found: no GPU telemetry ({error})")
            return
        due_at, failed = time.monotonic(), False
        while not self._stopped.wait(max(0.0, due_at - time.monotonic())):
            samples = []
            try:
                samples = gpus.look()
            except NoGpu as error:
                if not failed:
                    _say(f"the GPU's driver fails, and there is no GPU telemetry until it is back ({error})")
                failed = True
            try:
                loop.call_soon_threadsafe(self._record, samples)
            except RuntimeError:  # the loop is closed
                break
            # Looks that were missed are left out.
            due_at += EVERY_S * max(1, math.ceil((time.monotonic() - due_at) / EVERY_S))
        gpus.close()


def _say(line: str) -> None:
    print(f"gpu_server: {line}", file=sys.stderr, flush=True)
