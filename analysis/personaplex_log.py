"""What a full-duplex server's log says of its connections: NVIDIA's PersonaPlex and kyutai's moshi. Knows no runs.

Lines have no time of their own: they have one where something put it before them (`docker compose logs -t`,
`docker logs -t`, journald's short-iso, `ts` with an ISO format). PersonaPlex names the client's address and a random id
a connection; an id may come again. kyutai's server names neither: as its lock serves in order of acceptance, its lines
belong to the longest-accepted connection that is not done, and so do tracebacks, which have no id in either server.
Where lines show that a server serves several at once, what names no connection stays with none.

Prompts may hold anything: of a text prompt its length and its first 40 printable characters are kept.
"""

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from analysis.log_lines import LONGEST_LINE_BYTES

PHASES = (
    *("incoming", "accepted", "prompts", "prompts_done", "handshake_sent"),
    *("connection_closed", "session_closed", "done"),
)
FRAME_S = 0.080  # what a step must not last longer than, or the server falls behind: 1,920 samples at 24 kHz
NOT_TOLD = "an exception that the log does not tell (its traceback is cut)"
PROMPT_SHOWN = 40  # characters
PROMPT_LINES = 1000  # a text prompt of more is taken to be a log with a lost line end
REASON_SHOWN = 160

_ANSI = re.compile(r"\x1b?\[[0-9;]{0,12}m")
_PROCESS = re.compile(r"([\w.-]{1,100})\s{1,100}\| ")
_TIME = re.compile(
    r"(\d{4})-(\d\d)-(\d\d)[ T](\d\d):(\d\d):(\d\d)(?:[.,](\d{1,9}))?(?:(Z)|([+-])(\d\d):?(\d\d))?(?=\s|$)\s?",
    re.ASCII,
)
_UNIT = re.compile(r"\S{1,100} \S{1,100}\[\d{1,9}\]: ")  # journald: `host python[123]: `
_LOGGER = re.compile(r"- [\w.]{1,100} - [A-Z]{1,10} - ")  # Python's logger: `- aiohttp.server - ERROR - `
_COLOUR_ENDS = "[0m"
_COLOURED_ID = re.compile(r"\[[0-9;]{1,12}m\[[A-Za-z0-9]{4}\] ")
_OWN = re.compile(r"\[([A-Za-z0-9]{4})\] (.*)")
_KYUTAI = re.compile(r"\[(?:Info|Warn|Err )\] (.*)")
_PEER = re.compile(r"Incoming connection from (\S{1,64}):(\d{1,5})\s*$", re.ASCII)
_STEP = re.compile(r"frame handled in (\d{1,9}(?:\.\d{1,9})?)ms\s*$", re.ASCII)
_EXCEPTION = re.compile(r"[A-Za-z_][\w.]{0,200}(?:: .*)?$")
_LEVELS = {"Info", "Warn"}
_STARTS = ("======== Running on ", "warming up the model")
_ERROR = "Error handling request"
_CHAINED = ("During handling of the above exception", "The above exception was the direct cause")
_PHASE_OF = {
    "accepted connection": "accepted",
    "done with system prompts": "prompts_done",
    "sent handshake bytes": "handshake_sent",
    "connection closed": "connection_closed",
    "session closed": "session_closed",
    "done with connection": "done",
}


@dataclass(frozen=True, slots=True)
class Prompt:
    """A text prompt without what may be secret in it. characters: its length as logged; begins: the first printable."""

    characters: int
    begins: str


@dataclass(frozen=True, slots=True)
class Connection:
    """A client's connection, as its server tells of it.

    order: its place in the log. id: None for kyutai's. process: which one wrote it (docker compose's prefix, or "").
    phases: those that were told, with their time (unix seconds by the log's clock, read as UTC where no zone is told),
    None where the line has none. loaded: lines of prompts loaded. steps_s: (n,) the server's own time a frame.
    lock_free_at: when the connection before it let go of the lock that it waited for. Durations are None where a time
    is missing or goes backwards.

    outcome: served (done after a handshake); swallowed (done without: the client was gone before); refused (an
    exception before the handshake); failed (one after it); unfinished (the log has not the end of it, or not enough
    of its beginning). reason: the last line of the exception.
    """

    order: int
    id: str | None
    process: str
    peer: str | None
    port: int | None
    phases: Mapping[str, float | None]
    text_prompt: Prompt | None
    voice_prompt: str | None
    loaded: int
    lock_free_at: float | None
    outcome: str
    reason: str | None
    ended_at: float | None
    steps_s: NDArray[np.float64] = field(compare=False)

    @property
    def instance(self) -> str:
        """What a table calls this connection: 2P8H#0; moshi#0 where it has no id."""
        return f"{self.id or 'moshi'}#{self.order}"

    @property
    def came_at(self) -> float | None:
        """When it is first told of."""
        return next((at for phase in PHASES if (at := self.phases.get(phase)) is not None), None)

    @property
    def setup_s(self) -> float | None:
        """Come to handshake sent: the wait for the lock and the prompts are in it."""
        return self._between("incoming", "handshake_sent")

    @property
    def prompt_s(self) -> float | None:
        """Accepted to prompts done, as the server tells it: the wait for the lock is in it."""
        return self._between("accepted", "prompts_done")

    @property
    def lock_wait_s(self) -> float | None:
        """Accepted to the end of the connection that was served before; 0 for one that found the lock free."""
        return _elapsed(self.phases.get("accepted"), self.lock_free_at)

    @property
    def session_s(self) -> float | None:
        """Handshake sent to the connection's close."""
        closed = next((name for name in PHASES[5:] if self.phases.get(name) is not None), None)
        return self._between("handshake_sent", closed) if closed else None

    @property
    def durations_s(self) -> dict[str, float]:
        """Those that are known, by name: setup, lock_wait, prompt, session."""
        every = {
            "setup": self.setup_s,
            "lock_wait": self.lock_wait_s,
            "prompt": self.prompt_s,
            "session": self.session_s,
        }
        return {name: value for name, value in every.items() if value is not None}

    def _between(self, first: str, last: str) -> float | None:
        return _elapsed(self.phases.get(first), self.phases.get(last))


@dataclass(frozen=True, slots=True)
class ServerLog:
    """A log that was read. stray: exceptions that belong to no connection known, by their last line. bad_lines: torn,
    overlong, with NULs, or no UTF-8."""

    path: Path
    connections: tuple[Connection, ...]
    lines: int
    bad_lines: int
    stray: Mapping[str, int]


def read_log(path: Path) -> ServerLog:
    """Read a log of any size, once. One with no connection in it is no such log. Raises OSError."""
    reading = _Reading()
    for line in reading.lines_of(path):
        reading.take(line)
    return reading.result(path)


def _elapsed(first: float | None, last: float | None) -> float | None:
    return last - first if first is not None and last is not None and last >= first else None


@dataclass(slots=True, eq=False)
class _Open:
    """A connection whose end is not read yet."""

    order: int
    id: str | None
    process: str
    peer: str | None = None
    port: int | None = None
    phases: dict[str, float | None] = field(default_factory=dict)
    text_prompt: Prompt | None = None
    voice_prompt: str | None = None
    loaded: int = 0
    lock_free_at: float | None = None
    reason: str | None = None
    ended: bool = False
    ended_at: float | None = None
    steps_ms: list[float] = field(default_factory=list)

    def closed(self) -> Connection:
        return Connection(
            order=self.order,
            id=self.id,
            process=self.process,
            peer=self.peer,
            port=self.port,
            phases={phase: self.phases[phase] for phase in PHASES if phase in self.phases},
            text_prompt=self.text_prompt,
            voice_prompt=self.voice_prompt,
            loaded=self.loaded,
            lock_free_at=self.lock_free_at,
            outcome=self._outcome(),
            reason=self.reason,
            ended_at=self.ended_at,
            steps_s=np.array(self.steps_ms, dtype=np.float64) / 1000,
        )

    def _outcome(self) -> str:
        told = self.phases
        shaken = "handshake_sent" in told or bool(self.steps_ms)
        # Both closes are told after a handshake only, which a log that begins later does not have.
        shaken = shaken or "connection_closed" in told or "session_closed" in told
        if self.reason is not None:
            return "failed" if shaken else "refused"
        if "done" not in told:
            return "unfinished"
        if shaken or (self.id is None and "accepted" in told):
            return "served"
        return "swallowed" if "accepted" in told or "prompts_done" in told else "unfinished"


@dataclass(slots=True)
class _Error:
    """A traceback that is being read. whose: None if it cannot be told."""

    whose: _Open | None
    in_traceback: bool = False
    reason: str | None = None


@dataclass(slots=True)
class _Process:
    """One server process. queue: accepted and not ended, the holder of the lock first. arriving: came and is not
    accepted yet; nothing else of the server runs in between. overlapping: its lines show that it has no such lock."""

    name: str
    ids: dict[str, _Open] = field(default_factory=dict)
    queue: list[_Open] = field(default_factory=list)
    arriving: _Open | None = None
    error: _Error | None = None
    prompted: _Open | None = None  # its text prompt goes on in the next line
    prompt_lines: int = 0
    overlapping: bool = False


@dataclass(slots=True)
class _Reading:
    """One pass over a log, a line at a time."""

    lines: int = 0
    bad_lines: int = 0
    stray: Counter[str] = field(default_factory=Counter)
    opened: list[_Open] = field(default_factory=list)
    processes: dict[str, _Process] = field(default_factory=dict)

    def lines_of(self, path: Path) -> Iterator[str]:
        """Whole lines, without their ends; what is none is counted and left out."""
        with path.open("rb") as file:
            overlong = False
            while piece := file.readline(LONGEST_LINE_BYTES):
                whole = piece.endswith(b"\n")
                if overlong or not whole:
                    self.bad_lines += not overlong
                    overlong = not whole
                    continue
                self.lines += 1
                text = piece.decode("utf-8", "replace")
                self.bad_lines += "\0" in text or "\ufffd" in text
                yield text.rstrip("\r\n")

    def take(self, line: str) -> None:
        """Read a line."""
        text = _ANSI.sub("", line) if "[" in line else line
        name = ""
        if found := _PROCESS.match(text):
            name, text = found.group(1), text[found.end() :]
        stamp = _TIME.match(text)
        if stamp:
            text = text[stamp.end() :]
            if found := _UNIT.match(text) or _LOGGER.match(text):
                text = text[found.end() :]
        process = self.processes.get(name)
        if process is None:
            process = self.processes[name] = _Process(name)
        own = _OWN.match(text)
        if own and own.group(1) in _LEVELS:
            own = None
        if process.prompted is not None and _goes_on(process, line, text):
            return
        if own:
            self._end_error(process)
            self._of_id(process, own, stamp, line)
        elif kyutai := _KYUTAI.match(text):
            self._end_error(process)
            self._of_kyutai(process, kyutai.group(1), stamp)
        elif process.error is None or not self._in_error(process, process.error, text):
            self._nameless(process, text, stamp)

    def result(self, path: Path) -> ServerLog:
        """What was read, when all was taken."""
        for process in self.processes.values():
            self._end_error(process)
        connections = tuple(connection.closed() for connection in self.opened)
        return ServerLog(path, connections, self.lines, self.bad_lines, dict(self.stray))

    # ---- lines of a connection

    def _of_id(self, process: _Process, own: re.Match[str], stamp: Any, line: str) -> None:
        its, text = own.groups()
        known = process.ids.get(its)
        if text.startswith("Incoming connection"):
            connection = process.ids[its] = process.arriving = self._new(its, process)
            connection.phases["incoming"] = _seconds(stamp)
            if (peer := _PEER.match(text)) and int(peer.group(2)) <= 65_535:
                connection.peer, connection.port = _address(peer.group(1)), int(peer.group(2))
            return
        prompt = text.startswith(("text prompt: ", "voice prompt: "))
        phase = "prompts" if prompt else _PHASE_OF.get(text.rstrip())
        if phase is None:
            return
        if known is None:  # the log begins later than it
            known = process.ids[its] = self._new(its, process)
        if process.arriving is known:
            process.arriving = None
        known.phases.setdefault(phase, _seconds(stamp))
        if text.startswith("voice prompt: "):
            known.voice_prompt = _printable(text[14:], REASON_SHOWN)
        elif prompt:
            words = text[13:]
            known.text_prompt = Prompt(len(words), _printable(words, PROMPT_SHOWN))
            # Its end is where the colour ends. Without colours, a prompt of several lines is known by the first.
            if _COLOURED_ID.search(line) and not line.rstrip().endswith(_COLOUR_ENDS):
                process.prompted, process.prompt_lines = known, 0
        self._moved(process, known, phase, stamp)

    def _of_kyutai(self, process: _Process, text: str, stamp: Any) -> None:
        step = _STEP.match(text)
        phase = None if step else _PHASE_OF.get(text.rstrip())
        if phase == "accepted":
            connection = self._new(None, process)
            connection.phases[phase] = _seconds(stamp)
            self._moved(process, connection, phase, stamp)
        elif text.startswith(_STARTS):
            _begun_anew(process)
        elif step or phase in ("connection_closed", "done"):
            if not process.queue:  # the log begins later than it
                process.queue.append(self._new(None, process))
            holder = process.queue[0]
            if step:
                holder.steps_ms.append(float(step.group(1)))
            elif phase:
                holder.phases.setdefault(phase, _seconds(stamp))
                self._moved(process, holder, phase, stamp)

    def _new(self, its: str | None, process: _Process) -> _Open:
        connection = _Open(len(self.opened), its, process.name)
        self.opened.append(connection)
        return connection

    def _moved(self, process: _Process, connection: _Open, phase: str, stamp: Any) -> None:
        """Keep the order in which the lock is had."""
        if phase == "accepted":
            if not process.queue:
                connection.lock_free_at = _seconds(stamp)
            if connection not in process.queue:
                process.queue.append(connection)
        elif phase == "done":
            self._ended(process, connection, _seconds(stamp))
        elif phase != "prompts" and connection in process.queue and process.queue[0] is not connection:
            process.overlapping = True
            for waiting in process.queue:
                waiting.lock_free_at = None

    def _ended(self, process: _Process, connection: _Open, at: float | None) -> None:
        connection.ended, connection.ended_at = True, at
        if connection.id is not None and process.ids.get(connection.id) is connection:
            del process.ids[connection.id]
        if process.arriving is connection:
            process.arriving = None
        if connection in process.queue:
            held = process.queue[0] is connection
            process.queue.remove(connection)
            if held and process.queue and not process.overlapping:
                process.queue[0].lock_free_at = at

    # ---- lines without an id

    def _nameless(self, process: _Process, text: str, stamp: Any) -> None:
        if text.startswith("Done loading "):
            if holder := self._in_prompts(process):
                holder.loaded += 1
        elif text.startswith(_ERROR):
            whose = process.arriving or self._holder(process)
            process.error = _Error(whose)
            if whose is not None:
                whose.reason = NOT_TOLD
                self._ended(process, whose, _seconds(stamp))
        elif text.startswith(_STARTS):
            _begun_anew(process)

    def _holder(self, process: _Process) -> _Open | None:
        if not process.queue or (process.overlapping and len(process.queue) > 1):
            return None
        return process.queue[0]

    def _in_prompts(self, process: _Process) -> _Open | None:
        waiting = [connection for connection in process.queue if "prompts_done" not in connection.phases]
        if not process.overlapping:
            return waiting[0] if waiting and waiting[0] is process.queue[0] else None
        return waiting[0] if len(waiting) == 1 else None

    def _in_error(self, process: _Process, error: _Error, text: str) -> bool:
        """Whether a line is of a traceback; its last exception is the reason."""
        if text.startswith("Traceback (most recent call last)"):
            error.in_traceback = True
        elif text.startswith(_ERROR):
            self._end_error(process)
            return False
        elif error.in_traceback and text and not text[0].isspace():
            error.in_traceback = False
            if _EXCEPTION.match(text):
                error.reason = _printable(text, REASON_SHOWN)
        elif text.strip() and not text[0].isspace() and not text.startswith(_CHAINED):
            self._end_error(process)
            return False
        return True

    def _end_error(self, process: _Process) -> None:
        error, process.error = process.error, None
        if error is None:
            return
        if error.whose is None:
            self.stray[error.reason or NOT_TOLD] += 1
        elif error.reason is not None:
            error.whose.reason = error.reason


def _begun_anew(process: _Process) -> None:
    """The server started: what was open is over, untold."""
    process.ids.clear()
    process.queue.clear()
    process.arriving, process.prompted, process.overlapping = None, None, False


def _goes_on(process: _Process, line: str, text: str) -> bool:
    """Whether a line is another one of a text prompt."""
    connection, process.prompt_lines = process.prompted, process.prompt_lines + 1
    if connection is None or connection.text_prompt is None:
        return False
    if _COLOURED_ID.search(line) or process.prompt_lines > PROMPT_LINES:
        process.prompted = None
        return False
    told = connection.text_prompt
    begins = told.begins + _printable(text, PROMPT_SHOWN)
    connection.text_prompt = Prompt(told.characters + 1 + len(text), begins[:PROMPT_SHOWN])
    if line.rstrip().endswith(_COLOUR_ENDS):
        process.prompted = None
    return True


def _seconds(stamp: Any) -> float | None:
    """Unix seconds of a matched _TIME; None for none, or one that no calendar has."""
    if stamp is None:
        return None
    *whole, fraction, _, sign, hours, minutes = stamp.groups()
    east = timedelta(hours=int(hours), minutes=int(minutes)) if sign else timedelta()
    try:
        year, month, day, hour, minute, second = map(int, whole)
        zone = timezone(-east if sign == "-" else east)
        at = datetime(year, month, day, hour, minute, second, tzinfo=zone).timestamp()
    except (ValueError, OverflowError):
        return None
    return at + (float(f"0.{fraction}") if fraction else 0.0)


def _address(text: str) -> str:
    """An IP as both sides write it: no brackets, no IPv6 clothes on an IPv4 address."""
    return text.strip("[]").removeprefix("::ffff:")


def _printable(text: str, most: int) -> str:
    return "".join(filter(str.isprintable, text[: most * 4]))[:most]
