"""Every reason for distrust: a run that gives it, and a calm run that gives none."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from run_maker import (
    MONOTONIC_AT,
    RUN,
    WALL_AT,
    calls,
    clean_seconds,
    facts,
    log_of,
    make_run,
    packed,
    packed_header,
    second,
    start_of,
    trials,
    turn,
    turns,
)

from analysis import checks
from analysis.checks import Reason
from analysis.counting import count
from analysis.runs import open_run
from workers.samples import schema

Maker = Callable[[Path], Path]


def calm(n: int = 400, sessions: int = 25, **given: Any) -> list[dict[str, Any]]:
    """Turns nobody could object to, but for what is given."""
    noise = np.random.default_rng(11).normal(0, 0.01, n)
    given.setdefault("ttfc_s", lambda at: 0.1 + float(noise[at]))
    return turns(n, sessions, **given)


def reasons_of(run: Path) -> list[Reason]:
    opened = open_run(run)
    return checks.reasons(opened, count(opened.turns))


def ill(rows: list[dict[str, Any]], seconds: list[dict[str, Any]] | None = None, **given: Any) -> Maker:
    return lambda parent: make_run(parent, log_of(rows, clean_seconds() if seconds is None else seconds), **given)


def seconds_with(every: int = 1, **given: Any) -> list[dict[str, Any]]:
    return [second(MONOTONIC_AT + 11 + at, **(given if at % every == 0 else {})) for at in range(30)]


def failing(n: int, of: int = 400, **given: Any) -> list[dict[str, Any]]:
    rows = calm(of)
    for at in range(n):
        kept = {name: rows[at][name] for name in ("session", "turn", "intended_at")}
        rows[at] = turn(**kept, **{"outcome": "timed_out", "error_kind": "no_answer_in_time", "error": "30 s", **given})
    return rows


def slow_to_connect() -> list[dict[str, Any]]:
    return calm(
        connection_new=lambda at: at % 2 == 0,
        ready_at=lambda at: MONOTONIC_AT + 10.0 + 0.1 * at + (0.03 if at % 2 == 0 else 0.0),
        late_s=lambda at: 0.0302 if at % 2 == 0 else 0.0002,
    )


def two_workers(**of_second: Any) -> Maker:
    logs = {"w0": log_of(calm(), clean_seconds()), "w1": log_of(calm(worker="w1"), worker=facts("w1"))}
    return lambda parent: make_run(parent, logs, workers={"w1": of_second})


def with_log(log: bytes, **given: Any) -> Maker:
    return lambda parent: make_run(parent, log, **given)


def talk(**given: Any) -> list[dict[str, Any]]:
    """Conversations nobody could object to, but for what is given."""
    noise = np.random.default_rng(12).normal(0, 0.02, 400)
    given.setdefault("floor_s", lambda at: 0.8 + float(noise[at]))
    return calls(40, 10, **given)


def duplex_talk(**given: Any) -> list[dict[str, Any]]:
    """Full-duplex trials nobody could object to, but for what is given."""
    noise = np.random.default_rng(13).normal(0, 0.02, 80)
    return trials(80, floor_s=lambda at: 0.22 + float(noise[at]), **given)


def duplex_ill(of_session: Callable[[int], dict[str, Any]]) -> Maker:
    return with_log(log_of(duplex_talk(), clean_seconds(), of_session=of_session))


def full_target(parent: Path) -> Path:
    """Every other second all of its four streams were busy, and others waited."""
    run = make_run(parent, log_of(calm(), clean_seconds()), target_facts={"http://h": {"streams_most": 4}})
    rows = [
        {"run": RUN, "endpoint": "http://h/metrics", "metric": name, "labels": "", "kind": "gauge", "value": value,
         "at": WALL_AT + 10.5 + at}
        for at in range(40)
        for name, value in (("gpu_server_active_streams", 4.0 - at % 2), ("gpu_server_queue_depth", 2.0 - at % 2 * 2))
    ]  # fmt: skip
    (run / "server").mkdir()
    (run / schema.METRICS_LOG).write_bytes(packed_header(facts()) + b"".join(packed("metrics", row) for row in rows))
    return run


def two_hosts(parent: Path) -> Path:
    other = log_of(calm(worker="w1"), clean_seconds(), worker=facts("w1", boot_id="boot-b"))
    return make_run(parent, {"w0": WHOLE, "w1": other})


HEADER = packed_header(facts())
WHOLE = log_of(calm(), clean_seconds())
OPEN = turn(session="s99", intended_at=MONOTONIC_AT + 20)
FAR_FUTURE = {"outcome": "refused", "error_kind": "http_503", "error": "503", "status": 503}

CASES: list[tuple[str, str, Maker, str]] = [
    ("unfinished_run", "invalid", with_log(WHOLE, state="running"), "400 turns"),
    ("all_warm_up", "invalid", ill(calm(phase="warm_up")), "all 400 turns"),
    ("nothing_answered", "invalid", ill(failing(400)), '400 of 400 turns ended as no_answer_in_time, e.g. "30 s"'),
    ("unreadable_log", "invalid", lambda p: make_run(p, {"w0": WHOLE, "w1": b"nonsense"}), "w1.msgpack"),
    ("lost_rows", "invalid", two_workers(final_bytes=10**9), "w1 on box-a"),
    ("lost_rows", "warning", with_log(WHOLE, workers={"w0": {"final_bytes": len(WHOLE) + 7}}), "w0 on box-a, 7 bytes"),
    ("lost_rows", "warning", two_workers(lost_rows=2), "could not write 2 rows"),
    ("worker_lost", "warning", two_workers(drained=False, final_bytes=None), "1 of 2 workers"),
    ("worker_lost", "warning", two_workers(drained=False, final_bytes=None, recovered=True), "rows were recovered"),
    ("saturated_generator", "invalid", ill(calm(), seconds_with(cpu_share=0.97)), "97%"),
    ("saturated_generator", "warning", ill(calm(), seconds_with(every=15, cpu_share=0.9)), "w0"),
    ("loop_lag", "invalid", ill(calm(), seconds_with(loop_lag_p50_s=0.006, loop_lag_max_s=0.02)), "6.0 ms"),
    ("loop_lag", "warning", ill(calm(), seconds_with(loop_lag_max_s=0.02)), "20.0 ms"),
    ("late_sends", "warning", ill(calm(late_s=lambda at: 0.008 if at % 50 == 0 else 0.001)), "8.0 ms"),
    ("late_sends", "invalid", ill(calm(late_s=0.05)), "50.0 ms"),
    ("late_microphone", "warning", ill(talk(), seconds_with(send_late_p99_s=0.006)), "1 worker"),
    ("late_microphone", "invalid", ill(talk(), seconds_with(send_late_p99_s=0.03)), "w0 30.0 ms"),
    ("ear_behind", "warning", ill(talk(), seconds_with(ear_behind_s=1.5)), "1 worker (p99 1.5 s at w0)"),
    ("lag_grows", "warning", duplex_ill(lambda at: {"lag_growth_s_per_min": 12.0} if at == 3 else {}), "1 of 80 sess"),
    ("not_decoded", "note", duplex_ill(lambda at: {"decoded": at % 4 != 0}), "20 of 80 sessions (25.0 %)"),
    ("mock_target", "warning", with_log(WHOLE, mock=True), "--mock started"),
    ("onset_by_gate", "warning", ill(talk(onset_by=lambda at: "gate" if at % 4 == 0 else "ear")), "25.0 %"),
    ("ear_lost", "warning", ill(failing(2, outcome="cut", error_kind="ear_lost"), seconds_with(ears_lost=1)),
     "2 turns cut because a hearing process of our own died (w0; 1 time in all)"),
    ("dropped_starts", "warning", ill(calm(), seconds_with(every=5, dropped_starts=1)), "6 starts"),
    ("dropped_starts", "invalid", ill(calm(), seconds_with(dropped_starts=2)), "60 starts"),
    ("failures", "warning", ill(failing(20)), "20 turns (5.0 %)"),
    ("failures", "invalid", ill(failing(120)), "30.0 %"),
    ("refused", "warning", ill(failing(3, **FAR_FUTURE)), "3 turns (http_503 3)"),
    ("short_answers", "warning", ill(calm(audio_s=lambda at: 1.3 if at in (7, 9) else 2.0)), "2 answers"),
    ("too_few", "warning", ill(calm(sessions=12)), "12 sessions"),
    ("too_few", "warning", ill(calm(n=60)), "60 successes"),
    ("trend", "warning", ill(calm(ttfc_s=lambda at: 0.1 + at * 0.0005)), "rose"),
    ("trend", "warning", ill(calm(ttfc_s=lambda at: 0.3 - at * 0.0005)), "fell"),
    ("trend", "warning", ill(talk(floor_s=lambda at: 0.8 + at % 10 * 0.05)), "the floor transfer offset rose"),
    ("warm_up", "note", ill(calm(ttfc_s=lambda at: 0.3 if at < 60 else 0.1 + at % 7 / 1000)), "first 60 answers (6 s)"),
    ("several_levels", "warning", ill(calm(level=lambda at: 2 if at < 200 else 4)), "2, 4 users"),
    ("mock_target", "warning", with_log(WHOLE, target_facts={"http://h": {"engine": "tone", "mock": True}}), "tone"),
    ("random_weights", "warning", with_log(WHOLE, target_facts={"http://h": {"weights": "random"}}), "random weights"),
    ("target_full", "note", full_target, "its own limit of 4 streams in 50.0 %"),
    ("several_clocks", "note", two_hosts, "2 hosts"),
    ("flagged_arrivals", "warning", ill(calm(flagged=lambda at: at % 50 == 0)), "2.0 %"),
    ("user_clock", "warning", ill(calm(clock="user")), "100.0 %"),
    ("cut_turns", "note", ill([*calm(), turn(session="s1", turn=77, outcome="cut", error_kind="run_ended")]), "1 turn"),
    ("cut_turns", "warning", ill(failing(40, outcome="cut", error_kind="run_ended")), "40 turns"),
    ("cut_turns", "note", with_log(WHOLE + packed("turn_starts", start_of(OPEN))), "1 turn"),
    ("spoilt_bytes", "warning", with_log(WHOLE[:-9]), "at the end"),
    ("spoilt_bytes", "warning", with_log(HEADER + b"\xc1" * 50 + WHOLE[len(HEADER) :]), "50 before"),
    ("listener_errors", "warning", with_log(WHOLE, listener_errors=3), "3 failures"),
    ("connecting", "note", ill(slow_to_connect()), "30.0 ms"),
    ("repeated_rows", "note", with_log(WHOLE + packed("turns", calm()[5])), "1 row "),
]  # fmt: skip


@pytest.mark.parametrize(("code", "severity", "maker", "says"), CASES, ids=[f"{case[0]}-{case[1]}" for case in CASES])
def test_the_reason_is_found(tmp_path: Path, code: str, severity: str, maker: Maker, says: str) -> None:
    found = {reason.code: reason for reason in reasons_of(maker(tmp_path))}
    assert code in found, found
    assert found[code].severity == severity
    assert says in found[code].line, found[code].line
    assert "\n" not in found[code].line


KINDS = {
    "connection_refused": "nothing listened there",
    "http_401": "a token",
    "http_403": "a token|this token",
    "http_404": "no such path",
    "tls_failure": "certificate",
    "http_429": "too much",
    "http_503": "too much",
    "http_500": "failed by itself",
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_refusal_says_what_its_kind_means(tmp_path: Path, kind: str) -> None:
    rows = failing(3, outcome="refused", error_kind=kind, error="no")
    (line,) = [r.line for r in reasons_of(make_run(tmp_path, log_of(rows, clean_seconds()))) if r.code == "refused"]
    assert any(words in line for words in KINDS[kind].split("|")), line
    assert ("offered too much" in line) == (kind in ("http_429", "http_503"))


def test_several_kinds_of_refusals_have_a_meaning_each(tmp_path: Path) -> None:
    rows = failing(5, outcome="refused", error_kind="http_404", error="no")
    rows[0] |= {"error_kind": "http_503"}
    (line,) = [r.line for r in reasons_of(make_run(tmp_path, log_of(rows, clean_seconds()))) if r.code == "refused"]
    assert "(http_404 4, http_503 1): http_404: it knows no such path" in line
    assert "; http_503: it was offered too much" in line


def test_a_busy_second_of_a_run_in_which_everything_failed_is_no_saturation(tmp_path: Path) -> None:
    rows = failing(400, outcome="refused", error_kind="connection_refused", error="nothing listens")
    codes = {reason.code for reason in reasons_of(make_run(tmp_path, log_of(rows, seconds_with(cpu_share=0.97))))}
    assert "nothing_answered" in codes
    assert "saturated_generator" not in codes


def test_every_check_has_a_case(tmp_path: Path) -> None:
    """Remove a check, and a case above fails: each check is the only source of some case's code."""
    given = set()
    for number, (code, _, maker, _) in enumerate(CASES):
        opened = open_run(maker(tmp_path / str(number)))
        counted = count(opened.turns)
        given |= {check for check in checks.CHECKS if (reason := check(opened, counted)) and reason.code == code}
    assert given == set(checks.CHECKS)


def test_a_calm_run_gives_no_reason(tmp_path: Path) -> None:
    assert reasons_of(make_run(tmp_path, WHOLE)) == []


def test_the_gravest_comes_first(tmp_path: Path) -> None:
    rows = [*calm(clock="user"), turn(session="s1", turn=77, outcome="cut", error_kind="run_ended")]
    found = reasons_of(make_run(tmp_path, log_of(rows, seconds_with(cpu_share=0.97)), state="running"))
    assert [reason.severity for reason in found] == ["invalid", "invalid", "warning", "note"]
    assert found[0].code == "unfinished_run"


def test_calm_conversations_give_no_reason(tmp_path: Path) -> None:
    early = talk(floor_s=lambda at: -0.2 if at % 2 else 0.05 + at % 7 / 1000, audio_s=lambda at: 0.5 + at % 3)
    for name, rows in (("answered", talk()), ("early", early)):
        assert reasons_of(make_run(tmp_path / name, log_of(rows, clean_seconds(90)))) == []


def test_calm_full_duplex_sessions_give_no_reason(tmp_path: Path) -> None:
    given = {"lag_growth_s_per_min": 0.9, "sent_s": 300.0}
    for name, of_session in (("calm", {}), ("slow", given), ("short", {"lag_growth_s_per_min": 1.5, "sent_s": 6.0})):
        log = log_of(duplex_talk(), clean_seconds(), of_session=lambda at, said=of_session: said)
        assert reasons_of(make_run(tmp_path / name, log)) == []


def test_modes_that_follow_each_other_are_no_trend(tmp_path: Path) -> None:
    """Throughput is slower than one at a time, on purpose; within one mode the same rise is a trend."""
    rising = {"floor_s": lambda at: 0.2 + at * 0.004}
    rows = trials(80, mode=None, **rising)
    later = [
        *trials(40, "text"),
        *trials(40, "throughput", floor_s=0.6, intended_at=lambda at: MONOTONIC_AT + 400 + 6 * at),
    ]
    found = [reasons_of(make_run(tmp_path / str(n), log_of(each))) for n, each in enumerate((rows, later))]
    assert [["trend" in {reason.code for reason in reasons} for reasons in found]] == [[True, False]]


def test_a_few_late_seconds_are_no_late_microphone(tmp_path: Path) -> None:
    seconds = seconds_with(every=15, send_late_p99_s=0.05)
    assert reasons_of(make_run(tmp_path, log_of(talk(), seconds))) == []


@pytest.mark.parametrize(
    "rows",
    [
        calm(connection_new=True, ready_at=lambda at: MONOTONIC_AT + 10.004 + 0.1 * at, late_s=0.0042),
        calm(late_s=0.004),
        calm(flagged=lambda at: at % 100 == 0),
        calm(text_name="generated", text_chars=lambda at: 20 + at % 50, audio_s=lambda at: 1.0 + at % 50 / 10),
        calm(text_name=lambda at: f"t{at % 2}", ttfc_s=lambda at: 0.1 if at % 2 else 0.2),
        failing(4),
    ],
    ids=["connecting", "punctual", "few_flags", "generated_texts", "two_texts", "one_per_cent"],
)
def test_what_is_in_order_is_left_alone(tmp_path: Path, rows: list[dict[str, Any]]) -> None:
    assert reasons_of(make_run(tmp_path, log_of(rows, clean_seconds()))) == []


def test_an_uneasy_second_before_the_measured_window_does_not_count(tmp_path: Path) -> None:
    seconds = [second(MONOTONIC_AT + 5.0, cpu_share=1.0, dropped_starts=9, loop_lag_p50_s=0.5), *clean_seconds()]
    assert reasons_of(make_run(tmp_path, log_of(calm(), seconds))) == []


def test_opening_connections_is_not_the_generators_lateness(tmp_path: Path) -> None:
    rows = calm(connection_new=True, ready_at=lambda at: MONOTONIC_AT + 10.08 + 0.1 * at, late_s=0.0802)
    assert [reason.code for reason in reasons_of(make_run(tmp_path, log_of(rows, clean_seconds())))] == ["connecting"]


def test_listener_errors_of_an_undrained_worker_come_from_its_seconds(tmp_path: Path) -> None:
    log = log_of(calm(), seconds_with(listener_errors=4))
    drained = reasons_of(make_run(tmp_path / "a", log, listener_errors=4))
    assert ["4 failures" in reason.line for reason in drained] == [True]
    gone = reasons_of(make_run(tmp_path / "b", log, workers={"w0": {"drained": False, "final_bytes": None}}))
    assert "4 failures" in next(reason.line for reason in gone if reason.code == "listener_errors")
