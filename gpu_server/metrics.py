"""Count what Prometheus asks about. Knows nothing of HTTP or audio."""

from collections.abc import Callable, Sequence
from typing import cast

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from gpu_server.admission import Admission
from gpu_server.trace import AgentTurn, DuplexAnswer, DuplexSession, GpuSample, TraceRow

_TTFB_BUCKETS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1, 1.5, 2, 3, 5, 10, 30)

_LATENESS_BUCKETS_S = (0.001, 0.002, 0.003, 0.005, 0.01, 0.02, 0.04, 0.1, 0.3, 1)

# Of a GPU: the gauge, what it is, and where a sample has it.
_OF_GPU = (
    ("utilisation_ratio", "Share of the last period in which a kernel ran", "utilisation_ratio"),
    ("memory_used_bytes", "Memory in use, by every process and by the driver", "memory_used_bytes"),
    ("memory_total_bytes", "Memory there is", "memory_total_bytes"),
    ("power_watts", "Power drawn by the board", "power_w"),
    ("sm_clock_hertz", "Clock of the multiprocessors", "sm_clock_hz"),
    ("memory_clock_hertz", "Clock of the memory", "memory_clock_hz"),
    ("temperature_celsius", "Temperature of the GPU", "temperature_c"),
)


class Metrics:
    """One registry a server, so that two in a process do not collide."""

    def __init__(self, admission: Admission, calls: Callable[[], int], sessions: Callable[[], Admission]) -> None:
        self._registry = CollectorRegistry()
        self._requests = Counter(
            "gpu_server_requests", "Speech requests by how they ended", ("route", "outcome"), registry=self._registry
        )
        self._audio_s = Counter("gpu_server_audio_seconds", "Audio sent", registry=self._registry)
        self._characters = Counter("gpu_server_characters", "Characters asked for", registry=self._registry)
        self._ttfb_s = Histogram(
            "gpu_server_ttfb_seconds",
            "Request received to first audio bytes written",
            ("route",),
            buckets=_TTFB_BUCKETS_S,
            registry=self._registry,
        )
        streams = Gauge("gpu_server_active_streams", "Requests being spoken", registry=self._registry)
        streams.set_function(lambda: admission.active)
        queued = Gauge("gpu_server_queue_depth", "Requests waiting for a stream", registry=self._registry)
        queued.set_function(lambda: admission.queued)
        active_calls = Gauge("gpu_server_calls", "Calls of the voice agent under way", registry=self._registry)
        active_calls.set_function(calls)
        active_sessions = Gauge(
            "gpu_server_sessions", "Full-duplex sessions that hold the lock", registry=self._registry
        )
        active_sessions.set_function(lambda: sessions().active)
        waiting = Gauge("gpu_server_sessions_waiting", "Full-duplex sessions in line", registry=self._registry)
        waiting.set_function(lambda: sessions().queued)
        self._answers = Counter(
            "gpu_server_duplex_answers",
            "Answers in full-duplex sessions by how they ended",
            ("outcome",),
            registry=self._registry,
        )
        self._stage_busy = Gauge(
            "gpu_server_stage_busy",
            "Calls being served by a stage that has a limit",
            ("stage",),
            registry=self._registry,
        )
        self._stage_waiting = Gauge(
            "gpu_server_stage_waiting",
            "Calls in line for a stage that has a limit",
            ("stage",),
            registry=self._registry,
        )
        self._turns = Counter(
            "gpu_server_agent_turns",
            "Turns of the voice agent by how they ended",
            ("outcome",),
            registry=self._registry,
        )
        self._turn_s = Histogram(
            "gpu_server_agent_turn_seconds",
            "Arrival of the caller's last voiced audio to the first audio of the answer",
            buckets=_TTFB_BUCKETS_S,
            registry=self._registry,
        )
        self._lateness_s = Histogram(
            "gpu_server_agent_lateness_seconds",
            "How late the ticker that sends audio in real time was, the worst of each wake-up",
            buckets=_LATENESS_BUCKETS_S,
            registry=self._registry,
        )
        self._ignored = Counter(
            "gpu_server_agent_ignored",
            "Messages of callers that were not understood",
            ("kind",),
            registry=self._registry,
        )
        self._of_gpu = {
            key: Gauge(f"gpu_server_gpu_{name}", what, ("gpu",), registry=self._registry) for name, what, key in _OF_GPU
        }

    def watch_stage(self, stage: str, admission: Admission) -> None:
        """Show how many calls are in a stage of the agent, and how many wait for it."""
        self._stage_busy.labels(stage).set_function(lambda: admission.active)
        self._stage_waiting.labels(stage).set_function(lambda: admission.queued)

    def observe(self, row: TraceRow) -> None:
        self._requests.labels(row["route"], row["outcome"]).inc()
        self._audio_s.inc(row["audio_s"])
        self._characters.inc(row["characters"] or 0)
        if row["ttfb_s"] is not None:
            self._ttfb_s.labels(row["route"]).observe(row["ttfb_s"])

    def observe_turn(self, row: AgentTurn) -> None:
        self._turns.labels(row["outcome"]).inc()
        self._audio_s.inc(row["audio_s"])
        heard_at, answered_at = row["user_last_voiced_received_at"], row["first_audio_at"]
        if heard_at is not None and answered_at is not None and answered_at > heard_at:
            self._turn_s.observe(answered_at - heard_at)

    def observe_duplex(self, row: DuplexSession | DuplexAnswer) -> None:
        if "duplex_answer" in row:
            answer = cast(DuplexAnswer, row)
            self._answers.labels(answer["outcome"]).inc()
            self._audio_s.inc(answer["audio_s"])

    def observe_gpus(self, samples: Sequence[GpuSample]) -> None:
        """Show these instead of what was shown: a GPU that tells nothing has no figure, not its last one."""
        for key, gauge in self._of_gpu.items():
            gauge.clear()
            for sample in samples:
                value = cast(dict[str, float | None], sample)[key]
                if value is not None:
                    gauge.labels(str(sample["gpu"])).set(value)

    def observe_lateness(self, seconds: float) -> None:
        self._lateness_s.observe(seconds)

    def ignore(self, kind: str) -> None:
        self._ignored.labels(kind).inc()

    def exposition(self) -> bytes:
        return generate_latest(self._registry)
