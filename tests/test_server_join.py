"""Server rows beside client turns: who meets whom, and what is left between the two."""

import json
import random
import re
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from run_maker import (
    MONOTONIC_AT,
    RUN,
    WALL_AT,
    agent_log,
    calls,
    clean_seconds,
    facts,
    log_of,
    make_run,
    spoken,
    turns,
)

from analysis.counting import count
from analysis.report import main, report
from analysis.runs import Run, open_run, read_table
from analysis.server_join import Joined, import_server_log, import_trace, join
from analysis.server_sources import ForeignTrace, Source, sources
from analysis.turn_join import Heard, join_turns


def header(**given: Any) -> dict[str, Any]:
    return {
        "cicada_trace": 1,
        "server": "gpu_server",
        "engine": "tone",
        "pid": 9,
        "host": "box-a",
        "wall_at": WALL_AT,
        "monotonic_at": MONOTONIC_AT,
        **given,
    }


def served(turn: dict[str, Any], **given: Any) -> dict[str, Any]:
    """What the server says of a turn: 1 ms to get there, 10 ms in the queue, 3 ms for the first audio to get back."""
    received = turn["sent_at"] + 0.001
    first = turn["first_chunk_at"] - 0.003
    return {
        "request_id": turn["request_id"],
        "route": "/v1/audio/speech",
        "received_at": received,
        "admitted_at": received + 0.010,
        "first_audio_at": first,
        "finished_at": turn["last_chunk_at"],
        "queue_wait_s": 0.010,
        "ttfb_s": first - received,
        "audio_s": turn["audio_s"],
        "characters": turn["text_chars"],
        "voice": turn["voice"],
        "format": "wav",
        "outcome": "ok",
        "status": 200,
        "fault": None,
        "fault_s": None,
        **given,
    }


def trace(path: Path, *records: dict[str, Any], tail: str = "") -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records) + tail)
    return path


def joined(run: Run) -> Joined:
    again = replace(run, server=read_table(run.path, "server"))
    found = join(again, count(again.turns))
    assert found is not None
    return found


@pytest.fixture
def made() -> list[dict[str, Any]]:
    return turns(100, 25, ttfc_s=lambda at: 0.1 + at / 1000, late_s=0.002)


@pytest.fixture
def run(tmp_path: Path, made: list[dict[str, Any]]) -> Run:
    return open_run(make_run(tmp_path, log_of(made, clean_seconds())))


def test_figures_of_joined_rows_are_exact(tmp_path: Path, run: Run, made: list[dict[str, Any]]) -> None:
    path = trace(tmp_path / "trace.jsonl", header(), *map(served, made))
    figures = report(run.path, [path])["server"]["figures"]

    def p50(name: str) -> float:
        return figures[name]["quantiles"]["p50"]["value"]

    assert p50("client_ttfc_ms") == pytest.approx(149.5)
    assert p50("server_ttfb_ms") == pytest.approx(149.5 - 2 - 1 - 3)
    assert p50("server_queue_wait_ms") == pytest.approx(10.0)
    assert p50("rest_ms") == pytest.approx(6.0)
    assert p50("before_server_ms") == pytest.approx(3.0)
    assert p50("after_server_ms") == pytest.approx(3.0)
    assert figures["server_ttfb_ms"]["quantiles"]["p95"]["value"] == pytest.approx(100 + 94.05 - 6)


def test_rows_that_meet_nobody_are_counted(tmp_path: Path, run: Run, made: list[dict[str, Any]]) -> None:
    rows = [served(turn) for turn in made[:90]]
    strangers = [served(made[0], request_id=name) for name in ("other.1", None, f"{RUN}-2.0.1", f"{RUN}x")]
    lost = served(made[0], request_id=f"{RUN}.0.999")
    path = trace(tmp_path / "t.jsonl", header(), *rows, *strangers, lost, rows[3], tail='{"request_id": "torn')

    source = import_trace(run, path)
    found = joined(run)

    assert (source.rows, source.other_runs, source.bad_lines, source.host) == (92, 4, 1, "box-a")
    assert (found.joined, found.only_client, found.only_server, found.repeated) == (90, 10, 1, 1)


def test_turns_that_never_reached_the_wire_are_not_missed(tmp_path: Path) -> None:
    rows = [*turns(5), *turns(1, outcome="refused", error_kind="connection_refused", sent_at=None, session="s9")]
    run = open_run(make_run(tmp_path, log_of(rows)))
    import_trace(run, trace(tmp_path / "t.jsonl", header(), *map(served, rows[:5])))
    assert joined(run).only_client == 0


def test_figures_are_of_measured_successes_only(tmp_path: Path) -> None:
    rows = turns(
        60,
        phase=lambda at: "warm_up" if at < 20 else "measured",
        error_kind=lambda at: "too_short" if at == 30 else None,
    )
    run = open_run(make_run(tmp_path, log_of(rows)))
    import_trace(run, trace(tmp_path / "t.jsonl", header(), *map(served, rows)))
    found = joined(run)
    assert (found.joined, len(found.rows)) == (60, 39)


def test_instants_are_not_compared_across_clocks(tmp_path: Path, run: Run, made: list[dict[str, Any]]) -> None:
    import_trace(run, trace(tmp_path / "far.jsonl", header(host="box-b"), *map(served, made)))
    found = joined(run)
    assert not found.one_clock
    assert "before_server_s" not in found.rows
    assert found.rows["rest_s"].tolist() == pytest.approx([0.006] * 100)


def test_a_namesake_with_another_clock_is_found_out(tmp_path: Path, run: Run, made: list[dict[str, Any]]) -> None:
    shifted = [
        {key: value - 1000 if key.endswith("_at") else value for key, value in served(turn).items()} for turn in made
    ]
    import_trace(run, trace(tmp_path / "t.jsonl", header(), *shifted))
    assert not joined(run).one_clock


def test_importing_again_changes_nothing_and_two_traces_stand_side_by_side(
    tmp_path: Path, run: Run, made: list[dict[str, Any]]
) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    first = trace(tmp_path / "a" / "trace.jsonl", header(), *map(served, made[:50]))
    second = trace(tmp_path / "b" / "trace.jsonl", header(), *map(served, made[50:]))
    for path in (first, second, first):
        import_trace(run, path)
    assert len(sources(run)) == 2
    assert joined(run).joined == 100


def test_imported_rows_are_there_without_the_trace(tmp_path: Path, run: Run, made: list[dict[str, Any]]) -> None:
    path = trace(tmp_path / "t.jsonl", header(), *map(served, made))
    report(run.path, [path])
    path.unlink()
    assert report(run.path)["server"]["joined"] == 100


def test_without_a_trace_there_is_nothing_to_join(run: Run) -> None:
    assert join(run, count(run.turns)) is None
    assert report(run.path)["server"] is None


@pytest.mark.parametrize("content", ["", "hello\n", '{"a": 1}\n', "\x00\x01"])
def test_a_foreign_file_is_refused(tmp_path: Path, run: Run, content: str) -> None:
    path = tmp_path / "access.log"
    path.write_text(content)
    with pytest.raises(ForeignTrace, match="is not a trace"):
        import_trace(run, path)
    with pytest.raises(ForeignTrace, match="directory"):
        import_trace(run, tmp_path)
    with pytest.raises(FileNotFoundError):
        import_trace(run, tmp_path / "gone.jsonl")


def test_a_row_of_wrong_types_is_refused_in_words(tmp_path: Path, run: Run, made: list[dict[str, Any]]) -> None:
    path = trace(tmp_path / "t.jsonl", header(), served(made[0], received_at="noon"))
    with pytest.raises(ForeignTrace, match="received_at is no double"):
        import_trace(run, path)


def test_workers_of_two_hosts_share_no_clock_with_the_server(tmp_path: Path) -> None:
    logs = {
        "w0": log_of(turns(3)),
        "w1": log_of(turns(3, worker="w1"), worker=facts("w1", host="box-b", boot_id="boot-b")),
    }
    run = open_run(make_run(tmp_path, logs))
    import_trace(run, trace(tmp_path / "t.jsonl", header(), *map(served, turns(3))))
    assert not joined(run).one_clock


# ------------------------------------------------------------------------------------------- a voice agent's own log


def heard(run: Run) -> Heard:
    found = join_turns(replace(run, server=read_table(run.path, "server")))
    assert found is not None
    return found


def beside_log(tmp_path: Path, rows: list[dict[str, Any]], text: str) -> tuple[Source, Heard]:
    run = open_run(make_run(tmp_path, log_of(rows)))
    path = tmp_path / "bot.log"
    path.write_text(text)
    return import_server_log(run, path), heard(run)


def assert_all_joined(found: Heard, rows: list[dict[str, Any]], greetings: int) -> None:
    answered = [row for row in rows if row["outcome"] in ("answered", "early")]
    assert (found.joined, found.greeting, found.unplaced) == (8 * len(answered), greetings, 0)
    assert found.unknown == {}
    stages = found.stages.dropna(subset="llm_ttfb_s")
    assert len(stages) == len(answered)
    for column, value in {
        "asr_s": 0.1,
        "asr_with_wait_s": 0.3,
        "llm_ttfb_s": 0.15,
        "llm_first_sentence_s": 0.2,
        "tts_ttfb_s": 0.2,
    }.items():
        assert stages[column].tolist() == pytest.approx([value] * len(answered)), column


@pytest.mark.parametrize("apart_s", [0.0, 3_600.0, -12_600.0, 20_700.0, 7_203.4, 400.0])
def test_a_log_with_stream_ids_is_joined_whatever_its_clock(tmp_path: Path, apart_s: float) -> None:
    rows = calls(6, 4)
    source, found = beside_log(tmp_path, rows, agent_log(rows, apart_s=apart_s))
    assert_all_joined(found, rows, 6)
    assert source.offset_s == pytest.approx(apart_s, abs=0.01)
    assert (source.rows, source.other_runs, source.bad_lines, source.kind) == (8 * 24 + 6, 0, 0, "log")


@pytest.mark.parametrize("apart_s", [0.0, 3_600.0, -12_600.0])
def test_a_log_without_stream_ids_is_joined_in_order_of_connection(tmp_path: Path, apart_s: float) -> None:
    rows = calls(6, 4)
    _, found = beside_log(tmp_path, rows, agent_log(rows, named=False, apart_s=apart_s))
    assert_all_joined(found, rows, 6)
    for _, figure in found.figures.iterrows():
        assert str(figure["stream_id"]).endswith(f"s{str(figure['instance']).rpartition('#')[2]}")


@pytest.mark.parametrize("named", [True, False])
def test_a_log_of_figures_alone_is_joined_too(tmp_path: Path, named: bool) -> None:
    rows = calls(3, 4, apart_s=6.0)
    _, found = beside_log(tmp_path, rows, agent_log(rows, named=named, connections=False, apart_s=-3_600.0))
    assert_all_joined(found, rows, 3)


def test_a_compose_log_of_turns_with_failures_is_joined(tmp_path: Path) -> None:
    rows = [*calls(4, 4), spoken(session="s1", turn=4, outcome="timed_out", intended_at=MONOTONIC_AT + 50.0)]
    source, found = beside_log(tmp_path, rows, agent_log(rows, prefix="app-1  | ") + "app-1  | torn")
    assert_all_joined(found, rows, 4)
    assert source.bad_lines == 1


@pytest.mark.parametrize("named", [True, False])
def test_an_earlier_and_a_later_run_in_the_log_are_left_out(tmp_path: Path, named: bool) -> None:
    rows = calls(5, 4)
    other = [{**row, "stream_id": f"other-{row['stream_id']}"} for row in rows]
    earlier = agent_log(other, named=named, apart_s=3_600.0 - 700.0)
    later = agent_log(other, named=named, apart_s=3_600.0 + 500.0)
    begun = "INFO:     Started server process [7]\n"
    text = begun + earlier + begun + agent_log(rows, named=named, apart_s=3_600.0) + begun + later
    source, found = beside_log(tmp_path, rows, text)
    assert_all_joined(found, rows, 5)
    assert source.other_runs == 2 * (8 * 20 + 5)


def test_a_stream_id_used_again_is_told_apart_by_time(tmp_path: Path) -> None:
    rows = calls(5, 4)
    source, found = beside_log(tmp_path, rows, agent_log(rows, apart_s=-1_000.0) + agent_log(rows))
    assert_all_joined(found, rows, 5)
    assert source.other_runs == 8 * 20 + 5


def test_instances_that_fit_no_call_are_named(tmp_path: Path) -> None:
    rows = calls(3, 2)
    extra = [spoken(session="other", stream_id="other", intended_at=MONOTONIC_AT + 13.0)]
    source, found = beside_log(tmp_path, rows, agent_log([*rows, *extra], named=False))
    assert found.unknown == {"its connection fits none of the run's": 9}
    assert (source.rows, found.joined) == (8 * 6 + 3, 8 * 6)


def test_the_call_that_became_the_answer_counts(tmp_path: Path) -> None:
    """The agent took a pause for the end: its first LLM call was thrown away. And a second sentence is spoken later."""
    rows = calls(1, 1, floor_s=1.0)
    at = rows[0]["user_offset_at"]
    text = agent_log(rows, greeting=False)
    extra = ((-0.9, "NvidiaLLMService#0 TTFB: 0.77s"), (-0.7, "NemotronTTSService#0 TTFB: 0.66s"))
    extra += ((1.6, "NemotronTTSService#0 TTFB: 0.55s"), (1.7, "NvidiaLLMService#0 TTFB: 0.44s"))
    for after, words in extra:
        wall = datetime.fromtimestamp(at + after - MONOTONIC_AT + WALL_AT, UTC)
        text += f"{wall:%Y-%m-%d %H:%M:%S.%f} | DEBUG | m:f:1 | streamId={rows[0]['stream_id']} - {words}\n"
    _, found = beside_log(tmp_path, rows, text)
    assert found.joined == 12
    assert found.stages["llm_ttfb_s"].tolist() == [0.15]
    assert found.stages["tts_ttfb_s"].tolist() == [0.2]


def test_figures_without_a_time_are_joined_in_order(tmp_path: Path) -> None:
    rows = calls(2, 3)
    timeless = [re.sub(r"^\d{4}-\S+ \S+ ", "", text) + "\n" for text in agent_log(rows).splitlines()]
    _, found = beside_log(tmp_path, rows, "".join(timeless))
    assert (found.joined, found.unplaced) == (8 * 6, 2)  # of no turn: the greetings
    assert found.stages["llm_ttfb_s"].tolist() == [0.15] * 6


@pytest.mark.parametrize("named", [True, False])
def test_a_spoilt_log_is_joined_as_far_as_it_goes(tmp_path: Path, named: bool) -> None:
    rows = calls(4, 4)
    run = open_run(make_run(tmp_path, log_of(rows)))
    draw, whole, path = random.Random(5), agent_log(rows, named=named).encode(), tmp_path / "bot.log"
    for _ in range(10):
        spoilt = bytearray(whole)
        for _ in range(40):
            spoilt[draw.randrange(len(spoilt))] = draw.choice(b"\n\0\xff#9:. s-|\x1b")
        path.write_bytes(spoilt)
        import_server_log(run, path)
        found = heard(run)
        assert 0 < found.joined + sum(found.unknown.values()) <= 8 * 16


def test_in_band_figures_stand_by_stream_and_turn(tmp_path: Path) -> None:
    rows = calls(2, 2)
    run = open_run(make_run(tmp_path, log_of(rows)))
    told = [
        {
            "run": RUN,
            "source": "in-band",
            "stream_id": row["stream_id"],
            "session": row["session"],
            "turn": row["turn"],
            "component": component,
            "metric": "ttfb",
            "value_s": value,
            "at": WALL_AT,
        }
        for row in rows
        for component, value in (("asr", 0.3), ("llm", 0.2), ("tts", 0.15))
    ]
    found = join_turns(replace(run, server=pd.DataFrame(told, columns=list(read_table(run.path, "server")))))
    assert found is not None
    assert (found.kind, found.joined) == ("in-band", 12)
    assert found.stages["llm_ttfb_s"].tolist() == [0.2] * 4
    assert found.stages["asr_with_wait_s"].tolist() == [0.3] * 4
    assert found.stages["asr_s"].isna().all()  # pipecat's TTFB of recognition holds the wait: no compute latency


def test_a_voice_agents_log_beside_requests_alone_is_refused(tmp_path: Path, run: Run) -> None:
    (tmp_path / "bot.log").write_text(agent_log(calls(2, 2)))
    with pytest.raises(ForeignTrace, match="has no conversations"):
        import_server_log(run, tmp_path / "bot.log")


def test_a_log_of_another_day_joins_nothing_and_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = calls(4, 4)
    run = make_run(tmp_path, log_of(rows))
    others = [{**row, "stream_id": f"other-{row['stream_id']}"} for row in rows]
    (tmp_path / "bot.log").write_text(agent_log(others, apart_s=-1e6))
    assert main([str(run), "--server-log", str(tmp_path / "bot.log")]) == 0
    words = " ".join(capsys.readouterr().out.split())
    assert "None of its figures is this run's" in words
    assert "132 of other runs" in words


def test_neither_trace_nor_log_is_refused(tmp_path: Path, run: Run) -> None:
    for name, content in (("empty.log", ""), ("photo.log", "\x00\x01"), ("access.log", "GET / 200\n")):
        (tmp_path / name).write_text(content)
        with pytest.raises(ForeignTrace, match=name):
            import_server_log(run, tmp_path / name)
    with pytest.raises(ForeignTrace, match="directory"):
        import_server_log(run, tmp_path)


# ------------------------------------------------------------------------------------------ the bundled agent's trace


def agent_turn(row: dict[str, Any], number: int, **given: Any) -> dict[str, Any]:
    """What the bundled agent says of a turn: 20 ms to get there, 200 of silence, then 100, 150, 50, 200 and 10 ms."""
    received = row["user_offset_at"] + 0.020
    ends = received + 0.2
    return {
        "stream_id": row["stream_id"],
        "agent_turn": number,
        "user_last_voiced_received_at": received,
        "end_of_speech_at": ends,
        "transcript_at": ends + 0.1,
        "first_token_at": ends + 0.25,
        "first_sentence_at": ends + 0.3,
        "tts_first_audio_at": ends + 0.5,
        "first_audio_at": ends + 0.51,
        "last_audio_at": ends + 2.5,
        "finished_at": ends + 3.0,
        "interrupted_at": None,
        "asr_s": 0.1,
        "llm_ttfb_s": 0.15,
        "llm_first_sentence_s": 0.2,
        "tts_ttfb_s": 0.2,
        "tokens": 20,
        "processing_s": 0.4,
        "transcript": "hello",
        "audio_s": 2.0,
        "outcome": "ok",
        "fault": None,
        "fault_s": None,
        **given,
    }


def agent_trace(tmp_path: Path, rows: list[dict[str, Any]], **of_header: Any) -> Path:
    greetings = [
        agent_turn(row, -1, **dict.fromkeys(("user_last_voiced_received_at", "end_of_speech_at"), None))
        | dict.fromkeys(("first_audio_at", "tts_first_audio_at", "finished_at"), row["intended_at"] - 1.0)
        for row in rows
        if row["turn"] == 0
    ]
    stranger = agent_turn(rows[0], 0, stream_id="stranger")
    told = [agent_turn(row, row["turn"]) for row in rows]
    return trace(tmp_path / "agent.jsonl", header(**of_header), *greetings, *told, stranger, tail='{"stream_id": "torn')


def test_turns_of_the_bundled_agent_are_joined(tmp_path: Path) -> None:
    rows = calls(3, 4, floor_s=0.75)
    run = open_run(make_run(tmp_path, log_of(rows)))
    source = import_server_log(run, agent_trace(tmp_path, rows))
    found = heard(run)
    assert (source.kind, source.rows, source.other_runs, source.bad_lines) == ("trace", 15, 1, 1)
    assert (found.kind, found.one_clock, found.unplaced) == ("trace", True, 0)
    assert found.stages["llm_ttfb_s"].tolist() == pytest.approx([0.15] * 12)
    assert found.stages["end_of_speech_at"].tolist() == pytest.approx([row["user_offset_at"] + 0.22 for row in rows])
    assert join(run, count(run.turns)) is None  # there were no requests


def test_of_several_agent_turns_the_one_that_was_heard_counts(tmp_path: Path) -> None:
    rows = calls(1, 1, floor_s=0.75)
    run = open_run(make_run(tmp_path, log_of(rows)))
    hasty = {**rows[0], "user_offset_at": rows[0]["user_offset_at"] - 1.0}
    path = trace(tmp_path / "t.jsonl", header(), agent_turn(hasty, 0, llm_ttfb_s=0.9), agent_turn(rows[0], 1))
    import_server_log(run, path)
    assert heard(run).stages["llm_ttfb_s"].tolist() == [0.15]


def test_the_agents_instants_are_not_compared_across_hosts(tmp_path: Path) -> None:
    rows = calls(2, 3, floor_s=0.75)
    run = open_run(make_run(tmp_path, log_of(rows)))
    import_server_log(run, agent_trace(tmp_path, rows, host="box-b"))
    found = heard(run)
    assert not found.one_clock
    assert found.stages["asr_s"].tolist() == pytest.approx([0.1] * 6)


@pytest.mark.parametrize("make", [agent_log, None], ids=["log", "trace"])
def test_what_two_captures_both_hold_counts_once(tmp_path: Path, make: Any) -> None:
    rows = calls(3, 4, floor_s=0.75)
    run = open_run(make_run(tmp_path, log_of(rows)))
    text = agent_log(rows) if make else agent_trace(tmp_path, rows).read_text()
    lines = text.splitlines(keepends=True)
    (tmp_path / "first").write_text("".join(lines[: len(lines) * 2 // 3]))
    (tmp_path / "second").write_text(text)
    import_server_log(run, tmp_path / "second")
    alone = heard(run).joined
    import_server_log(run, tmp_path / "first")
    assert len(sources(run)) == 2
    assert heard(run).joined == alone


def test_a_trace_is_believed_before_a_log(tmp_path: Path) -> None:
    rows = calls(2, 3, floor_s=0.75)
    run = open_run(make_run(tmp_path, log_of(rows)))
    (tmp_path / "bot.log").write_text(agent_log(rows))
    import_server_log(run, tmp_path / "bot.log")
    assert heard(run).kind == "log"
    import_server_log(run, agent_trace(tmp_path, rows))
    assert heard(run).kind == "trace"
    assert len(sources(run)) == 2
