"""Hold what every request shares: engine, admission, faults, trace, metrics, GPUs. Knows nothing of any one request."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import count

from gpu_server.admission import Admission
from gpu_server.faults import Fault
from gpu_server.metrics import Metrics
from gpu_server.pace import Pace
from gpu_server.speech import Engine
from gpu_server.telemetry import Telemetry
from gpu_server.ticker import Ticker
from gpu_server.trace import AgentTurn, DuplexAnswer, DuplexSession, GpuSample, TraceLog, TraceRow


@dataclass(frozen=True, slots=True)
class Settings:
    """What the command line and the environment decided."""

    streams: int = 64
    queue: int = 256
    max_characters: int = 4096
    pace: Pace | None = None
    chunk_ms: int | None = None
    faults: tuple[Fault, ...] = ()
    fault_seed: int = 0
    token: str | None = field(default=None, repr=False)


class Service:
    """A server's state, from its start to its end."""

    def __init__(self, engine: Engine, settings: Settings, trace: TraceLog | None) -> None:
        self.engine = engine
        self.settings = settings
        self.admission = Admission(settings.streams, settings.queue)
        self.calls = 0  # of the voice agent, under way
        self.calls_most = 0  # nobody can call until Calls opens its door
        self.sessions = Admission(0, 0)  # full-duplex; nobody can begin one until Sessions opens its door
        self.duplex_mock = True
        self.metrics = Metrics(self.admission, lambda: self.calls, lambda: self.sessions)
        self.ticker = Ticker(self.metrics.observe_lateness)
        on_gpu = str(getattr(engine, "device", "")).startswith("cuda")
        self.telemetry = Telemetry(self.record_gpus, expected=on_gpu)
        self.warm = False
        self._trace = trace
        self._ordinals = count()

    def next_ordinal(self) -> int:
        return next(self._ordinals)

    async def warm_up(self) -> None:
        await self.engine.warm_up()
        self.warm = True

    def record(self, row: TraceRow) -> None:
        """Write down a finished request."""
        if self._trace is not None:
            self._trace.write(row)
        self.metrics.observe(row)

    def record_turn(self, row: AgentTurn) -> None:
        """Write down a turn of a call."""
        if self._trace is not None:
            self._trace.write(row)
        self.metrics.observe_turn(row)

    def record_duplex(self, row: DuplexSession | DuplexAnswer) -> None:
        """Write down a full-duplex session, or an answer given in one."""
        if self._trace is not None:
            self._trace.write(row)
        self.metrics.observe_duplex(row)

    def record_gpus(self, samples: Sequence[GpuSample]) -> None:
        """Write down a look at the GPUs."""
        if self._trace is not None:
            for sample in samples:
                self._trace.write(sample)
        self.metrics.observe_gpus(samples)

    def close(self) -> None:
        self.telemetry.stop()
        self.engine.close()
        if self._trace is not None:
            self._trace.close()
