"""The hearing subprocess: asked, killed, silenced, orphaned. Real processes; what it hears is known."""

import io
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gevent
import numpy as np
import psutil
import pytest
import soundfile

from workers.audio import ear as ear_module
from workers.audio.ear import Ear, EarLost, EarRefused
from workers.audio.ear_child import NICE, answer

ROOT = Path(__file__).resolve().parent.parent
RATE = 16_000
WITHIN_S = 20.0
SILENT = (sys.executable, "-c", "import time; time.sleep(60)")
DEAD = (sys.executable, "-c", "raise SystemExit(1)")
HALF_AN_ANSWER = (sys.executable, "-c", r"import os; os.read(0, 1); os.write(1, b'\x93\x00\xc0\xc4\xff12')")
NONSENSE = (sys.executable, "-c", "import os; os.read(0, 1); os.write(1, b'hello'); os.read(0, 1 << 20)")


def speech_from(sample: int) -> bytes:
    """0.6 s whose voice begins at `sample` and never ends."""
    at = np.arange(9600)
    return (np.where(at % 50 < 25, 10_000, -10_000) * (at >= sample)).astype("<i2").tobytes()


@pytest.fixture
def ear() -> Iterator[Ear]:
    ear = Ear()
    yield ear
    ear.close()


def until(so: Callable[[], bool]) -> None:
    with gevent.Timeout(WITHIN_S):
        while not so():
            gevent.sleep(0.002)


def asked(ear: Ear, verb: str, *arguments: Any) -> Any:
    answers: list[Any] = []
    ear.ask(verb, list(arguments), answers.append)
    until(lambda: bool(answers))
    return answers[0]


def test_no_process_before_the_first_question(ear: Ear) -> None:
    assert ear.pid is None
    assert asked(ear, "ping") == "pong"
    assert ear.pid is not None


def test_onset_and_offset_are_heard_by_another_process(ear: Ear) -> None:
    assert asked(ear, "onset", speech_from(4001), RATE, 4810) == 4001
    backwards = np.frombuffer(speech_from(4001), "<i2")[::-1].tobytes()
    assert asked(ear, "offset", backwards, RATE, 4790) == 9600 - 4001
    assert asked(ear, "onset", bytes(19_200), RATE, 4800) is None


def test_two_hundred_questions_at_once_are_answered_each_with_its_own(ear: Ear) -> None:
    answers: dict[int, Any] = {}
    for begin in range(3000, 3200):
        ear.ask("onset", [speech_from(begin), RATE, 4800], lambda heard, begin=begin: answers.update({begin: heard}))
    assert ear.waiting == 200
    until(lambda: len(answers) == 200)
    assert answers == {begin: begin for begin in range(3000, 3200)}
    assert (ear.waiting, ear.lost) == (0, 0)


@pytest.mark.parametrize(
    ("verb", "arguments", "says"),
    [
        ("sing", [], "sing"),
        ("onset", [], "missing"),
        ("onset", [b"odd", RATE, 1], "multiple"),
        ("onset", [b"", 0, 0], ""),
        ("onset", ["text", RATE, 1], ""),
        ("offset", [bytes(9600), RATE, "here"], ""),
        ("flac", [b"", RATE, b"", -5, "title"], ""),
        ("flac", [bytes(2), RATE, bytes(2), RATE, 7], ""),
        ("ping", [1], "ping"),
    ],
)
def test_a_wrong_question_is_refused_and_harms_nobody(ear: Ear, verb: str, arguments: list[Any], says: str) -> None:
    answers: list[Any] = []
    ear.ask(verb, arguments, answers.append)
    ear.ask("ping", [], answers.append)
    until(lambda: len(answers) == 2)
    assert answers[0] is None or isinstance(answers[0], EarRefused)
    assert says in str(answers[0])
    assert answers[1] == "pong"
    assert ear.lost == 0


def test_killed_with_questions_open_it_owes_no_answer_and_the_next_one_starts_anew(ear: Ear) -> None:
    assert asked(ear, "ping") == "pong"
    first = ear.pid
    assert first is not None
    os.kill(first, signal.SIGSTOP)  # so that nothing is answered before it dies
    answers: list[Any] = []
    for _ in range(50):
        ear.ask("onset", [speech_from(4000), RATE, 4800], answers.append)
    os.kill(first, signal.SIGKILL)
    until(lambda: len(answers) == 50)
    assert all(isinstance(heard, EarLost) for heard in answers)
    assert ear.lost == 1
    assert asked(ear, "ping") == "pong"
    assert ear.pid != first
    until(lambda: not psutil.pid_exists(first))  # no zombie is left


def test_a_question_asked_out_of_a_lost_answer_goes_to_the_next_process(ear: Ear) -> None:
    assert asked(ear, "ping") == "pong"
    assert ear.pid is not None
    os.kill(ear.pid, signal.SIGSTOP)
    answers: list[Any] = []
    ear.ask("ping", [], lambda lost: ear.ask("ping", [], answers.append))
    os.kill(ear.pid, signal.SIGKILL)
    until(lambda: bool(answers))
    assert answers == ["pong"]


@pytest.mark.parametrize("command", [DEAD, HALF_AN_ANSWER, NONSENSE, ("/no/such/program",)])
def test_a_child_that_cannot_answer_is_lost_and_not_started_at_once_again(command: tuple[str, ...]) -> None:
    ear = Ear(command)
    assert isinstance(asked(ear, "ping"), EarLost)
    assert ear.lost == 1
    assert isinstance(asked(ear, "ping"), EarLost)
    assert ear.pid is None
    assert ear.lost == 1
    ear.close()


def test_a_silent_child_is_killed() -> None:
    ear = Ear(SILENT, silence_s=0.3)
    answers: list[Any] = []
    ear.ask("ping", [], answers.append)
    until(lambda: ear.pid is not None)
    pid = ear.pid
    assert pid is not None
    until(lambda: bool(answers))
    assert isinstance(answers[0], EarLost)
    assert ear.lost == 1
    until(lambda: not psutil.pid_exists(pid))
    ear.close()


def test_an_idle_child_is_left_in_peace() -> None:
    """Silence counts while an answer is owed, not while nobody asks."""
    ear = Ear(silence_s=2.0)
    assert asked(ear, "ping") == "pong"
    pid = ear.pid
    gevent.sleep(2.5)
    assert asked(ear, "ping") == "pong"
    assert (ear.pid, ear.lost) == (pid, 0)
    ear.close()


def test_more_than_fits_the_queue_is_lost_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ear_module, "MOST_QUEUED_BYTES", 1 << 20)
    ear = Ear(SILENT)
    answers: list[Any] = []
    for _ in range(3):
        ear.ask("onset", [bytes(700_000), RATE, 0], answers.append)
    assert len(answers) == 1
    assert isinstance(answers[0], EarLost)
    ear.close()
    assert len(answers) == 3
    assert ear.lost == 0  # nothing died


def test_closed_it_answers_what_it_owes_and_hears_no_more(ear: Ear) -> None:
    answers: list[Any] = []
    ear.ask("ping", [], answers.append)
    ear.close()
    ear.ask("ping", [], answers.append)
    assert [type(heard) for heard in answers] == [EarLost, EarLost]


def test_it_may_be_asked_from_the_hub(ear: Ear) -> None:
    answers: list[Any] = []
    gevent.get_hub().loop.run_callback(ear.ask, "ping", [], answers.append)
    until(lambda: bool(answers))
    assert answers == ["pong"]


def test_one_listeners_fault_costs_the_others_nothing(ear: Ear) -> None:
    answers: list[Any] = []
    ear.ask("ping", [], lambda heard: 1 / 0)
    ear.ask("ping", [], answers.append)
    until(lambda: bool(answers))
    assert answers == ["pong"]
    assert ear.lost == 0


def test_both_sides_of_a_turn_come_back_from_flac_sample_by_sample(ear: Ear) -> None:
    rng = np.random.default_rng(1)
    user, agent = (rng.integers(-32768, 32768, count).astype("<i2") for count in (5000, 7001))
    flac = asked(ear, "flac", user.tobytes(), RATE, agent.tobytes(), RATE, "turn 7")
    with soundfile.SoundFile(io.BytesIO(flac)) as file:
        assert (file.samplerate, file.channels, file.subtype, file.title) == (RATE, 2, "PCM_16", "turn 7")
        both = file.read(dtype="int16")
    assert np.array_equal(both[:, 1], agent)
    assert np.array_equal(both[:5000, 0], user)
    assert not both[5000:, 0].any()


@pytest.mark.parametrize(("user_rate", "agent_rate"), [(16_000, 24_000), (16_000, 8_000), (48_000, 22_050)])
def test_sides_of_different_rates_share_the_higher_one(user_rate: int, agent_rate: int) -> None:
    user, agent = ((8000 * np.cos(np.arange(r) / r * 2 * np.pi * 300)).astype("<i2") for r in (user_rate, agent_rate))
    wrong, flac = answer("flac", [user.tobytes(), user_rate, agent.tobytes(), agent_rate, ""])
    assert wrong is None
    both, rate = soundfile.read(io.BytesIO(flac), dtype="int16")
    assert rate == max(user_rate, agent_rate)
    assert both.shape == (rate, 2)
    middle = slice(rate // 10, -rate // 10)
    assert np.abs(both[middle, 0].astype(int) - both[middle, 1]).max() <= 20


def test_nothing_to_hear_is_a_flac_of_one_silent_sample() -> None:  # of none it would be no FLAC
    wrong, flac = answer("flac", [b"", RATE, b"", RATE, "empty"])
    assert wrong is None
    assert soundfile.read(io.BytesIO(flac), dtype="int16")[0].tolist() == [[0, 0]]


PARENT = """
import sys
import gevent.monkey
gevent.monkey.patch_all()
import gevent
from workers.audio.ear import Ear
ear = Ear()
def then(heard):
    print(ear.pid, heard, flush=True)
ear.ask("ping", [], then)
gevent.sleep(60)
"""


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_it_does_not_outlive_its_parent(how: signal.Signals) -> None:
    """Under monkey patching, as Locust does it."""
    parent = subprocess.Popen([sys.executable, "-c", PARENT], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    pid, heard = parent.stdout.readline().split()
    assert heard == "pong"
    child = psutil.Process(int(pid))
    child.send_signal(signal.SIGINT)  # Ctrl-C reaches it too, and is not for it
    assert child.is_running()
    assert child.nice() == NICE
    parent.send_signal(how)
    parent.wait()
    parent.stdout.close()
    deadline = time.monotonic() + WITHIN_S
    while child.is_running() and child.status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline
        time.sleep(0.01)
