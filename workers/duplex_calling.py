"""What all full-duplex sessions of a worker share, beyond what calls do: servers, recordings, decoders in the ear.

Audio comes compressed. Decoding it takes 60 us a message and holds the GIL, so the ear's process does it: messages go
there with those of other sessions, samples come back and are heard with the instants at which the messages came.
"""

import itertools
import time
from array import array
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple, Protocol

import psutil

from workers import recordings
from workers.audio import opus
from workers.audio.ear import SILENCE_S
from workers.audio.hearing import Hearing
from workers.calling import Alike, Batch, Calling, Listener, events_of
from workers.clients.codecs import Codec
from workers.clients.inbox import Arrival
from workers.clients.line import CallTarget, call_target
from workers.clients.personaplex import PATH, Personaplex, query_of
from workers.clients.switchboard import Switchboard
from workers.events import Compressed, Event, Fault
from workers.recordings import Recording
from workers.repertoire import Query, Repertoire
from workers.settings import Scenario


class Script(NamedTuple):
    """A recording as it is spoken: its queries on the wire, and what the model is told to be."""

    prompt: str
    queries: list[Query]


def _prompt(one: Recording, scenario: Scenario) -> str:
    return scenario.text_prompt if scenario.text_prompt_file or one.prompt is None else one.prompt


class Session(Listener, Protocol):
    """One full-duplex session, as the shared hearing pass sees it."""

    decoded: bool
    asked_of_ear: int  # messages that went there
    answered_by_ear: int  # and that are back
    stream: int

    @property
    def up(self) -> bool:
        """Whether anybody still listens."""

    def came(self, at: float, samples: int) -> None:
        """A message with so many samples of audio came."""

    def heard(self) -> None:
        """The ear has answered."""


class DuplexCalling(Calling):
    """A worker's sessions with full-duplex models, for one run."""

    def __init__(
        self, scenario: Scenario, servers: list[str], token: str | None, board: Switchboard, worker: str
    ) -> None:
        """Raises BadTarget, RecordingError, ValueError."""
        self._duplex_dialect = scenario.dialect_of("personaplex")
        self._pages = opus.standard_pages()
        self._voice = scenario.voice_prompt
        self.hosts = [call_target(host, scenario.path or PATH, scenario.insecure, token) for host in servers]
        recorded = recordings.of_scenario(scenario)
        clips = [clip for one in recorded for clip in one.queries]
        self.repertoire = Repertoire.of_opus(clips, self.codec(""), self._pages)
        spoken = iter(self.repertoire.queries)
        scripts = [Script(_prompt(one, scenario), [next(spoken) for _ in one.queries]) for one in recorded]
        self.queries = [(script, query) for script in scripts for query in script.queries]
        self._next_host = itertools.count()
        self._streams = itertools.count()
        self._for_ear: dict[int, tuple[Session, list[bytes], array[float]]] = {}
        self._behind_s = 0.0
        self._ear_seen: tuple[int, float, float] | None = None  # pid, CPU seconds, instant
        self._furnish(scenario, board, worker, opus.CHUNK_S)
        # Such a model's silence is what its codec makes of it: a floor of noise with peaks, and no voice.
        self._batch = Batch(self.threshold, self.threshold / 2)

    def codec(self, stream_id: str) -> Codec:
        return Personaplex(self._duplex_dialect, self._pages)

    def new_hearing(self, on_change: Callable[[], None]) -> Hearing:
        """Samples come from the ear, which may be behind: half a voice is not asked about because the rest is late."""
        later = self.board.ticker.call_at
        return Hearing(self.threshold, self.ear.ask, later, on_change, unheard_s=SILENCE_S)

    def next_host(self) -> CallTarget:
        """Sessions are shared out over the servers in turn."""
        return self.hosts[next(self._next_host) % len(self.hosts)]

    def address(self, host: CallTarget, prompt: str) -> CallTarget:
        """The same server, told which voice to take and what to be."""
        return host._replace(url=host.url._replace(query=query_of(host.url.query, self._voice, prompt)))

    @property
    def voice(self) -> str:
        return self._voice

    def new_stream(self) -> int:
        """A number for a session's decoder."""
        return next(self._streams)

    def forget(self, stream: int) -> None:
        """A session is over: its decoder goes."""
        self._for_ear.pop(stream, None)
        self.ear.ask("forget_opus", [stream], lambda _: None)

    # ---- hearing

    def take(self, call: Session, early: list[tuple[Event, Arrival]]) -> None:
        """What came together with the handshake."""
        for event, arrival in early:
            self._note(call, event, arrival)
        self._ask_ear()

    def _hear(self, calls: Iterable[Listener]) -> None:
        super()._hear(calls)
        self._ask_ear()

    def _parse(self, call: Listener) -> None:
        for event, arrival in events_of(call.line, call.codec):
            self._note(call, event, arrival)  # type: ignore[arg-type]

    def _note(self, call: Session, event: Event, arrival: Arrival) -> None:
        if type(event) is not Compressed:
            call.note(event, arrival)
        elif not call.up:
            return  # its decoder is gone, and must not come back
        elif call.decoded:
            _, messages, instants = self._for_ear.setdefault(call.stream, (call, [], array("d")))
            messages.append(event.data)
            instants.extend(arrival)
        else:
            try:
                call.came(arrival.at, opus.samples_in(event.data))
            except opus.BadOpus as error:
                call.note(Fault("bad_opus", str(error)), arrival)

    def _ask_ear(self) -> None:
        if not self._for_ear:
            return
        asked, self._for_ear = list(self._for_ear.items()), {}
        for _, (call, messages, _) in asked:
            call.asked_of_ear += len(messages)
        batch = [(stream, messages) for stream, (_, messages, _) in asked]
        self.ear.ask("opus", [batch], lambda answer: self._decoded(asked, answer))

    def _decoded(self, asked: list[tuple[int, tuple[Session, list[bytes], "array[float]"]]], answer: Any) -> None:
        """Samples are back: hear them as if they had come so. In a greenlet of the ear's."""
        now = time.monotonic()
        lost = answer if isinstance(answer, Exception) else None
        for (_, (call, messages, instants)), found in zip(asked, answer if lost is None else asked, strict=True):
            call.answered_by_ear += len(messages)
            self._behind_s = max(self._behind_s, now - instants[0])
            try:
                if lost is not None:
                    call.failed(lost)
                else:
                    self._hear_samples(call, instants, *found)
            except Exception as error:  # a bug of ours must not make others deaf
                call.failed(error)
        self._batch.flush()
        for _, (call, _, _) in asked:
            call.heard()

    def _hear_samples(
        self, call: Session, instants: "array[float]", sizes: list[int], pcm: bytes, fault: str | None
    ) -> None:
        alike, begin = Alike(), 0
        for k, size in enumerate(sizes):
            arrival = Arrival(*instants[2 * k : 2 * k + 2])
            if size:
                call.came(arrival.at, size)
                alike.add(self._batch, call, pcm[begin : begin + 2 * size], opus.RATE, arrival)
                begin += 2 * size
        alike.hand_over(self._batch, call)
        if fault is not None:
            call.note(Fault("bad_opus", fault), arrival)

    # ---- its own health

    def second(self) -> dict[str, object]:
        behind_s, self._behind_s = self._behind_s, 0.0
        return super().second() | {"ear_cpu_share": self._ear_cpu_share(), "ear_behind_s": behind_s}

    def _ear_cpu_share(self) -> float | None:
        pid, seen = self.ear.pid, self._ear_seen
        if pid is None:
            return None
        try:
            times, now = psutil.Process(pid).cpu_times(), time.monotonic()
        except psutil.Error:  # it has just died
            return None
        cpu_s = times.user + times.system
        self._ear_seen = pid, cpu_s, now
        if seen is None or seen[0] != pid or now <= seen[2]:
            return None
        return (cpu_s - seen[1]) / (now - seen[2])
