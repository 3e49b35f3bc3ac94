"""What all calls of a worker share: target, codec, clips, microphones, the ear. Knows nothing of turns or of Locust."""

import logging
from array import array
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Protocol

import numpy as np
from gevent.event import AsyncResult

from workers import keepsakes
from workers.audio import clips
from workers.audio.ear import Ear
from workers.audio.gate import loud_windows
from workers.audio.hearing import Hearing
from workers.audio.track import amplitude
from workers.clients.codecs import CODECS, Codec
from workers.clients.inbox import Arrival
from workers.clients.line import CallTarget, Line, call_target
from workers.clients.microphone import Booth
from workers.clients.switchboard import Switchboard
from workers.clients.voice_agent import Pipecat
from workers.clients.websocket import CLOSE
from workers.events import Audio, Event
from workers.keepsakes import Keepsakes
from workers.repertoire import Repertoire
from workers.settings import Scenario

_log = logging.getLogger("cicada")


class Listener(Protocol):
    """One call, as the shared hearing pass sees it."""

    line: Line
    codec: Codec
    hearing: Hearing

    def note(self, event: Event, arrival: Arrival) -> None:
        """Something other than audio came."""

    def lost(self) -> None:
        """The line is gone."""

    def failed(self, error: Exception) -> None:
        """Hearing this call failed: a bug of ours."""


class Calling:
    """A worker's telephone exchange for one run."""

    def __init__(self, scenario: Scenario, host: str, token: str | None, board: Switchboard, worker: str) -> None:
        """Raises BadTarget, ClipError, ValueError."""
        self._dialect, self._send_rate = scenario.dialect_of("voice_agent"), scenario.send_rate
        self._client_ready = scenario.client_ready and self._dialect == Pipecat.name
        model = self.codec("")
        self.target: CallTarget = call_target(host, scenario.path or model.path, scenario.insecure, token)
        self.repertoire = Repertoire(clips.load(Path(scenario.audio_dir)), model, scenario.chunk_ms / 1000)
        self._furnish(scenario, board, worker, scenario.chunk_ms / 1000)

    def _furnish(self, scenario: Scenario, board: Switchboard, worker: str, chunk_s: float) -> None:
        """What calls of every kind share."""
        self.board = board
        self.threshold = amplitude(scenario.audible_dbfs)
        self._batch = Batch(self.threshold)
        self.booth = Booth(board, chunk_s, self._hear)
        self.ear = Ear()
        self.keepsakes = Keepsakes(worker, f"{scenario.seed}/{worker}")
        self.up = 0  # calls

    def codec(self, stream_id: str) -> Codec:
        if self._client_ready:
            return Pipecat(stream_id, self._send_rate, client_ready=True)
        return CODECS[self._dialect](stream_id, self._send_rate)

    def new_hearing(self, on_change: Callable[[], None]) -> Hearing:
        return Hearing(self.threshold, self.ear.ask, self.board.ticker.call_at, on_change)

    def second(self) -> dict[str, object]:
        """Columns of a `workers` row about the second that has passed."""
        late_s = np.frombuffer(self.booth.take_lateness(), np.float64)
        known: dict[str, object] = {"sends": len(late_s), "calls": self.up, "ears_lost": self.ear.lost}
        if len(late_s):
            known["send_late_p50_s"], known["send_late_p99_s"] = np.quantile(late_s, (0.5, 0.99)).tolist()
            known["send_late_max_s"] = float(late_s.max())  # the turns' own are among them
        return known

    def keepsake_files(self) -> Iterator[tuple[str, bytes]]:
        """Name and bytes of the FLAC files of what was kept. From a greenlet."""
        for one in self.keepsakes.all():
            made: AsyncResult[bytes | Exception] = AsyncResult()
            keepsakes.encode(one, self.ear.ask, made.set)
            data = made.get()
            if isinstance(data, bytes):
                yield one.name, data
            else:
                _log.warning("the audio of %s could not be kept: %s", one.name, data)

    def close(self) -> None:
        self.ear.close()

    def hear_now(self, call: Listener) -> None:
        """Hear what has come for one call, from its greenlet: before it judges that nothing has."""
        self._hear((call,))

    def _hear(self, calls: Iterable[Listener]) -> None:
        """Decode what came for these calls, and put all audio through the gate at once."""
        for call in calls:
            try:
                self._decode(call)
            except Exception as error:  # a bug of ours must not pass for this agent's silence, nor make others deaf
                call.failed(error)
        self._batch.flush()
        for call in calls:
            if call.line.gone is not None and not call.line.came:
                call.lost()

    def _decode(self, call: Listener) -> None:
        line = call.line
        line.unseal()
        came = line.came
        if not came:
            return
        try:
            cut = line.cut(call.codec)
            if cut is not None:
                self._batch.add(call, cut.pcm, cut.rate, came.instants)
            else:
                self._parse(call)
        finally:
            came.empty()  # once heard, right or wrong

    def _parse(self, call: Listener) -> None:
        batch, alike = self._batch, Alike()
        for event, arrival in events_of(call.line, call.codec):
            if type(event) is not Audio:
                alike.hand_over(batch, call)
                batch.flush()  # in the order in which they came
                call.note(event, arrival)
            else:
                alike.add(batch, call, event.pcm, event.rate, arrival)
        alike.hand_over(batch, call)


def events_of(line: Line, codec: Codec) -> Iterator[tuple[Event, Arrival]]:
    """What has come on a line, message by message; control messages are answered on the way."""
    for data, arrival in line.came.reads():
        for opcode, payload in line.parse(data):
            if opcode >= CLOSE:
                line.control(opcode, payload)
                continue
            for event in codec.decode(opcode, payload):
                yield event, arrival


class Alike:
    """Chunks of one call in a row, all of one kind: rate and bytes."""

    def __init__(self) -> None:
        self.kind = (0, 0)
        self.chunks: list[bytes] = []
        self.instants = array("d")

    def add(self, batch: "Batch", call: Listener, pcm: bytes, rate: int, arrival: Arrival) -> None:
        if self.kind != (rate, len(pcm)):
            self.hand_over(batch, call)
            self.kind = rate, len(pcm)
        self.chunks.append(pcm)
        self.instants.extend(arrival)

    def hand_over(self, batch: "Batch", call: Listener) -> None:
        if self.chunks:
            batch.add(call, b"".join(self.chunks), self.kind[0], self.instants)
            self.chunks, self.instants = [], array("d")


class Batch:
    """Blocks of chunks on their way through the gate, all of one rate and chunk length."""

    __slots__ = ("_blocks", "_kind", "_least_rms", "_threshold")

    def __init__(self, threshold: int, least_rms: float = 0.0) -> None:
        self._threshold, self._least_rms = threshold, least_rms
        self._blocks: list[tuple[Listener, bytes, array[float]]] = []
        self._kind = (0, 0)

    def add(self, call: Listener, pcm: bytes, rate: int, instants: "array[float]") -> None:
        """Chunks of one call: all their bytes, and two instants of each (see Hearing.hear)."""
        kind = rate, 2 * len(pcm) // len(instants)
        if self._kind != kind:
            self.flush()
            self._kind = kind
        self._blocks.append((call, pcm, instants))

    def flush(self) -> None:
        if not self._blocks:
            return
        blocks, self._blocks = self._blocks, []
        rate, size = self._kind
        loud = loud_windows(b"".join([pcm for _, pcm, _ in blocks]), size, rate, self._threshold, self._least_rms)
        first = 0
        for call, pcm, instants in blocks:
            last = first + len(instants) // 2
            try:
                call.hearing.hear(pcm, rate, instants, loud[first:last])
            except Exception as error:
                call.failed(error)
            first = last
