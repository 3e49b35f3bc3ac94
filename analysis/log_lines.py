"""What a voice agent's log says, line by line: figures, connections, starts. Knows nothing of runs, clients or tables.

Reads NVIDIA's voice agents (`| streamId=X - TEXT`) and stock pipecat from 0.0.98 on (`- TEXT`, no stream id), as they
come from `python bot.py > file` and from `docker compose logs` (`service-1  | ` before each line), coloured or not.
A log of any size is read in blocks: memory does not grow with it.
"""

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import NamedTuple

BLOCK_BYTES = 1 << 20
LONGEST_LINE_BYTES = 1 << 16  # a longer one is no line of a log: skipped, and counted

# Metric by what the line says. An ASR service's TTFB counts from the end of speech, so it holds the wait of the voice
# activity detector as well as the recognition: it has a name of its own, and is never shown as compute latency.
METRICS = {
    "TTFB": "ttfb",
    "TTFA": "ttfa",
    "ASR compute latency": "compute_latency",
    "LLM first sentence generation time": "first_sentence",
    "processing time": "processing",
}
ASR_TTFB = "ttfb_with_vad_wait"


class Figure(NamedTuple):
    """One measurement. value_s: seconds; value: for what is no duration (tokens, tokens a second).

    process: which process wrote it (the compose prefix, and how often it had started before). at: unix seconds by the
    log's clock, read as if it were UTC; None if the line has no time. offset: where in the file its line begins.
    """

    process: str
    instance: str
    component: str
    metric: str
    value_s: float | None
    value: float | None
    stream_id: str | None
    at: float | None
    offset: int


@dataclass(frozen=True, slots=True)
class Connected:
    """A client came. by_app: said by the application, which repeats what the web server said just before."""

    process: str
    stream_id: str | None
    at: float | None
    offset: int
    by_app: bool


@dataclass(frozen=True, slots=True)
class Linked:
    """A service's instance was put into a pipeline: it exists, whether or not it is ever called."""

    process: str
    instance: str
    stream_id: str | None
    at: float | None
    offset: int


_FIGURE = re.compile(
    r"#(?P<number>\d{1,9}) (?:(?P<what>TTFB|TTFA|ASR compute latency|LLM first sentence generation time|"
    r"processing time|prompt tokens):(?P<rest>[^\n]*)|-> (?P<target>[A-Za-z_]\w*#\d{1,9})(?!\d))"
)
_UVICORN = '" [accepted]'
_APP = "Accepted WebSocket connection for stream ID "
_START = "Started server process"
_BESIDE = 2048  # characters
_KNOWN = 100_000  # lines kept in mind, about 20 MB

_ANSI = re.compile(r"\x1b\[[0-9;]*m")
_LEVELS = {"TRACE", "DEBUG", "INFO", "SUCCESS", "WARNING", "ERROR", "CRITICAL"}  # a line may begin with one
_PREFIX = re.compile(r"([\w.-]+)\s+\| ")
_TIME = re.compile(r"(\d{4}-\d\d-\d\d)[ T](\d\d):(\d\d):(\d\d)(?:[.,](\d{1,9}))?")
_NUMBER = re.compile(r"\s*(-?\d+(?:\.\d*)?(?:[eE][-+]?\d+)?)s?(?=\s|$)")
_SILENCE = re.compile(r"\((\d+(?:\.\d*)?(?:[eE][-+]?\d+)?)s leading silence\)")
_TOKENS = re.compile(r"\s*\d+, completion tokens: (\d{1,12})(?!\d)")
_PATH = re.compile(r'"WebSocket (?P<path>[^"\s?]+)[^"]*$')
_COMPONENT = re.compile(r"(LLM|TTS|STT|ASR)", re.IGNORECASE)
_COMPONENTS = {"llm": "llm", "tts": "tts", "stt": "asr", "asr": "asr"}


@cache
def component_of(name: str) -> str | None:
    """llm, tts or asr, by the name of a service's class; None for any other processor."""
    found = _COMPONENT.findall(name)
    return _COMPONENTS[found[-1].lower()] if found else None


@dataclass(slots=True)
class LogReader:
    """One pass over a log. The counts are right when it is through.

    lines: whole lines. bad_lines: broken figures, binary garbage, overlong lines, and a last line without its end.
    zeros: 0.0 figures, which services write before their first call. size_bytes: how far was read; give it to a second
    reader, and it reads the same of a file that still grows.
    """

    path: Path
    size_bytes: int = -1
    lines: int = 0
    bad_lines: int = 0
    zeros: int = 0
    _starts: dict[str, int] = field(default_factory=dict)
    _used: set[str] = field(default_factory=set)
    _tokens: dict[tuple[str, str], int] = field(default_factory=dict)
    _day: tuple[str, float] = ("", 0.0)

    def figures(self) -> Iterator[Figure]:
        """Every figure, in the log's order. Raises OSError."""
        for line in self._lines():
            if isinstance(line, _Said) and line.what:
                yield from self._figures(line)

    def clients(self) -> Iterator[Connected | Linked]:
        """Who connected, and each instance the first time it is met (with each stream id). Raises OSError."""
        met: set[tuple[str, str, str | None]] = set()
        for line in self._lines(known=set()):
            if isinstance(line, Connected):
                yield line
                continue
            key = (line.process, line.instance, _stream(line.head))
            if key not in met:
                met.add(key)
                yield Linked(*key, self._time(line.head), line.offset)

    def _lines(self, known: set[tuple[str, str]] | None = None) -> Iterator["_Said | Connected"]:
        """Lines of services and connections. known: to be filled with what lines say of their instance; a line that
        says no more than an earlier one is skipped, which halves the work of finding out who is who."""
        for text, begins in self._blocks():
            rare = [(at, mark) for mark in (_UVICORN, _APP, _START) for at in _places(text, mark)]
            rare.sort()
            place = 0
            for found in _FIGURE.finditer(text):
                while place < len(rare) and rare[place][0] < found.start():
                    yield from self._connection(*rare[place], text, begins)
                    if known is not None and rare[place][1] == _START:
                        known.clear()
                    place += 1
                if known is not None and self._is_known(known, found, text):
                    continue
                yield from self._said(found, text, begins)
            for at, mark in rare[place:]:
                yield from self._connection(at, mark, text, begins)
                if known is not None and mark == _START:
                    known.clear()

    def _blocks(self) -> Iterator[tuple[str, int]]:
        """Whole lines, many at a time, without colours, and where in the file they begin."""
        with self.path.open("rb", buffering=0) as file:
            at, carry, overlong = 0, b"", False
            while self.size_bytes < 0 or at < self.size_bytes:
                wanted = BLOCK_BYTES if self.size_bytes < 0 else min(BLOCK_BYTES, self.size_bytes - at)
                read = file.read(wanted)
                if not read:
                    break
                at += len(read)
                if overlong:
                    end = read.find(b"\n")
                    if end < 0:
                        continue
                    read, overlong = read[end + 1 :], False
                block = carry + read
                whole = block.rfind(b"\n") + 1
                carry = block[whole:]
                begins = at - len(block)
                if len(carry) > LONGEST_LINE_BYTES:
                    self.bad_lines += 1
                    carry, overlong = b"", True
                if whole:
                    self.lines += block.count(b"\n")
                    self._garbage(block[:whole])
                    text = block[:whole].decode("utf-8", "replace")
                    yield (_ANSI.sub("", text) if "\x1b" in text else text), begins
            if carry:
                self.bad_lines += 1  # half a line: the figure in it may be half a figure
            self.size_bytes = at

    def _garbage(self, block: bytes) -> None:
        """Count lines that hold NULs or are no UTF-8; the usual block is cleared by two searches in C."""
        broken = b"\0" in block
        if not broken:
            try:
                block.decode("utf-8")
            except UnicodeDecodeError:
                broken = True
        if broken:
            self.bad_lines += sum(_is_garbage(line) for line in block.split(b"\n"))

    def _unfit(self, text: str) -> None:
        if "\0" not in text and "\ufffd" not in text:  # these are counted as garbage already
            self.bad_lines += 1

    def _connection(self, at: int, mark: str, text: str, begins: int) -> Iterator[Connected]:
        start = text.rfind("\n", 0, at) + 1
        head = text[start:at]
        prefix = _prefix(head)
        if mark == _START:
            # A process that restarts counts its instances from 0 again. One that nobody used yet has none.
            if prefix in self._used:
                self._starts[prefix] = self._starts.get(prefix, 0) + 1
                self._used.discard(prefix)
            return
        stream: str | None = None
        if mark == _APP:
            end = text.find("\n", at)
            stream = text[at + len(_APP) : end].strip().split(" ")[0] or None
        elif (path := _PATH.search(head)) is None:
            return
        else:
            stream = _stream_in(path.group("path"))
        self._used.add(prefix)
        said_at = self._time(head) or self._time_beside(text, start)
        yield Connected(self._process(prefix), stream, said_at, begins + start, mark == _APP)

    def _said(self, found: re.Match[str], text: str, begins: int) -> Iterator["_Said"]:
        start = text.rfind("\n", 0, found.start()) + 1
        head = text[start : found.start()]
        number, what, rest, target = found.groups()
        if target is None:
            name = head[head.rfind(" ") + 1 :]
            before = head[: len(head) - len(name)]
            if before and not before.endswith((" - ", "| ")):
                return  # somebody's words, not a service's own line
            instance = f"{name}#{number}"
        else:
            if "Linking " not in head:
                return
            before, name, instance = head, target.partition("#")[0], target
        component = component_of(name)
        if component is None:
            return
        prefix = _prefix(head)
        self._used.add(prefix)
        yield _Said(self._process(prefix), instance, component, what, rest, before, begins + start)

    def _is_known(self, known: set[tuple[str, str]], found: re.Match[str], text: str) -> bool:
        """Whether a line with this head (but for its time) and instance came since a process started."""
        start = text.rfind("\n", 0, found.start()) + 1
        time = _TIME.search(text, start, found.start())
        head = text[start : time.start()] + text[time.end() : found.start()] if time else text[start : found.start()]
        key = (head, found.group("number") + (found.group("target") or ""))
        if key in known:
            return True
        if len(known) > _KNOWN:
            known.clear()
        known.add(key)
        return False

    def _process(self, prefix: str) -> str:
        return f"{prefix}/{self._starts.get(prefix, 0)}"

    def _figures(self, said: "_Said") -> Iterator[Figure]:
        what, rest, component = said.what, said.rest, said.component
        stream, at = _stream(said.head), self._time(said.head)

        def figure(metric: str, value_s: float | None, value: float | None = None) -> Figure:
            return Figure(said.process, said.instance, component, metric, value_s, value, stream, at, said.offset)

        if what == "prompt tokens":
            if not (tokens := _TOKENS.match(rest)):
                self._unfit(rest)
                return
            completion = int(tokens.group(1))
            self._tokens[said.process, said.instance] = completion
            yield figure("completion_tokens", None, float(completion))
            return
        number = _NUMBER.match(rest)
        value_s = float(number.group(1)) if number else math.nan
        if not math.isfinite(value_s) or value_s < 0:
            self._unfit(rest)
            return
        if value_s == 0:
            self.zeros += 1
            return
        metric = ASR_TTFB if component == "asr" and what == "TTFB" else METRICS[what]
        yield figure(metric, value_s)
        if what == "TTFA" and (silence := _SILENCE.search(rest)) and float(silence.group(1)) > 0:
            yield figure("leading_silence", float(silence.group(1)))
        if what == "processing time" and (completed := self._tokens.pop((said.process, said.instance), 0)):
            yield figure("tokens_per_s", None, completed / value_s)

    def _time(self, line: str) -> float | None:
        found = _TIME.search(line)
        return self._seconds(found) if found else None

    def _time_beside(self, text: str, start: int) -> float | None:
        """The time of the next line after one that has none (uvicorn's), else of the one before."""
        if found := _TIME.search(text, start, start + _BESIDE):
            return self._seconds(found)
        times = list(_TIME.finditer(text, max(0, start - _BESIDE), start))
        return self._seconds(times[-1]) if times else None

    def _seconds(self, found: re.Match[str]) -> float | None:
        day, hour, minute, second, fraction = found.groups()
        if day != self._day[0]:
            try:
                self._day = (day, datetime.fromisoformat(day).replace(tzinfo=UTC).timestamp())
            except ValueError:
                return None
        whole = int(hour) * 3600 + int(minute) * 60 + int(second)
        return self._day[1] + whole + (float(f"0.{fraction}") if fraction else 0.0)


class _Said(NamedTuple):
    """A service's line: whose, what it says, and what stands before it. Linked: `what` is empty."""

    process: str
    instance: str
    component: str
    what: str
    rest: str
    head: str
    offset: int


def _places(text: str, mark: str) -> Iterator[int]:
    at = text.find(mark)
    while at >= 0:
        yield at
        at = text.find(mark, at + 1)


def _prefix(head: str) -> str:
    found = _PREFIX.match(head)
    return found.group(1) if found and found.group(1) not in _LEVELS else ""


def _is_garbage(line: bytes) -> bool:
    if b"\0" in line:
        return True
    try:
        line.decode("utf-8")
    except UnicodeDecodeError:
        return True
    return False


def _stream(head: str) -> str | None:
    at = head.find("streamId=")
    if at < 0:
        return None
    stream = head[at + 9 :].partition(" ")[0]
    return stream if stream and stream != "n/a" else None


def _stream_in(path: str) -> str | None:
    _, ws, stream = path.rpartition("/ws/")
    return stream.rstrip("/") or None if ws else None
