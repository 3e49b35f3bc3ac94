"""Microphones on a clock of the test's own: what was sent, when, and that nothing was left out or sent twice."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from workers.clients import microphone as module
from workers.clients.microphone import HEARD_EVERY_S, Booth, Microphone

CHUNK_S = 0.02
SILENCE = b"silence"
NEAR_S = 1e-6


class Clock:
    """Time that goes where it is told to; a board's beat every half millisecond."""

    def __init__(self, at: float) -> None:
        self.at = at
        self.actions: list[Callable[[], object]] = []

    def monotonic(self) -> float:
        return self.at

    def each_beat(self, action: Callable[[], object]) -> None:
        self.actions.append(action)

    def no_more(self, action: Callable[[], object]) -> None:
        self.actions.remove(action)

    def go(self, seconds: float, beat_s: float = 0.0005) -> None:
        end = self.at + seconds
        while self.at < end - 1e-9:
            self.at = min(end, self.at + beat_s)
            for action in list(self.actions):
                action()

    def stall(self, seconds: float) -> None:
        """The process sleeps: no beat comes."""
        self.at += seconds


class Line:
    """What a microphone needs of a line."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self.sent: list[tuple[float, bytes]] = []
        self.came: list[object] = []
        self.gone: object = None
        self.error: OSError | None = None

    def send(self, data: bytes) -> float:
        if self.error is not None:
            raise self.error
        self.sent.append((self._clock.at, data))
        return self._clock.at

    def broke(self, error: OSError) -> None:
        self.gone = error

    @property
    def chunks(self) -> list[bytes]:
        return [data for _, data in self.sent]


@pytest.fixture(params=[100.3, 7.0, 31.0, 999.9991], ids=str)
def clock(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock(request.param + 0.00027)  # between two slots: no rounding decides what is due
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=made.monotonic))
    return made


class Room:
    """A booth and its callers."""

    def __init__(self, clock: Clock, chunk_s: float = CHUNK_S) -> None:
        self.clock = clock
        self.heard: list[tuple[float, list[Any]]] = []
        self.booth = Booth(clock, chunk_s, lambda calls: self.heard.append((clock.at, list(calls))))  # type: ignore[arg-type]
        self.lines: list[Line] = []

    def open(self, encode: Callable[[bytes], bytes] | None = None) -> Microphone:
        line = Line(self.clock)
        self.lines.append(line)
        return self.booth.open(SimpleNamespace(line=line), silence=SILENCE, encode=encode)


def words(count: int, name: str = "w") -> list[bytes]:
    return [f"{name}{k}".encode() for k in range(count)]


def assert_without_a_hole(line: Line, chunk_s: float = CHUNK_S) -> None:
    """A chunk each `chunk_s`, none doubled, none left out: within a beat of its instant."""
    first = line.sent[0][0]
    for k, (at, _) in enumerate(line.sent):
        assert at == pytest.approx(first + k * chunk_s, abs=0.0005 + NEAR_S), k


@pytest.mark.parametrize("chunk_s", [0.02, 0.005, 0.032, 0.1, 0.0125])
def test_a_clip_leaves_in_order_when_it_has_been_spoken(clock: Clock, chunk_s: float) -> None:
    room = Room(clock, chunk_s)
    microphone = room.open()
    clock.go(3 * chunk_s)
    asked_at = clock.at + 1.7 * chunk_s
    spoken = microphone.say(words(10), 7, asked_at)
    assert asked_at - NEAR_S <= spoken.began_at < asked_at + chunk_s
    clock.go(20 * chunk_s)
    line = room.lines[0]
    assert_without_a_hole(line, chunk_s)
    begin = line.chunks.index(b"w0")
    assert line.chunks[begin : begin + 10] == words(10)
    assert set(line.chunks[:begin]) == set(line.chunks[begin + 10 :]) == {SILENCE}
    for k, (at, _) in enumerate(line.sent[begin : begin + 10]):
        due_at = spoken.began_at + (k + 1) * chunk_s
        assert due_at - NEAR_S <= at <= due_at + 0.0005 + NEAR_S
    assert spoken.sent_at == line.sent[begin][0]
    assert spoken.voiced_sent_at == line.sent[begin + 7][0]
    assert 0.0 <= spoken.late_s <= 0.0005 + NEAR_S
    assert spoken.over


def test_a_booth_that_was_just_made_begins_at_once(clock: Clock) -> None:
    """No caller waits for the next whole second."""
    room = Room(clock)
    microphone = room.open()
    spoken = microphone.say(words(1), 0, clock.at)
    assert clock.at - NEAR_S <= spoken.began_at < clock.at + CHUNK_S
    clock.go(3 * CHUNK_S)
    assert b"w0" in room.lines[0].chunks


@pytest.mark.parametrize("ahead_s", [-5.0, 0.0, 0.0004, 0.02, 0.0201, 0.5])
def test_a_clip_begins_on_the_first_boundary_at_or_after_the_asked_instant(clock: Clock, ahead_s: float) -> None:
    """What was asked for the past begins now: nobody has spoken yet."""
    room = Room(clock)
    microphone = room.open()
    clock.go(0.1)
    now = clock.at
    spoken = microphone.say(words(3), 2, now + ahead_s)
    earliest = max(now, now + ahead_s)
    assert earliest - NEAR_S <= spoken.began_at < earliest + CHUNK_S + NEAR_S
    grid = room.lines[0].sent[-1][0]
    steps = (spoken.began_at - grid) / CHUNK_S
    assert steps == pytest.approx(round(steps), abs=0.0006 / CHUNK_S)
    clock.go(ahead_s + 0.2 if ahead_s > 0 else 0.2)
    assert [chunk for chunk in room.lines[0].chunks if chunk != SILENCE] == words(3)


def test_every_phase_of_asking(clock: Clock) -> None:
    """Asked anywhere between two chunks, above all just before and just after one."""
    room = Room(clock)
    microphone = room.open()
    clock.go(0.05)
    for k in range(100):
        clock.go(0.0011)
        spoken = microphone.say(words(2, f"{k}."), 1, clock.at)
        assert clock.at - NEAR_S <= spoken.began_at < clock.at + CHUNK_S + NEAR_S
        clock.go(3 * CHUNK_S)
        assert spoken.over
    assert_without_a_hole(room.lines[0])
    said = [chunk for chunk in room.lines[0].chunks if chunk != SILENCE]
    assert said == [word for k in range(100) for word in words(2, f"{k}.")]


def test_clips_follow_each_other_without_a_hole(clock: Clock) -> None:
    room = Room(clock)
    microphone = room.open()
    clock.go(0.05)
    first = microphone.say(words(3, "a"), 2, clock.at)
    clock.go(4 * CHUNK_S)
    assert first.over
    microphone.say(words(3, "b"), 2, clock.at)
    clock.go(6 * CHUNK_S)
    assert_without_a_hole(room.lines[0])
    chunks = room.lines[0].chunks
    assert [chunk for chunk in chunks if chunk != SILENCE] == [*words(3, "a"), *words(3, "b")]
    assert chunks[-1] == SILENCE


def test_after_a_stall_every_chunk_that_is_owed_is_sent(clock: Clock) -> None:
    room = Room(clock)
    microphones = [room.open() for _ in range(45)]
    clock.go(0.1)
    spoken = [microphone.say(words(100), 99, clock.at) for microphone in microphones]
    clock.go(0.2)
    room.booth.take_lateness()
    clock.stall(0.7)
    clock.go(1.5)
    for line, one in zip(room.lines, spoken, strict=True):
        said = [chunk for chunk in line.chunks if chunk != SILENCE]
        assert said == words(100), "in order, none missing, none twice"
        assert 0.68 < one.late_s < 0.7 + CHUNK_S
        # The clock is absolute: once it has caught up, nothing is late any more.
        last = one.began_at + 100 * CHUNK_S
        sent_at = next(at for at, data in line.sent if data == b"w99")
        assert sent_at == pytest.approx(last, abs=0.0005 + NEAR_S)
    late_s = room.booth.take_lateness()
    assert sum(one > 0.01 for one in late_s) == pytest.approx(45 * 35, abs=45)
    assert max(late_s) < 0.7 + CHUNK_S


def test_a_clip_asked_for_in_a_stall_is_not_sent_with_what_was_owed(clock: Clock) -> None:
    """Silence was owed; the clip begins when it was asked for, not where the microphone had got to."""
    room = Room(clock)
    microphone = room.open()
    clock.go(0.1)
    clock.stall(0.5)
    spoken = microphone.say(words(3), 2, clock.at)
    clock.go(0.2)
    assert [chunk for chunk in room.lines[0].chunks if chunk != SILENCE] == words(3)
    assert spoken.late_s <= 0.0005 + NEAR_S
    assert spoken.sent_at >= spoken.began_at + CHUNK_S - NEAR_S


def test_lateness_is_that_of_every_chunk_and_is_taken_once(clock: Clock) -> None:
    room = Room(clock)
    for _ in range(5):
        room.open()
    clock.go(1.0)
    late_s = room.booth.take_lateness()
    assert len(late_s) == sum(len(line.sent) for line in room.lines)
    assert 0.0 <= min(late_s) <= max(late_s) <= 0.0005 + NEAR_S
    assert len(room.booth.take_lateness()) == 0


def test_callers_are_spread_over_the_milliseconds(clock: Clock) -> None:
    room = Room(clock)
    for _ in range(100):
        room.open()
    clock.go(0.1)
    for line in room.lines:
        line.sent.clear()
    clock.go(CHUNK_S)
    instants = [round(at, 6) for line in room.lines for at, _ in line.sent]
    assert len(instants) == 100, "each once"
    assert len(set(instants)) == 20
    assert max(instants.count(one) for one in set(instants)) == 5


def test_places_that_become_free_are_taken_again(clock: Clock) -> None:
    room = Room(clock)
    microphones = [room.open() for _ in range(40)]
    for microphone in microphones[::2]:
        microphone.close()
    for _ in range(20):
        room.open()
    clock.go(0.1)
    for line in room.lines:
        line.sent.clear()
    clock.go(CHUNK_S)
    instants = [round(at, 6) for line in room.lines for at, _ in line.sent]
    assert sorted(instants.count(one) for one in set(instants)) == [2] * 20


def test_what_came_is_heard_within_a_tenth_of_a_second_and_a_few_slots(clock: Clock) -> None:
    room = Room(clock)
    microphones = [room.open() for _ in range(3)]
    room.lines[1].came.append("something")
    room.lines[2].gone = "closed"
    clock.go(HEARD_EVERY_S + 2 * CHUNK_S)
    heard = [call for _, calls in room.heard for call in calls]
    assert all(any(call is microphone.call for call in heard) for microphone in microphones[1:])
    assert not any(call is microphones[0].call for call in heard)
    assert len(room.heard) <= 4, "several calls at once, each once a tenth of a second"


def test_one_lines_error_disturbs_no_other(clock: Clock) -> None:
    room = Room(clock)
    for _ in range(60):
        room.open()
    clock.go(0.1)
    broken = room.lines[20]
    broken.error = ConnectionResetError("gone")
    counts = [len(line.sent) for line in room.lines]
    clock.go(0.1)
    assert broken.gone is broken.error
    for line, before in zip(room.lines, counts, strict=True):
        assert len(line.sent) - before == (0 if line is broken else 5)
    assert broken.gone in [call.line.gone for _, calls in room.heard for call in calls], "its caller is told"


def test_a_microphone_that_is_closed_in_the_middle_of_a_slot(clock: Clock) -> None:
    """What closes it may be what is called for it: the one after it in the slot must not be passed over."""
    room = Room(clock)
    microphones: list[Microphone] = []

    def closing(chunk: bytes) -> bytes:
        microphones[0].close()
        return chunk

    microphones.append(room.open(closing))
    microphones += [room.open() for _ in range(59)]  # three a slot
    clock.go(CHUNK_S)
    assert [len(line.sent) for line in room.lines] == [1] * 60
    clock.go(CHUNK_S)
    assert [len(line.sent) for line in room.lines] == [1] + [2] * 59


def test_what_is_encoded_is_encoded_in_order_and_only_when_sent(clock: Clock) -> None:
    room = Room(clock)
    encoded: list[bytes] = []

    def encode(chunk: bytes) -> bytes:
        encoded.append(chunk)
        return b"<" + chunk + b">"

    microphone = room.open(encode)
    clock.go(0.05)
    microphone.say(words(3), 2, clock.at)
    clock.go(0.1)
    assert room.lines[0].chunks == [b"<" + chunk + b">" for chunk in encoded]
    assert [chunk for chunk in encoded if chunk != SILENCE] == words(3)


def test_nothing_is_sent_after_the_last_has_closed_and_the_next_begins_anew(clock: Clock) -> None:
    room = Room(clock)
    microphone = room.open()
    clock.go(0.1)
    microphone.close()
    assert not clock.actions, "an idle worker has no beat"
    sent = len(room.lines[0].sent)
    clock.go(5.0)
    assert len(room.lines[0].sent) == sent
    microphone.close()  # harmless
    room.open()
    clock.go(0.1)
    assert len(room.lines[1].sent) == 5, "and not what was due while nobody spoke"
    assert_without_a_hole(room.lines[1])


def test_closing_twice_silences_nobody_else(clock: Clock) -> None:
    """One run's booth must not stop the beat of the next one's."""
    old, new = Room(clock), Room(clock)
    gone = old.open()
    gone.close()
    new.open()
    gone.close()
    clock.go(0.1)
    assert len(new.lines[0].sent) == 5


def test_ten_minutes_do_not_drift(clock: Clock) -> None:
    room = Room(clock)
    room.open()
    clock.go(CHUNK_S)
    first = room.lines[0].sent[0][0]
    clock.go(600.0, beat_s=0.005)
    count = len(room.lines[0].sent)
    assert room.lines[0].sent[-1][0] - first == pytest.approx((count - 1) * CHUNK_S, abs=0.0051)
    assert count == pytest.approx(30_000, abs=2)


def test_calls_of_two_kinds_speak_beside_each_other(clock: Clock) -> None:
    """A worker with voice-agent calls and full-duplex sessions has two booths on one board."""
    agents, models = Room(clock), Room(clock)
    agents.open()
    model = models.open()
    clock.go(0.2)
    model.close()
    clock.go(0.2)
    assert len(agents.lines[0].sent) == 20
    assert len(models.lines[0].sent) == 10
    assert_without_a_hole(agents.lines[0])
