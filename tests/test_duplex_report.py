"""The report of full-duplex sessions against runs whose truth is known: figures, page, targets, comparison."""

import csv
from argparse import Namespace
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
    duplex,
    log_of,
    make_run,
    packed,
    trials,
    turns,
)

from analysis import planning
from analysis.capacity import find
from analysis.comparison import compare
from analysis.page_comparison import rows as comparison_rows
from analysis.page_numbers import number
from analysis.report import main, report
from analysis.targets import TargetError, Targets, parse_target, read_targets
from analysis.violations import applicable, handled

BEGAN = MONOTONIC_AT + 10.0
NO_HANDSHAKE = {"outcome": "timed_out", "error_kind": "handshake_timeout", "error": "no handshake within 60 s"}
NO_ANSWER = {"outcome": "timed_out", "error_kind": "no_answer_in_time", "error": "the agent said nothing"}
CUT = {"outcome": "cut", "error_kind": "run_ended"}


def interruptions(count: int = 20) -> list[dict[str, Any]]:
    """Trials of a question, answered after 0.5 s, and a barge-in: 15 of 20 yielded to, after 0.30, 0.31 ... s, and
    answered after 0.40 s."""
    rows = []
    for at in range(count):
        given = {"mode": "interruption", "iteration": at, "session": f"i{at}", "host": f"10.0.0.{at % 2}:8998"}
        start = BEGAN + 1_000 + 20 * at
        asked = {"agent_offset_at": None, "e2e_s": None, "takeover": False}
        rows.append(duplex(turn=0, intended_at=start, floor_s=0.5, **asked, **given))
        yielded = at < count * 3 // 4
        stop = {"barge_in": True, "yielded": yielded, "time_to_silence_s": 0.30 + at / 100 if yielded else None}
        rows.append(duplex(turn=1, intended_at=start + 5, floor_s=0.4, **stop, **given))
    return rows


def known_run(parent: Path, **given: Any) -> Path:
    """80 trials of turn-taking, answered 0.101, 0.102 ... 0.180 s after the user's word as heard, 0.03 s after it by
    stream position with a lag of 0.05 s; 20 interruptions; one refused a handshake, one unanswered, two cut.

    Every fourth query has a pause, in half of which the agent takes over; 10 backchannels; 8 answers are too short to
    take the floor. The second session falls behind.
    """
    rows = trials(
        80,
        floor_s=lambda at: 0.101 + at / 1000,
        stream_s=0.03,
        lag_s=0.05,
        host=lambda at: f"10.0.0.{at % 2}:8998",
        user_pauses=lambda at: int(at % 4 == 0),
        pause_takeover=lambda at: at % 8 == 0 if at % 4 == 0 else None,
        backchannels=lambda at: int(at < 10),
        speech_s=lambda at: 0.5 if at < 8 else 2.0,
    )
    late = BEGAN + 600.0
    first = {"mode": "turn_taking", "host": "10.0.0.0:8998"}
    rows.append(duplex(iteration=80, session="no", text_name="connect", intended_at=late, **first, **NO_HANDSHAKE))
    rows.append(duplex(iteration=81, session="mute", intended_at=late, **first, **NO_ANSWER))
    rows += [duplex(iteration=82 + at, session=f"c{at}", intended_at=late, **first, **CUT) for at in range(2)]
    log = log_of(
        rows + interruptions(),
        clean_seconds(),
        of_session=lambda at: (
            {"lag_growth_s_per_min": 12.0, "lag_max_s": 2.4}
            if at == 1
            else {"setup_s": 1.0 + at / 10}
            if at != 80
            else {}
        ),
    )
    return make_run(parent, log, scenario={"mode": "full"}, **given)


@pytest.fixture(scope="module")
def known(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    found = report(known_run(tmp_path_factory.mktemp("known")))
    duplex_part: dict[str, Any] = found["duplex"]
    return duplex_part


def p50(found: dict[str, Any]) -> float:
    return float(found["quantiles"]["p50"]["value"])


def test_requests_by_mode_and_why_they_failed(known: dict[str, Any]) -> None:
    assert known["requests"] == {"handled": 102, "answered": 100, "failed": 2, "cut": 2} | {
        "success_rate_percent": pytest.approx(100 * 100 / 102)
    }
    assert known["failures"] == {"handshake_timeout": 1, "no_answer_in_time": 1}
    assert list(known["modes"]) == ["turn_taking", "interruption"]
    assert [part["requests"]["handled"] for part in known["modes"].values()] == [82, 20]
    assert (known["started"], known["sessions"], known["sessions_up"]) == (124, 104, 103)


def test_the_three_transfer_offsets_are_of_turns_that_broke_in_on_nobody(known: dict[str, Any]) -> None:
    heard = [0.101 + at / 1000 for at in range(80)] + [0.5] * 20
    assert known["floor_transfer_offset_ms"]["n"] == 100
    assert known["floor_transfer_offset_ms"]["mean"] == pytest.approx(np.mean(heard) * 1000)
    assert p50(known["modes"]["turn_taking"]["stream_transfer_offset_ms"]) == pytest.approx(30.0)
    assert p50(known["modes"]["turn_taking"]["arrival_transfer_offset_ms"]) == pytest.approx(80.0)
    taking = known["turn_taking"]
    assert (taking["n"], taking["gap_percent"], taking["overlaps"]) == (100, 100.0, 0)
    # 171 ... 180 lie inside; 101 ... 170 are below, and 170 itself counts there
    assert (taking["heard"]["inside_percent"], taking["heard"]["below_percent"]) == pytest.approx((10, 70))
    assert taking["heard"]["median_inside"] is False
    assert taking["heard"]["above_percent"] == pytest.approx(20)
    assert taking["published_ms"]["PersonaPlex"] == 70.0


def test_text_end_to_end_and_what_follows_the_handshake(known: dict[str, Any]) -> None:
    assert (p50(known["ttft_ms"]), p50(known["itl_ms"])) == pytest.approx((150.0, 80.0))
    taking = known["modes"]["turn_taking"]
    assert taking["e2e_ms"]["mean"] == pytest.approx(1000 * np.mean([2.0 - 1.5 * (at < 8) + 0.101 + at / 1000
                                                                    for at in range(80)]))  # fmt: skip
    setup_s = [1.4 if at == 1 else 1.0 + at / 10 for at in range(84) if at != 80]  # also of cut and unanswered ones
    assert taking["setup_ms"]["n"] == 83
    assert taking["setup_ms"]["mean"] == pytest.approx(np.mean(setup_s) * 1000)
    assert known["setup_ms"]["greatest"] == pytest.approx(1000 * (1.0 + 10.3))
    assert (p50(known["text_from_handshake_ms"]), p50(known["audio_from_handshake_ms"])) == pytest.approx((500, 100))


def test_rates_are_over_the_window_of_their_own_part(known: dict[str, Any]) -> None:
    part = known["modes"]["interruption"]
    wall_s = 20 * 19 + 5 + 0.1 + 2.0 + 0.4 + 2.5
    assert part["wall_s"] == pytest.approx(wall_s)
    assert part["requests_per_second"] == pytest.approx(20 / wall_s)
    assert part["tokens_per_second"] == pytest.approx(40 * 11 / wall_s)


def test_an_interruption_has_a_stop_and_a_response(known: dict[str, Any]) -> None:
    found = known["interruption"]
    assert (found["n"], found["yielded"], found["yielded_percent"]) == (20, 15, 75.0)
    assert found["too_short"] == 0
    assert p50(found["stop_ms"]) == pytest.approx(370.0)
    assert p50(found["response_ms"]) == pytest.approx(400.0)


def test_answers_too_short_to_be_interrupted_are_counted(tmp_path: Path) -> None:
    short = [duplex(mode="interruption", iteration=30 + at, session=f"q{at}", speech_s=0.4) for at in range(3)]
    found = report(make_run(tmp_path, log_of([*interruptions(), *short])))["duplex"]
    assert (found["interruption"]["n"], found["interruption"]["too_short"]) == (20, 3)
    assert found["requests"]["handled"] == 23


def test_full_duplex_bench_by_audio_alone(known: dict[str, Any]) -> None:
    found = known["full_duplex_bench"]
    # 80 trials and the mute one; the answers that our own users interrupted tell nothing of takeovers
    assert (found["turns"], found["takeover_percent"]) == (81, pytest.approx(100 * 72 / 81))
    assert p50(found["latency_ms"]) == pytest.approx(1000 * np.median([0.101 + at / 1000 for at in range(8, 80)]))
    assert found["pauses"] == {"turns": 20, "takeover_percent": 50.0}
    assert found["backchannels"]["n"] == 10
    assert found["backchannels"]["per_minute"] == pytest.approx(10 / (121 * 2.0) * 60)


def test_lag_tells_the_worst_session_and_the_middle_one(known: dict[str, Any]) -> None:
    growth = known["lag"]["growth_s_per_min"]
    assert (growth["worst"], growth["median"], growth["over"], growth["worst_session"]) == (
        12.0,
        0.0,
        1,
        "turn_taking1",
    )
    assert growth["worst_host"] == "10.0.0.1:8998"
    assert known["lag"]["max_ms"]["greatest"] == pytest.approx(2_400)
    assert p50(known["lag"]["p99_ms"]) == pytest.approx(90.0)


def test_servers_stand_apart(known: dict[str, Any]) -> None:
    hosts = known["hosts"]
    assert {name: (told["requests"], told["failed"]) for name, told in hosts.items()} == {
        "10.0.0.0:8998": (52, 2),
        "10.0.0.1:8998": (50, 0),
    }
    assert p50(hosts["10.0.0.1:8998"]["ttft_ms"]) == pytest.approx(150.0)


def test_the_reference_clients_stalls_are_summed(tmp_path: Path) -> None:
    log = log_of(trials(10), of_session=lambda at: {"client_stalls": at % 2 * 3, "client_stalled_s": at % 2 * 0.2,
                                                    "client_dropped_s": 0.1, "received_s": 30.0})  # fmt: skip
    client = report(make_run(tmp_path, log))["duplex"]["client"]
    assert (client["stalled_percent"], client["stalls"], client["stalls_per_minute"]) == (50.0, 15, 3.0)
    assert (client["stalled_s"], client["dropped_s"]) == pytest.approx((1.0, 1.0))


def test_sessions_that_nobody_heard_are_counted_and_are_no_silence(tmp_path: Path) -> None:
    """An undecoded session has text, set-up and lag; neither its takeovers nor its offsets are known."""
    unheard = {
        **{"decoded": False, "floor_transfer_offset_s": None, "stream_transfer_offset_s": None, "takeover": None},
        **{"agent_onset_at": None, "agent_offset_at": None, "backchannels": None},
    }
    rows = trials(10, mode=None) + [duplex(session=f"u{at}", **unheard) for at in range(30)]
    found = report(make_run(tmp_path, log_of(rows)))["duplex"]
    assert (found["not_decoded"], found["sessions_up"]) == (30, 40)
    assert (found["ttft_ms"]["n"], found["floor_transfer_offset_ms"]["n"]) == (40, 10)
    assert (found["full_duplex_bench"]["turns"], found["full_duplex_bench"]["takeover_percent"]) == (10, 100.0)


def turnless(number: int, **given: Any) -> bytes:
    """A session that never came to a turn: asked for 20 + `number` s after the first turn was due, ended 30 s later."""
    began = BEGAN + 20.0 + number
    row = {
        "run": RUN,
        "worker": "w0",
        "session": f"turnless{number}",
        "protocol": "personaplex",
        "turns": 0,
        "dialect": "personaplex",
        "scenario": "demo",
        "stream_id": f"turnless-{number}",
        "started_at": began,
        "ended_at": began + 30.0,
        "ended_by": "run_ended",
        "host": "a:8998",
        "mode": "turn_taking",
        "decoded": True,
    }
    return packed("sessions", row | given)  # fmt: skip


def up(after_s: float, number: int) -> dict[str, Any]:
    return {"setup_s": after_s, "ready_at": BEGAN + 20.0 + number + after_s}


def test_those_who_waited_longest_for_the_lock_are_in_set_up(tmp_path: Path) -> None:
    """Three came up as their part or the run ended, without a turn; two more were still waiting, one 30 s, one 12 s."""
    log = log_of(trials(7, host="a:8998"), clean_seconds(), of_session=lambda at: {"setup_s": 2.0})
    log += b"".join(turnless(at, **up(20.0 + at, at)) for at in range(2))
    log += turnless(2, **up(28.0, 2), mode="text", host="b:8998")
    log += turnless(3) + turnless(4, ended_by="part_ended", ended_at=BEGAN + 36.0)
    log += turnless(5, ended_by="handshake_timeout")
    run = make_run(tmp_path, log, scenario={"mode": "full"})
    found = report(run)["duplex"]
    assert found["setup_ms"]["n"] == 10
    assert found["setup_ms"]["mean"] == pytest.approx((7 * 2.0 + 20 + 21 + 28) * 100)
    assert found["setup_ms"]["greatest"] == pytest.approx(28_000)
    assert found["still_waiting"] == {"sessions": 2, "longest_s": pytest.approx(30.0)}
    part = found["modes"]["turn_taking"]
    assert (part["setup_ms"]["n"], part["setup_ms"]["greatest"]) == (9, pytest.approx(21_000))
    assert found["sessions_up"] == 7
    verdict = verdicts_of(run, tmp_path, "setup max < 60 s", "setup p50 < 3 s")
    assert verdict["session set-up max, full duplex"]["measured"] == "∞"  # the handshake that never came
    assert verdict["session set-up p50, full duplex"]["n"] == 11
    sides = {judged.figure.title: judged.difference.before for judged in compare(run, run).figures}
    assert sides["session set-up p50"] == pytest.approx(2_000)
    assert any("2 sessions were still waiting" in note for note in compare(run, run).notes)


def test_the_page_says_who_was_still_waiting(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = make_run(tmp_path, log_of(trials(7)) + turnless(0) + turnless(1, ended_at=BEGAN + 25.0))
    words = " ".join(page_of(run, capsys).split())
    assert "2 were still waiting after up to 30.0 s when the run or its part ended" in words


def test_sessions_begun_in_the_warm_up_are_in_no_set_up(tmp_path: Path) -> None:
    early = [duplex(session=f"w{at}", phase="warm_up", intended_at=BEGAN - 4 + at) for at in range(3)]
    log = log_of([*early, *trials(7, mode=None)], of_session=lambda at: {"setup_s": 9.0 if at < 3 else 1.0})
    log += turnless(0, **up(3.0, 0)) + turnless(1, started_at=BEGAN - 5.0, setup_s=9.0, ready_at=BEGAN + 4.0)
    told = {"warm_up_s": 3.0}  # of a run that began 5 s before BEGAN
    for name, given in (("told", {"scenario": told}), ("not_told", {"scenario": {}, "started_wall_at": None})):
        found = report(make_run(tmp_path / name, log, **given))["duplex"]
        assert (found["setup_ms"]["n"], found["setup_ms"]["greatest"]) == (8, pytest.approx(3_000)), name


def test_in_a_run_with_levels_set_up_is_of_their_stays(tmp_path: Path) -> None:
    stays = [{"users": 2, "measured_wall_at": WALL_AT + 30.5, "measured_until_wall_at": WALL_AT + 32.5},
             {"users": 4, "measured_wall_at": WALL_AT + 34.5}]  # fmt: skip
    log = log_of(trials(1, mode=None)) + b"".join(turnless(at, **up(2.0 + at, at)) for at in range(6))
    found = report(make_run(tmp_path, log, levels=stays))["duplex"]
    assert found["setup_ms"]["mean"] == pytest.approx(np.mean([3, 4, 7]) * 1000)


def test_refusals_have_no_rate(tmp_path: Path) -> None:
    refused = {"outcome": "refused", "error_kind": "connection_refused", "error": "nothing listens", "mode": "text"}
    rows = [
        duplex(session=f"s{at}", text_name="connect", iteration=at, intended_at=BEGAN + at / 1000, **refused)
        for at in range(50)
    ]
    found = report(make_run(tmp_path, log_of(rows)))["duplex"]
    assert (found["requests_per_second"], found["tokens_per_second"]) == (None, None)
    assert found["modes"]["text"]["requests_per_second"] is None
    assert found["wall_s"] > 0


def test_a_server_that_has_caught_up_is_not_behind(tmp_path: Path) -> None:
    """A pause of 2 s late in a short session tilts the line; one that ends behind is behind."""
    paused = [0.08] * 6 + [2.0, 1.2, 0.4, 0.08]
    at_last = [0.08] * 6 + [2.0, 2.0, 2.0, 2.0]
    for name, series, behind in (("paused", paused, 0), ("behind", at_last, 1)):
        given = {"lag_growth_s_per_min": 6.0, "lag_series_s": series, "lag_at": [BEGAN + at for at in range(10)]}
        log = log_of(trials(8), of_session=lambda at, given=given: given if at == 3 else {})
        found = report(make_run(tmp_path / name, log))
        assert found["duplex"]["lag"]["growth_s_per_min"]["over"] == behind, name
        assert ("lag_grows" in {reason["code"] for reason in found["reasons"]}) == bool(behind), name


def test_what_we_did_not_hear_is_nobodys_fault(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A turn that our own deafness cut may have been answered: it violates nothing, however long it lasted."""
    deaf = {"outcome": "cut", "error_kind": "ear_lost", "error": "the hearing process died", "mode": "turn_taking"}
    ended = {"outcome": "cut", "error_kind": "part_ended", "mode": "turn_taking", "text_name": "connect"}
    rows = [*trials(60, floor_s=0.2), *(duplex(session=f"d{at}", iteration=60 + at, **deaf) for at in range(3))]
    rows.append(duplex(session="p", iteration=70, **ended))
    run = make_run(tmp_path / "run", log_of(rows, clean_seconds()))
    found = report(run)
    assert (found["duplex"]["requests"]["cut"], found["duplex"]["requests"]["failed"]) == (4, 0)
    assert found["cut"] == {"ear_lost": 3, "part_ended": 1}
    assert verdicts_of(run, tmp_path, "floor_transfer_offset p50 < 300 ms")[
        "floor transfer offset p50, full duplex"
    ]["n"] == 60  # fmt: skip
    alone = make_run(tmp_path / "alone", log_of([duplex(session="d", iteration=0, **deaf)]))
    assert "our own hearing process died" in page_of(alone, capsys)


def test_an_early_answers_text_and_an_unheard_end_are_left_out(tmp_path: Path) -> None:
    """TTFT of early answers and E2E of undecoded sessions are null: in no figure, and in no target."""
    rows = trials(
        60,
        floor_s=lambda at: -0.2 if at < 20 else 0.2,
        ttft_s=lambda at: None if at < 20 else 0.1,
        decoded=lambda at: at < 40,
        e2e_s=lambda at: 2.0 if at < 40 else None,
        tokens_per_s=lambda at: 5.0 if at < 40 else None,
    )
    run = make_run(tmp_path, log_of(rows))
    found = report(run)["duplex"]
    assert (found["ttft_ms"]["n"], found["e2e_ms"]["n"], found["request_tokens_per_second"]["n"]) == (40, 40, 40)
    verdicts = verdicts_of(run, tmp_path, "ttft p50 < 200 ms", "e2e p50 < 3 s")
    assert {name: (one["status"], one["n"]) for name, one in verdicts.items()} == {
        "TTFT p50, full duplex": ("hold", 40),
        "end-to-end latency p50, turns": ("hold", 40),
    }


# ------------------------------------------------------------------------------------------------- the page and files


def page_of(run: Path, capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    main([str(run), *arguments])
    told = capsys.readouterr()
    assert told.err == ""
    return told.out


@pytest.mark.parametrize("width", [100, 120])
def test_the_page_says_it_all(tmp_path: Path, capsys: pytest.CaptureFixture[str], width: int) -> None:
    run = known_run(tmp_path, mock=True, recordings={"source": "synthetic", "names": ["question"]})
    body = page_of(run, capsys, "--width", str(width)).split("Written:")[0]
    assert max(map(len, body.splitlines())) <= width
    assert "\N{HORIZONTAL ELLIPSIS}" not in body
    words = " ".join(body.split())
    for said in (
        "102 requests handled: 100 answered, 2 failed, 2 more cut",
        "1 handshake_timeout, 1 no_answer_in_time",
        "synthetic recordings (question)",
        "MOCK: the bundled one",
        "100 answers heard in 100 sessions",
        "does NOT lie within: 10.0 % of 100 turns inside, 70.0 % below, 20.0 % above",
        "by arrival the median, 80.0 ms, does NOT lie within",
        "about 200 ms (Stivers et al. 2009)",
        "PersonaPlex 70 ms, Moshi 265 ms",
        "20 tried, the agent yielded to 75.0 %; stopped after p50 370 ms, p95 n<72",
        "TOR 88.9 % of 81 turns",
        "floor taken in 50.0 % of 20 queries with pauses; 10 backchannels",
        "at worst +12.00 (turn_taking1 on 10.0.0.1:8998)",
        "WARNING: over 1 s a minute in 1 of 103 sessions",
        "10.0.0.1:8998",
    ):
        assert said in words, said
    assert "Conversations" not in body
    assert "ASPS" not in body


def test_a_run_without_an_answer_says_why(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [duplex(session=f"s{at}", text_name="connect", mode="text", iteration=at, **NO_HANDSHAKE) for at in range(3)]
    words = " ".join(page_of(make_run(tmp_path, log_of(rows)), capsys).split())
    assert "No results: connections were accepted, but no session got its handshake" in words
    assert 'handshake_timeout: "no handshake within 60 s"' in words
    assert "Name more --servers" in words


def test_no_lag_is_not_told_as_minus_nothing() -> None:
    assert (number(-3e-15, "ms"), number(-0.04, "ms"), number(-0.06, "ms")) == ("0.0", "0.0", "-0.1")


def test_one_turn_and_one_cut_turn_make_a_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "n<6" in page_of(make_run(tmp_path / "one", log_of(trials(1))), capsys)
    cut = make_run(tmp_path / "cut", log_of([duplex(mode="text", iteration=0, **CUT)]))
    assert "0 requests handled" in page_of(cut, capsys)


def test_calls_and_full_duplex_sessions_have_a_block_each(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = make_run(
        tmp_path,
        log_of(
            [*calls(20, 4, floor_s=0.8), *trials(40, None, floor_s=0.2), *turns(40, session=lambda at: f"h{at % 20}")]
        ),
    )
    found = report(run)
    assert (p50(found["conversation"]["floor_transfer_offset_ms"]), found["conversation"]["started"]) == (800.0, 80)
    assert (p50(found["duplex"]["floor_transfer_offset_ms"]), found["duplex"]["started"]) == (200.0, 40)
    assert found["overall"]["started"] == 40
    page = page_of(run, capsys)
    assert page.index("Conversations") < page.index("Full duplex")
    for name in ("summary.csv", "conversations.csv", "full_duplex.csv"):
        assert name in page


def test_full_duplex_sessions_are_no_calls_that_were_up(tmp_path: Path) -> None:
    """Ten calls all the time; what else was up beside them is no load of the agent's."""
    rows = calls(10, 20, floor_s=0.8)
    beside = [duplex(session=f"d{at}", intended_at=BEGAN + 80.0, ended_at=BEGAN + 170.0) for at in range(40)]
    found = report(make_run(tmp_path, log_of([*rows, *beside])))["conversation"]
    assert found["answered"] == 200
    assert found["by_load"] == []


def test_rows_of_a_full_duplex_server_are_no_agents(tmp_path: Path) -> None:
    rows, sessions = calls(3, 4), trials(3, None)
    told = [("in-band", rows, "llm", "ttfb"), ("duplex.log", sessions, "personaplex", "setup")]
    of_server = b"".join(
        packed(
            "server",
            {"run": RUN, "source": source, "component": component, "metric": metric, "value_s": 0.2,
             "stream_id": row["stream_id"], "at": row["user_offset_at"] + 0.2 - MONOTONIC_AT + WALL_AT},
        )
        for source, its, component, metric in told
        for row in its
    )  # fmt: skip
    server = report(make_run(tmp_path, log_of([*rows, *sessions]) + of_server))["conversation"]["server"]
    assert (server["kind"], server["joined"], server["unplaced"]) == ("in-band", 12, 0)


def test_the_file_of_full_duplex_sessions(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = known_run(tmp_path)
    assert "conversations.csv" not in page_of(run, capsys)
    assert not (run / "summary.csv").exists()
    with (run / "full_duplex.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["mode"], row["answered"]) for row in rows] == [
        ("turn_taking", "80"),
        ("interruption", "40"),
        ("all", "120"),
    ]
    assert float(rows[0]["ttft_p95_ms"]) == pytest.approx(150.0)
    assert rows[0]["ttft_p99_ms"] == ""


# ------------------------------------------------------------------------------------- targets, comparison, capacity


def verdicts_of(run: Path, tmp_path: Path, *lines: str) -> dict[str, dict[str, Any]]:
    targets = tmp_path / "targets.yaml"
    targets.write_text("targets:\n" + "".join(f"  - {line}\n" for line in lines))
    return {f"{one['name']}, {one['of']}": one for one in report(run, targets=str(targets))["targets"]["verdicts"]}


def test_targets_of_text_set_up_lag_and_rates(tmp_path: Path) -> None:
    log = log_of(
        trials(100, "throughput", ttft_s=lambda at: 0.1 + at / 1000, intended_at=lambda at: BEGAN + at),
        of_session=lambda at: {"setup_s": 2.0 + at / 10, "lag_growth_s_per_min": 0.5 if at else 3.0},
    )
    found = verdicts_of(
        make_run(tmp_path, log),
        tmp_path,
        "ttft p95 < 200 ms",
        "itl < 50 ms",
        "setup p50 < 7 s",
        "setup max < 11 s",
        "lag_growth < 1 s/min",
        "lag_growth median < 1 s/min",
        "tps > 10",
        "e2e p95 < 3 s",
    )
    assert {name: (one["status"], one["measured"]) for name, one in found.items()} == {
        "TTFT p95, full duplex": ("hold", "194.1 ms"),
        "ITL p50, full duplex": ("miss", "80.0 ms"),
        "session set-up p50, full duplex": ("hold", "6,950 ms"),
        "session set-up max, full duplex": ("miss", "11,900 ms"),
        "growth of the lag worst, full duplex": ("miss", "3 s/min"),
        "growth of the lag median, full duplex": ("hold", "0.5 s/min"),
        "tokens a second, run": ("miss", "10.6"),
        "end-to-end latency p95, turns": ("hold", "2,220 ms"),
    } | {"tokens a second, run": ("hold", found["tokens a second, run"]["measured"])}
    assert found["tokens a second, run"]["value"] == pytest.approx(1_100 / (99 + 0.1 + 2 + 0.22 + 2.5))


def test_a_session_without_a_handshake_is_the_worst_of_set_ups_and_one_we_cut_is_none(tmp_path: Path) -> None:
    rows = trials(8, "audio")
    away = [
        duplex(session=f"n{at}", text_name="connect", mode="audio", iteration=9 + at, **NO_HANDSHAKE) for at in range(2)
    ]
    ours = duplex(session="cut", text_name="connect", mode="audio", iteration=11, **CUT)
    ended = {"nobody": "handshake_timeout", "cut": "run_ended"}
    log = log_of(
        [*rows, *away, ours],
        of_session=lambda at: {"ended_by": "user"} if at < 8 else {"ended_by": ended["nobody" if at < 10 else "cut"]},
    )
    found = verdicts_of(make_run(tmp_path / "a", log), tmp_path, "setup max < 60 s", "setup p50 < 2 s", "setup < 9 s")
    assert found["session set-up max, full duplex"]["measured"] == "∞"
    assert found["session set-up p50, full duplex"]["measured"] == "1,400 ms"
    assert found["session set-up p50, full duplex"]["n"] == 10
    assert found["session set-up p95, run"]["status"] == "cannot_tell"


def test_s1s_band_is_judged_without_barge_ins_and_apart_from_calls(tmp_path: Path) -> None:
    rows = [*trials(60, floor_s=0.2), *interruptions(60)[1::2], *calls(10, 10, floor_s=0.9)]
    run = make_run(tmp_path, log_of(rows))
    found = report(run, targets="personaplex")["targets"]
    told = {one["of"]: (one["status"], one["n"], one["measured"]) for one in found["verdicts"]}
    assert told == {"conversations": ("miss", 100, "900.0 ms"), "full duplex": ("hold", 60, "200.0 ms")}
    assert [target.text for target in read_targets("personaplex").targets] == [
        "floor_transfer_offset p50 within 170-270 ms"
    ]


def test_a_target_of_text_says_nothing_of_calls(tmp_path: Path) -> None:
    failed = calls(4, 5, outcome="timed_out", error_kind="no_answer_in_time")
    found = verdicts_of(make_run(tmp_path, log_of([*failed, *trials(80)])), tmp_path, "ttft p95 < 200 ms")
    assert found["TTFT p95, full duplex"]["status"] == "hold"


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("tps p95 > 3", "tps has no 'p95'; it has average"),
        ("setup mean < 3 s", "it has p95, p50, max"),
        ("lag_growth < 1 s", "told in s/min"),
    ],
)
def test_a_figure_that_a_metric_lacks_is_refused(line: str, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        parse_target(line)


@pytest.mark.parametrize(
    ("line", "protocols", "says"),
    [
        ("ttft p95 < 1 s", ["voice_agent"], "is of full-duplex sessions"),
        ("floor_transfer_offset p95 < 1 s", ["personaplex"], ""),
        ("time_to_silence p95 < 1 s", ["personaplex"], ""),  # --mode interruption breaks in by itself
        ("rtf p95 < 1", ["personaplex"], "is of requests"),
    ],
)
def test_targets_must_fit_what_the_users_do(line: str, protocols: list[str], says: str) -> None:
    options = Namespace(protocols=protocols, barge_in_share=0.0)
    targets = Targets("test", (parse_target(line),))
    if not says:
        planning.check(targets, options)
        return
    with pytest.raises(TargetError, match=says):
        planning.check(targets, options)


def test_goodput_counts_a_slow_text(tmp_path: Path) -> None:
    run = make_run(tmp_path, log_of(trials(100, ttft_s=lambda at: 0.9 if at < 25 else 0.1)))
    targets = tmp_path / "targets.yaml"
    targets.write_text("targets:\n  - ttft p95 < 500 ms\n  - floor_transfer_offset p95 < 300 ms\n")
    assert report(run, targets=str(targets))["targets"]["goodput"]["share"] == pytest.approx(0.75)


def test_what_begins_an_answer_counts_though_the_turn_was_cut_later() -> None:
    import pandas as pd

    rows = [trials(1)[0], {**trials(1)[0], "outcome": "cut", "error_kind": "run_ended"}]
    turns_of_two = handled(pd.DataFrame(rows).assign(error_kind=lambda frame: frame["error_kind"]))
    assert len(applicable(parse_target("ttft p50 < 1 s"), turns_of_two)) == 2
    assert len(applicable(parse_target("itl p50 < 1 s"), turns_of_two)) == 1


def test_two_runs_are_compared_by_the_figures_of_full_duplex(tmp_path: Path) -> None:
    noise = np.random.default_rng(5).normal(0, 0.01, 200)

    def made(name: str, slower_s: float, mode: str = "turn_taking") -> Path:
        rows = trials(200, mode, ttft_s=lambda at: 0.15 + slower_s + float(noise[at]),
                      floor_s=lambda at: 0.22 + float(noise[at]))  # fmt: skip
        log = log_of(rows, clean_seconds(), of_session=lambda at: {"setup_s": 1.4 + float(noise[at])})
        return make_run(tmp_path / name, log, scenario={"mode": mode, "output": f"{name}.json"})

    found = compare(made("before", 0.0), made("after", 0.1))
    verdicts = {judged.figure.title: judged.verdict for judged in found.figures}
    assert {judged.figure.of for judged in found.figures} == {"full duplex"}
    assert verdicts["TTFT p50"] == "worse"
    assert (verdicts["floor transfer offset p50"], verdicts["session set-up p50"], verdicts["ITL p50"]) == ("same",) * 3
    assert found.exit_status == 1
    assert any("TTFT p95" in row for row in comparison_rows(found))
    assert any("mode" in bar for bar in compare(made("a", 0.0), made("b", 0.0, "audio")).bars)


def test_barge_ins_are_no_turn_taking_in_a_comparison(tmp_path: Path) -> None:
    rows = [*trials(50, floor_s=0.2), *interruptions(60)[1::2]]
    run = make_run(tmp_path, log_of(rows, clean_seconds()))
    before = {judged.figure.title: judged.difference.before for judged in compare(run, run).figures}
    assert before["floor transfer offset p50"] == pytest.approx(200.0)
    assert before["barge-ins yielded to"] == pytest.approx(0.75)


def test_levels_of_full_duplex_users_have_their_own_latencies(tmp_path: Path) -> None:
    rows = trials(
        200,
        mode=None,
        level=lambda at: 2 if at < 100 else 4,
        floor_s=lambda at: 0.2 if at < 100 else 0.4,
        intended_at=lambda at: BEGAN + at * 0.2,
    )
    targets = tmp_path / "targets.yaml"
    targets.write_text("targets:\n  - floor_transfer_offset p50 < 300 ms\n")
    found = find(make_run(tmp_path, log_of(rows, clean_seconds(60))), str(targets))
    assert [level["latency"]["duplex_transfer_offset"]["p50_ms"] for level in found["levels"]] == pytest.approx(
        [200, 400]
    )
    assert [level["latency"]["floor_transfer_offset"] for level in found["levels"]] == [None, None]
    assert [level["outcome"] for level in found["levels"]] == ["pass", "fail"]
