"""The server's own account of each request, turn of a call and full-duplex session, one JSON line each.

Knows nothing of HTTP, engines or audio. A trace file: a header line, then one row a request to a speech route, also a
refused or bad one (TraceRow), one row a turn of the voice agent (AgentTurn), of full-duplex sessions one an answer
(DuplexAnswer) and one a session when it is over (DuplexSession), and each second one a GPU (GpuSample), where there is
one. Instants end `_at`: time.monotonic() of the server's host; the header's `wall_at` and `monotonic_at` were read
together. Positions are seconds of a session's own streams, counted from their first samples, before encoding and after
decoding.
"""

import json
import os
import socket
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import IO, Any, Literal, NotRequired, TypedDict, cast

TRACE_VERSION = 1

Outcome = Literal["ok", "client_gone", "failed", "refused", "bad_request"]
TurnOutcome = Literal["ok", "interrupted", "mute", "client_gone", "failed"]


class TraceHeader(TypedDict):
    """Who wrote the file, and how its monotonic instants map to wall time."""

    cicada_trace: int
    server: str
    engine: str
    pid: int
    host: str
    wall_at: float
    monotonic_at: float
    boot_id: NotRequired[str | None]  # monotonic clocks of one boot are one; absent in traces of earlier versions


class TraceRow(TypedDict):
    """One request. An instant that was never reached is None."""

    request_id: str | None  # X-Request-ID as the client sent it
    route: str
    received_at: float  # headers parsed
    admitted_at: float | None  # out of the queue
    first_audio_at: float | None  # just before the write that carries the first audio bytes
    finished_at: float
    queue_wait_s: float | None  # admitted_at - received_at
    ttfb_s: float | None  # first_audio_at - received_at
    audio_s: float  # audio handed to the connection
    characters: int | None
    voice: str | None
    format: str | None
    outcome: Outcome
    status: int | None  # as sent; None when the client left before any
    fault: str | None  # injected faults that took effect, comma-joined
    fault_s: float | None  # seconds of delay, stall and silence they injected, as measured
    marks: NotRequired[str | None]  # what the engine says of it, comma-joined: runaway; absent in earlier versions


class AgentTurn(TypedDict):
    """One turn of the voice agent. What was never reached is None.

    A stage's seconds count from asking, so the wait for a slot is in them; the waits are also None where the stage has
    no limit, and absent in traces of earlier versions.
    """

    stream_id: str
    agent_turn: int  # in its call, from 0; the greeting is -1
    user_last_voiced_received_at: float | None  # arrival of the chunk with the caller's last voiced audio
    end_of_speech_at: float | None  # the silence after it was long enough
    transcript_at: float | None
    first_token_at: float | None
    first_sentence_at: float | None  # whole, so that it can be spoken
    tts_first_audio_at: float | None  # out of the engine
    first_audio_at: float | None  # just before the write of the first audio message
    last_audio_at: float | None
    finished_at: float  # played out, or given up
    interrupted_at: float | None
    asr_s: float | None  # end_of_speech_at to transcript_at
    llm_ttfb_s: float | None  # transcript_at to first_token_at
    llm_first_sentence_s: float | None  # transcript_at to first_sentence_at
    tts_ttfb_s: float | None  # engine asked (first_sentence_at; a greeting: at once) to tts_first_audio_at
    asr_wait_s: NotRequired[float | None]  # end_of_speech_at to its slot
    llm_wait_s: NotRequired[float | None]  # transcript_at to its slot
    tts_wait_s: NotRequired[float | None]  # engine asked to the slot of the first sentence
    tokens: int | None
    processing_s: float | None  # transcript_at to the last token
    transcript: str | None
    audio_s: float  # audio sent
    outcome: TurnOutcome
    fault: str | None  # injected faults that took effect, comma-joined
    fault_s: float | None


class DuplexSession(TypedDict):
    """One client of /api/chat, from its 101 to its end. What was never reached is None."""

    duplex_session: int  # in this process, from 0
    log_id: str  # the four letters before its lines in the log
    client: str  # HOST:PORT as seen here
    voice_prompt: str | None
    connected_at: float  # 101 sent
    lock_at: float | None  # its turn came
    handshake_at: float | None  # just before the write of 0x00
    first_piece_at: float | None  # just before the write of the first piece of text
    closed_at: float
    swallowed: int  # messages that came before the handshake
    ignored: int  # messages of unknown kinds
    chunks_in: int  # of 80 ms
    chunks_out: int
    pieces: int  # of text, sent
    lag_max_s: float | None  # the longest from reading a chunk's last bytes to just before the write of the one it gave
    outcome: str  # client_gone, undecodable, too_big, cut, close, error, failed, stopped, or bad_parameters
    error: str | None


class DuplexAnswer(TypedDict):
    """One answer of the scripted agent in a full-duplex session. What was never reached is None.

    Onset: the first sample of an amplitude of 328 (-40 dBFS) or more; offset: one past the last such. Sent positions,
    known because the samples were put there, not because they were found again.
    """

    duplex_session: int
    duplex_answer: int  # counts the user's turns, from 0
    end_of_speech_position_s: float | None  # of the input, when the silence was long enough
    onset_position_s: float | None
    onset_sent_at: float | None  # just before the write of the chunk that holds it
    onset_at: float | None  # onset_sent_at and its place in that chunk
    offset_position_s: float | None
    first_piece_at: float | None
    last_piece_at: float | None
    pieces: int
    text: str
    interrupted_position_s: float | None  # of the input, when it was certain that the user speaks
    interrupted_at: float | None
    finished_at: float  # just before the write of its last chunk, or given up
    audio_s: float  # sent
    outcome: TurnOutcome
    fault: str | None  # injected faults that took effect, comma-joined
    fault_s: float | None


class GpuSample(TypedDict):
    """One look at one GPU of the server's host. What its driver does not tell is None."""

    gpu: int  # NVML's index
    name: str
    at: float  # the driver had answered
    utilisation_ratio: float | None  # share of the driver's last period (1/6 to 1 s) in which a kernel ran
    memory_used_bytes: int | None  # by every process, and by the driver itself
    memory_total_bytes: int | None
    power_w: float | None  # of the board; on most GPUs the mean of the last second
    sm_clock_hz: int | None
    memory_clock_hz: int | None
    temperature_c: float | None


Row = TraceRow | AgentTurn | DuplexSession | DuplexAnswer | GpuSample


_OTHER_ROWS = (AgentTurn, DuplexSession, DuplexAnswer, GpuSample)


class TraceLog:
    """Appends rows to a file, each with one write, so that a killed server loses none."""

    def __init__(self, path: Path, engine: str) -> None:
        self.path = path
        self.lost = 0
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file: IO[str] = path.open("a", buffering=1, encoding="utf-8")
        header = TraceHeader(
            cicada_trace=TRACE_VERSION,
            server="gpu_server",
            engine=engine,
            pid=os.getpid(),
            host=socket.gethostname(),
            wall_at=time.time(),
            monotonic_at=time.monotonic(),
            boot_id=_boot_id(),
        )
        self._append(header)

    def write(self, row: Row) -> None:
        """Append a row. A full disk costs the row, not the service: it is counted, and said once."""
        try:
            self._append(row)
        except OSError as error:
            self.lost += 1
            if self.lost == 1:
                print(f"gpu_server: trace rows are being lost: cannot write {self.path}: {error}", file=sys.stderr)

    def close(self) -> None:
        self._file.close()

    def _append(self, record: TraceHeader | Row) -> None:
        self._file.write(json.dumps(record, ensure_ascii=False, separators=(",", ":")) + "\n")


def _boot_id() -> str | None:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:  # no Linux
        return None


def read_trace(path: Path) -> tuple[TraceHeader | None, list[TraceRow], int]:
    """Read a trace file: its latest header (None without one), its requests, and how many lines were of no kind.

    A torn last line, garbage and rows that lack a column are counted, never raised. Columns this version does
    not know are kept.
    """
    with path.open(encoding="utf-8", errors="replace") as lines:
        return parse_trace(lines)


def read_agent_turns(path: Path) -> list[AgentTurn]:
    """The turns in a trace file, in the order they ended. `read_trace` has its header and counts its bad lines."""
    with path.open(encoding="utf-8", errors="replace") as lines:
        return parse_agent_turns(lines)


def parse_agent_turns(lines: Iterable[str]) -> list[AgentTurn]:
    """`read_agent_turns` for lines at hand."""
    records = (_record(line) for line in lines if '"agent_turn"' in line)
    return [cast(AgentTurn, record) for record in records if record.keys() >= AgentTurn.__required_keys__]


def read_duplex(path: Path) -> tuple[list[DuplexSession], list[DuplexAnswer]]:
    """The full-duplex sessions in a trace file, in the order they ended, and the answers given in them."""
    with path.open(encoding="utf-8", errors="replace") as lines:
        return parse_duplex(lines)


def parse_duplex(lines: Iterable[str]) -> tuple[list[DuplexSession], list[DuplexAnswer]]:
    """`read_duplex` for lines at hand."""
    records = [_record(line) for line in lines if '"duplex_session"' in line]
    sessions = [record for record in records if record.keys() >= DuplexSession.__required_keys__]
    answers = [record for record in records if record.keys() >= DuplexAnswer.__required_keys__]
    return cast(list[DuplexSession], sessions), cast(list[DuplexAnswer], answers)


def read_gpu(path: Path) -> list[GpuSample]:
    """The samples of GPUs in a trace file, in the order they were taken. `read_trace` has its header."""
    with path.open(encoding="utf-8", errors="replace") as lines:
        return parse_gpu(lines)


def parse_gpu(lines: Iterable[str]) -> list[GpuSample]:
    """`read_gpu` for lines at hand."""
    records = (_record(line) for line in lines if '"utilisation_ratio"' in line)
    return [cast(GpuSample, record) for record in records if record.keys() >= GpuSample.__required_keys__]


def parse_trace(lines: Iterable[str]) -> tuple[TraceHeader | None, list[TraceRow], int]:
    """`read_trace` for lines at hand."""
    header: TraceHeader | None = None
    rows: list[TraceRow] = []
    bad_lines = 0
    for line in lines:
        if not line.strip():
            continue
        record = _record(line)
        if record.keys() >= TraceHeader.__required_keys__:
            header = cast(TraceHeader, record)
        elif record.keys() >= TraceRow.__required_keys__:
            rows.append(cast(TraceRow, record))
        elif not any(record.keys() >= kind.__required_keys__ for kind in _OTHER_ROWS):
            bad_lines += 1
    return header, rows, bad_lines


def _record(line: str) -> dict[str, Any]:
    try:
        record = json.loads(line)
    except ValueError:
        return {}
    return record if isinstance(record, dict) else {}
