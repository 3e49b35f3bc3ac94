"""A pynvml whose GPUs say what they are told to, for tests without one. Knows nothing of who asks."""

from types import ModuleType, SimpleNamespace
from typing import Any

NOT_SUPPORTED, NO_PERMISSION, FUNCTION_NOT_FOUND, GPU_IS_LOST = 3, 4, 13, 15

Look = dict[str, Any]
CALM: Look = {
    "busy": 25, "used": 5 * 2**30, "total": 80 * 2**30, "mw": 123_456, "sm": 1_980, "mem": 2_619, "celsius": 41
}  # fmt: skip


class NVMLError(Exception):
    def __init__(self, value: int, words: str = "") -> None:
        super().__init__(words or f"code {value}")
        self.value = value


class Driver(ModuleType):
    """A pynvml that says what it is told to: `looks[gpu]` in turn, then the last again. A value may be an error."""

    NVMLError = NVMLError
    NVML_ERROR_NOT_SUPPORTED, NVML_ERROR_NO_PERMISSION = NOT_SUPPORTED, NO_PERMISSION
    NVML_ERROR_FUNCTION_NOT_FOUND = FUNCTION_NOT_FOUND
    NVML_CLOCK_SM, NVML_CLOCK_MEM, NVML_TEMPERATURE_GPU = 1, 2, 0

    def __init__(self, *looks: list[Look], init: Exception | None = None) -> None:
        super().__init__("pynvml")
        self.looks = [list(of_gpu) for of_gpu in looks]
        self.init = init
        self.shut_down = 0

    def nvmlInit(self) -> None:
        if self.init is not None:
            raise self.init

    def nvmlShutdown(self) -> None:
        self.shut_down += 1

    def nvmlDeviceGetCount(self) -> int:
        return len(self.looks)

    def nvmlDeviceGetHandleByIndex(self, gpu: int) -> int:
        return gpu

    def nvmlDeviceGetUUID(self, gpu: int) -> str:
        return f"GPU-{gpu}a-uuid"

    def nvmlDeviceGetName(self, gpu: int) -> str:
        return f"NVIDIA H{gpu}00"

    def nvmlDeviceGetUtilizationRates(self, gpu: int) -> Any:
        return SimpleNamespace(gpu=self._told(gpu, "busy"), memory=99)

    def nvmlDeviceGetMemoryInfo(self, gpu: int) -> Any:
        return SimpleNamespace(used=self._told(gpu, "used"), total=self._told(gpu, "total"), free=1)

    def nvmlDeviceGetPowerUsage(self, gpu: int) -> Any:
        return self._told(gpu, "mw")

    def nvmlDeviceGetClockInfo(self, gpu: int, clock: int) -> Any:
        return self._told(gpu, {1: "sm", 2: "mem"}[clock])

    def nvmlDeviceGetTemperature(self, gpu: int, sensor: int) -> Any:
        value = self._told(gpu, "celsius")
        if len(self.looks[gpu]) > 1:
            self.looks[gpu].pop(0)  # the last that a look asks for
        return value

    def _told(self, gpu: int, what: str) -> Any:
        value = self.looks[gpu][0][what]
        if isinstance(value, Exception):
            if len(self.looks[gpu]) > 1:
                self.looks[gpu].pop(0)
            raise value
        return value
