"""Full-duplex sessions, end to end: the shipped locustfile against a model that knows every sample.

Truth never comes from a second VAD: the peer puts its voice at a sample of its stream, and the queries end loudly.
"""

import math
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import pytest
import soundfile

from analysis.runs import read_table
from tests.agent_peer import voice
from tests.duplex_peer import CHUNK, CHUNK_S, RATE, Role, Session, duplex_peer
from tests.locust_process import ROOT, Locust, run_dirs, run_locust, turns
from tests.once import once

TALK = str(ROOT / "locustfiles" / "talk_personaplex.py")
SPOKEN_S = 1.6  # the query
PROMPT = "You work for a 100 % fictitious \u201crepair\u201d company & your name is Farhod?"
SETTINGS = [
    "--greeting-s", "0.3", "--answer-timeout-s", "2.5", "--answer-end-s", "0.6", "--setup-timeout-s", "2.5",
    "--keep-chunks", "1", "--keep-audio", "0",
]  # fmt: skip

ROLES = {
    "answers": Role(),
    "head with its first audio": Role(head_at_handshake=False, gap_s=0.6),
    "moshi-backend": Role(handshake=b"\0" + bytes(8), before_handshake=(b"\x04{}",), gap_s=0.5),
    "slow prompts": Role(prompt_s=1.2, gap_s=0.45),
    "mute": Role(answers=lambda number: False),
    "missed the head": Role(deaf_after=3),
    "drops": Role(closes_after=40, close_code=None),
    "closes mid-session": Role(closes_after=45),
    "spoils a page": Role(spoils=(20,)),
    "bad text": Role(extras={22: (b"\x02\xff\xfe",)}),
    "unknown kinds": Role(extras={5: (b"\x03\x00", b"\x06"), 9: (b"\x09abc",)}),
    "never shakes hands": Role(never_shakes_hands=True),
    "knows no such voice": Role(knows_no_such_voice=True),
    "pauses": Role(pauses={32: 1.0}, gap_s=0.5),
    "falls silent": Role(pauses={38: 30.0}),
    "speaks early": Role(at=((1.5, 1.8),), answers=lambda number: False),
    "says mm-hm": Role(at=((1.2, 0.3),), gap_s=0.7),
    "says that it failed": Role(extras={24: (b"\x05out of memory",)}),
}
NAMES = list(ROLES)


class Done(NamedTuple):
    """A run that is over, with what its peer knows."""

    run_dir: Path
    said: str
    code: int
    turns: pd.DataFrame
    sessions: pd.DataFrame
    truth: dict[int, Session]  # by the client's port

    def of(self, name: str) -> tuple[pd.Series, pd.Series, Session]:
        """Turn, session and truth of a role."""
        port, truth = next((port, one) for port, one in self.truth.items() if one.number == NAMES.index(name))
        session = self.sessions[self.sessions["local_port"] == port].iloc[0]
        return self.turns[self.turns["session"] == session["session"]].iloc[-1], session, truth


def held_s(truth: Session, position: int) -> float:
    """How long a sample may have to wait for chunks before its own that came late; 0 on a machine that keeps up."""
    late_s = [at - number * CHUNK_S for number, at in enumerate(truth.chunk_at[: position // CHUNK + 1])]
    return max(late_s) - late_s[-1]


def behind_s(truth: Session) -> float:
    """By how much the peer's latest chunk was later than its soonest; 0 on a machine that keeps up."""
    late_s = [at - number * CHUNK_S for number, at in enumerate(truth.chunk_at)]
    return max(late_s) - min(late_s)


def recordings(folder: Path, prompt: str | None = None) -> Path:
    """A query that begins and ends with loud samples; with a prompt another one that has it."""
    folder.mkdir(parents=True)
    soundfile.write(folder / "question.wav", voice(SPOKEN_S, RATE), RATE, subtype="PCM_16")
    if prompt is not None:
        soundfile.write(folder / "service.wav", voice(SPOKEN_S, RATE), RATE, subtype="PCM_16")
        (folder / "service.txt").write_text(prompt, "utf-8")
    return folder


def talk(cwd: Path, *args: str, prompt: str | None = None) -> Locust:
    said = str(recordings(cwd / "said", prompt))
    return run_locust("-f", TALK, "--headless", "--only-summary", "--samples-dir", said, *SETTINGS, *args, cwd=cwd)


def done(cwd: Path, ran: Locust, sessions: list[Session]) -> Done:
    (run_dir,) = run_dirs(cwd)
    assert ran.process.returncode is not None
    truth = {one.client[1]: one for one in sessions}
    return Done(run_dir, ran.said, ran.process.returncode, turns(run_dir), read_table(run_dir, "sessions"), truth)


def _roles(cwd: Path) -> Done:
    with duplex_peer(lambda number: ROLES[NAMES[number % len(NAMES)]]) as peer:
        count = str(len(ROLES))
        ran = talk(cwd, "--host", peer.url, "--mode", "audio", "--iterations", count, "--concurrency", count)
        return done(cwd, ran, peer.sessions)


@pytest.fixture(scope="session")
def roles(tmp_path_factory: pytest.TempPathFactory) -> Done:
    return once(tmp_path_factory, "duplex-roles", _roles)


ANSWERING = ["answers", "head with its first audio", "moshi-backend", "slow prompts", "unknown kinds", "says mm-hm"]


def test_each_iteration_is_a_session_and_a_turn(roles: Done) -> None:
    assert len(roles.turns) == len(roles.sessions) == len(roles.truth) == len(ROLES)
    assert sorted(roles.turns["iteration"]) == list(range(len(ROLES)))
    assert set(roles.turns["mode"]) == {"audio"}
    assert set(roles.turns["protocol"]) == {"personaplex"}


@pytest.mark.parametrize("name", ANSWERING)
def test_the_transfer_is_the_peers_own(roles: Done, name: str) -> None:
    turn, _, truth = roles.of(name)
    assert turn["outcome"] == "answered", turn["error"]
    position, sent_at = truth.onsets[-1]
    user_offset = truth.user_offsets[-1]
    assert turn["user_offset_position_s"] == pytest.approx(user_offset / RATE, abs=0.002)
    assert turn["agent_onset_position_s"] == pytest.approx(position / RATE, abs=0.025)
    assert turn["stream_transfer_offset_s"] == pytest.approx((position - user_offset) / RATE, abs=0.025)
    held = held_s(truth, position)
    assert -0.04 <= turn["agent_onset_at"] - (sent_at + position % CHUNK / RATE) <= held + 0.04
    # As heard: by position, a chunk later at least, at most two, with the lag.
    later_s = turn["floor_transfer_offset_s"] - turn["stream_transfer_offset_s"] - turn["lag_s"]
    assert 0.0 <= later_s <= 2 * CHUNK_S + held + 0.04


@pytest.mark.parametrize("name", ANSWERING[:-1])  # the last one's mm-hm has text of its own
def test_text_is_timed_from_the_users_offset(roles: Done, name: str) -> None:
    turn, session, truth = roles.of(name)
    pieces = [at for at in truth.piece_at if at >= turn["user_offset_at"]]
    assert turn["tokens"] == len(pieces) == 6
    assert turn["ttft_s"] == pytest.approx(pieces[0] - turn["user_offset_at"], abs=0.03)
    assert turn["itl_s"] == pytest.approx((pieces[-1] - pieces[0]) / 5, abs=0.02)
    assert turn["tokens_per_s"] == pytest.approx(6 / turn["e2e_s"])
    assert session["first_token_at"] <= turn["first_token_at"]


@pytest.mark.parametrize("name", ANSWERING)
def test_the_answer_ends_with_its_speech_though_silence_goes_on(roles: Done, name: str) -> None:
    turn, _, truth = roles.of(name)
    spoken_s = (truth.offsets[-1] - truth.onsets[-1][0]) / RATE
    assert turn["agent_speech_s"] == pytest.approx(spoken_s, abs=0.06)
    assert turn["e2e_s"] == pytest.approx(turn["floor_transfer_offset_s"] + spoken_s, abs=0.06)
    assert bool(turn["takeover"])


def test_nothing_is_said_before_the_handshake_and_the_head_first(roles: Done) -> None:
    for truth in roles.truth.values():
        assert truth.messages_before_handshake == 0
        if truth.first_client_message:
            assert truth.first_client_message.startswith(b"\x01OggS")
            assert b"OpusHead" in truth.first_client_message


def test_both_parameters_are_sent_and_never_seed(roles: Done) -> None:
    for truth in roles.truth.values():
        assert truth.query["voice_prompt"] == ["NATF0.pt"]
        assert truth.query["text_prompt"][0].startswith("You are a wise and friendly teacher.")
        assert "seed" not in truth.query


def test_set_up_is_apart_from_everything_else(roles: Done) -> None:
    slow, slow_session, truth = roles.of("slow prompts")
    quick, quick_session, _ = roles.of("answers")
    assert slow_session["setup_s"] == pytest.approx(1.2, abs=0.15)
    assert quick_session["setup_s"] < 0.3
    assert slow_session["ready_at"] == pytest.approx(truth.handshake_at, abs=0.05)
    assert slow["floor_transfer_offset_s"] == pytest.approx(quick["floor_transfer_offset_s"], abs=0.2)


def test_first_audio_is_no_header(roles: Done) -> None:
    """OpusHead and OpusTags come with the handshake, audio for the first chunk of ours."""
    for name in ANSWERING:
        _, session, truth = roles.of(name)
        assert session["first_audio_at"] == pytest.approx(truth.first_page_at, abs=0.02)
    waits_s = [truth.first_page_at - truth.handshake_at for truth in roles.truth.values() if truth.first_page_at]
    assert max(waits_s) > 0.04  # so that a header's arrival would be found out


@pytest.mark.parametrize(
    ("name", "outcome", "kind"),
    [
        ("mute", "timed_out", "no_answer_in_time"),
        ("missed the head", "disconnected", "closed_without_audio"),
        ("drops", "disconnected", "ws_closed_1006"),
        ("knows no such voice", "disconnected", "ws_closed_1006"),
        ("closes mid-session", "disconnected", "ws_closed_1000"),
        ("spoils a page", "protocol_error", "bad_opus"),
        ("bad text", "protocol_error", "bad_text"),
        ("says that it failed", "protocol_error", "server_said_failure"),
        ("never shakes hands", "timed_out", "handshake_timeout"),
    ],
)
def test_each_failure_is_a_row_of_its_own_kind(roles: Done, name: str, outcome: str, kind: str) -> None:
    turn, _, _ = roles.of(name)
    assert (turn["outcome"], turn["error_kind"]) == (outcome, kind)
    assert turn["error"]


def test_a_server_that_drops_us_before_its_handshake_is_told_with_the_likely_cause(roles: Done) -> None:
    turn, session, _ = roles.of("knows no such voice")
    assert "voice_prompt" in turn["error"]
    assert pd.isna(session["setup_s"])
    assert session["ended_by"] == "ws_closed_1006"


def test_failures_are_those_and_no_others(roles: Done) -> None:
    failed = {"mute", "missed the head", "drops", "closes mid-session", "spoils a page", "bad text"}
    failed |= {"says that it failed", "never shakes hands", "falls silent", "knows no such voice"}
    assert {name for name in NAMES if pd.notna(roles.of(name)[0]["error_kind"])} == failed
    assert "listener" not in roles.said


def test_unknown_kinds_are_counted_and_harm_nobody(roles: Done) -> None:
    assert roles.of("unknown kinds")[1]["unknown_messages"] == 3
    assert roles.of("answers")[1]["unknown_messages"] == 0


def test_moshi_backend_is_told_by_what_it_sends(roles: Done) -> None:
    assert roles.of("moshi-backend")[1]["dialect"] == "moshi_backend"
    assert roles.of("answers")[1]["dialect"] == "personaplex"


def test_a_pause_of_the_servers_is_lag_and_no_stream_position(roles: Done) -> None:
    turn, session, truth = roles.of("pauses")
    position, _ = truth.onsets[-1]
    assert turn["stream_transfer_offset_s"] == pytest.approx((position - truth.user_offsets[-1]) / RATE, abs=0.025)
    assert session["lag_max_s"] == pytest.approx(1.0, abs=2 * CHUNK_S)
    assert session["client_stalls"] >= 1
    assert session["client_dropped_s"] > 0.5  # what had waited came in a burst


def test_a_spoiled_page_moves_nothing_that_comes_after_it(roles: Done) -> None:
    turn, session, truth = roles.of("spoils a page")
    assert turn["stream_transfer_offset_s"] == pytest.approx(
        (truth.onsets[-1][0] - truth.user_offsets[-1]) / RATE, abs=0.025
    )
    assert session["lag_max_s"] <= CHUNK_S + math.ceil((behind_s(truth) - 0.01) / CHUNK_S) * CHUNK_S  # in whole chunks


def test_a_server_that_sends_nothing_any_more_is_told_by_name(roles: Done) -> None:
    turn, session, _ = roles.of("falls silent")
    assert (turn["outcome"], turn["error_kind"]) == ("timed_out", "stopped_sending")
    assert turn["stream_transfer_offset_s"] == pytest.approx(0.4, abs=0.03)  # its answer had begun
    assert session["lag_max_s"] < 1.0  # nothing came that could have been late
    assert session["ended_by"] == "stopped_sending"


def test_an_early_answer_overlaps_and_is_negative(roles: Done) -> None:
    turn, _, truth = roles.of("speaks early")
    assert turn["outcome"] == "early"
    assert turn["stream_transfer_offset_s"] == pytest.approx(1.5 - truth.user_offsets[-1] / RATE, abs=0.03)
    assert turn["floor_transfer_offset_s"] < 0
    assert bool(turn["takeover"])


def test_a_backchannel_is_no_answer(roles: Done) -> None:
    turn, _, truth = roles.of("says mm-hm")
    assert turn["backchannels"] == 1
    assert turn["outcome"] == "answered"
    assert turn["stream_transfer_offset_s"] == pytest.approx(0.7, abs=0.03)
    assert len(truth.onsets) == 2


def test_the_session_knows_its_stream(roles: Done) -> None:
    for name in ANSWERING:
        _, session, truth = roles.of(name)
        assert session["received_s"] == pytest.approx(truth.sent * CHUNK_S, abs=3 * CHUNK_S)
        assert session["sent_s"] == pytest.approx(truth.received * CHUNK_S, abs=3 * CHUNK_S)
        assert abs(session["lag_p50_s"]) <= CHUNK_S
        assert session["interarrival_p50_s"] == pytest.approx(CHUNK_S, abs=0.005)
        assert session["local_address"] == f"127.0.0.1:{truth.client[1]}"
        assert bool(session["decoded"])


# --------------------------------------------------------------------------------------------------- other runs


def test_a_second_client_waits_behind_the_lock_and_that_is_its_set_up(tmp_path: Path) -> None:
    with duplex_peer(Role(gap_s=0.3, speech_s=0.5), sessions_at_a_time=1) as peer:
        limits = ["--setup-timeout-s", "20", "--mode", "turn_taking", "--iterations", "2", "--concurrency", "2"]
        found = done(tmp_path, talk(tmp_path, "--host", peer.url, *limits), peer.sessions)
    first, second = found.sessions.sort_values("setup_s").to_dict("records")
    assert first["setup_s"] < 0.5
    assert second["setup_s"] == pytest.approx(first["ended_at"] - second["started_at"], abs=0.5)
    assert list(found.turns["outcome"]) == ["answered"] * 2
    assert found.turns["floor_transfer_offset_s"].max() < 1.0  # the wait is in no latency


def test_throughput_waits_for_no_lock_beyond_its_time(tmp_path: Path) -> None:
    """Who still waited is cut and no failure, its wait stretches no rate, and it has a row of `sessions`."""
    with duplex_peer(Role(gap_s=0.3, speech_s=0.5), sessions_at_a_time=1) as peer:
        limits = ["--setup-timeout-s", "30", "--mode", "throughput", "--duration", "4", "--concurrency", "2"]
        found = done(tmp_path, talk(tmp_path, "--host", peer.url, *limits), peer.sessions)
    waited = found.turns[found.turns["error_kind"] == "part_ended"]
    assert list(waited["outcome"]) == ["cut"]
    assert waited["ended_at"].iloc[0] - found.turns["intended_at"].min() == pytest.approx(4.0, abs=0.5)
    assert set(found.turns["outcome"]) == {"answered", "cut"}
    assert len(found.sessions) == 2
    assert sorted(found.sessions["setup_s"].isna()) == [False, True]


def test_servers_share_the_sessions_and_have_figures_of_their_own(tmp_path: Path) -> None:
    quick, slow = Role(gap_s=0.3, speech_s=0.5), Role(gap_s=0.9, speech_s=0.5)
    with duplex_peer(quick) as one, duplex_peer(slow) as other:
        limits = ["--mode", "turn_taking", "--iterations", "4", "--concurrency", "4", "--servers", one.url, other.url]
        found = done(tmp_path, talk(tmp_path, *limits), [*one.sessions, *other.sessions])
        assert (len(one.sessions), len(other.sessions)) == (2, 2)
        hosts = {one.url.removeprefix("ws://"): 0.3, other.url.removeprefix("ws://"): 0.9}
    for host, gap_s in hosts.items():
        rows = found.turns[found.turns["host"] == host]
        assert list(rows["stream_transfer_offset_s"]) == pytest.approx([gap_s] * 2, abs=0.03)


def test_a_recording_brings_its_own_prompt_onto_the_wire(tmp_path: Path) -> None:
    with duplex_peer(Role(gap_s=0.2, speech_s=0.4)) as peer:
        limits = ["--mode", "audio", "--iterations", "2", "--concurrency", "2", "--voice-prompt", "VARM2.pt"]
        ran = talk(tmp_path, "--host", peer.url, "--text-prompt", "Be brief.", *limits, prompt=PROMPT)
        found = done(tmp_path, ran, peer.sessions)
    prompts = {}
    for turn in found.turns.to_dict("records"):
        (session,) = found.sessions[found.sessions["session"] == turn["session"]].to_dict("records")
        prompts[turn["text_name"]] = found.truth[session["local_port"]].query["text_prompt"]
    assert prompts == {"question": ["Be brief."], "service": [PROMPT]}
    assert {truth.query["voice_prompt"][0] for truth in found.truth.values()} == {"VARM2.pt"}


def test_a_session_that_is_not_decoded_is_known_by_its_text_and_its_pages(tmp_path: Path) -> None:
    with duplex_peer(Role(gap_s=0.4, speech_s=0.8)) as peer:
        limits = ["--mode", "text", "--iterations", "2", "--concurrency", "2", "--decode-share", "0"]
        found = done(tmp_path, talk(tmp_path, "--host", peer.url, *limits), peer.sessions)
    assert list(found.turns["outcome"]) == ["answered"] * 2
    for turn in found.turns.to_dict("records"):
        assert not turn["decoded"]
        assert turn["tokens"] == 6
        assert turn["ttft_s"] == pytest.approx(0.5, abs=0.15)
        assert pd.isna(turn["floor_transfer_offset_s"])
    for session in found.sessions.to_dict("records"):
        truth: Any = found.truth[session["local_port"]]
        assert session["received_s"] == pytest.approx(truth.sent * CHUNK_S, abs=3 * CHUNK_S)
        assert abs(session["lag_p50_s"]) <= CHUNK_S
        assert session["first_audio_at"] > session["ready_at"]


def test_an_interruption_is_measured_on_both_sides(tmp_path: Path) -> None:
    """This peer never yields: the stop is where its speech ends by itself, and the barge-in has its own answer."""
    with duplex_peer(Role(gap_s=1.0, speech_s=2.3)) as peer:
        limits = ["--mode", "interruption", "--iterations", "1", "--barge-in-after-s", "0.5"]
        found = done(tmp_path, talk(tmp_path, "--host", peer.url, *limits), peer.sessions)
    (truth,) = peer.sessions
    first, second = found.turns.sort_values("turn").to_dict("records")
    assert (first["barge_in"], second["barge_in"]) == (False, True)
    began_s = second["user_offset_position_s"] - SPOKEN_S
    # Half a second after the onset was heard, which is a chunk or two after its position; at a chunk's boundary.
    assert 0.5 <= began_s - truth.onsets[0][0] / RATE <= 0.5 + 3 * CHUNK_S + 0.03
    overlap_s = truth.offsets[0] / RATE - began_s
    if second["yielded"]:
        assert 0.0 <= second["time_to_silence_s"] - overlap_s <= 2 * CHUNK_S + 0.03
    assert second["stream_transfer_offset_s"] == pytest.approx(1.0, abs=0.03)
