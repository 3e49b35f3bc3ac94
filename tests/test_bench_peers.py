"""The benchmarks' agent peers tell the truth about what they heard and said: in C and in Python alike."""

import json
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import websocket

from benchmarks import call_truth, voice
from benchmarks.peers import starting
from benchmarks.peers.messages import cycle_of
from benchmarks.sessions import between

CHUNK_S = 0.02


def test_made_voices_begin_and_end_loud() -> None:
    clip = voice.clip(1.0, 500, 300)
    loud = np.flatnonzero(np.abs(clip.samples) >= 0.9 * voice.PEAK)
    assert (loud[0], loud[-1] + 1) == (clip.onset, clip.offset) == (500, len(clip.samples) - 300)


@pytest.mark.parametrize(("share", "calls"), [(0.6, 300.0), (0.5, 250.0), (0.9, 450.0)])
def test_calls_at_a_share_lie_between_the_levels(share: float, calls: float) -> None:
    assert between([(0.2, 100), (0.4, 200), (0.8, 400)], share) == pytest.approx(calls)


def test_no_calls_are_guessed_far_from_the_levels() -> None:
    levels = [(0.2, 100), (0.4, 200)]
    assert between(levels, 0.1) is None
    assert between(levels, 0.8) is None


@pytest.mark.parametrize("made_of", ["C", "Python"])
def test_a_peer_notes_both_ends_of_a_turn(made_of: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if made_of == "Python":
        monkeypatch.setattr(starting, "built", lambda *_: None)
    stalling = ("--stall-ms", "100", "--stall-after-s", "0.2", "--stall-share", "1")
    clip = voice.clip(0.3, 0, 0)
    with starting.agent_peer(tmp_path, *stalling, says=voice.voiced(0.4)) as peer:
        if peer.made_of != made_of:
            pytest.skip("no C compiler")
        call = websocket.create_connection(f"{peer.ws_url}/ws/one-call", timeout=10)
        begin_at = time.monotonic()
        sent_at = []
        for number, message in enumerate(cycle_of(clip.samples.tobytes(), 2.0)):
            time.sleep(max(0.0, begin_at + number * CHUNK_S - time.monotonic()))
            sent_at.append(time.monotonic())
            call.send_binary(message)
        while peer.figures()["answers"] < 1 or not peer.trace.read_text():
            call.send_binary(message)  # quiet
            time.sleep(CHUNK_S)
        call.close()
        turns = call_truth.told(peer.trace)
        notes = json.loads(peer.trace.read_text().splitlines()[0])
    [turn] = turns.to_dict("records")
    last = (clip.offset - 1) // 320
    assert notes["stream"] == "one-call"
    assert notes["user_end"] == clip.offset - last * 320
    assert turn["user_recv_ns"] / 1e9 >= sent_at[last]
    assert turn["user_recv_ns"] <= turn["user_read_ns"] <= turn["onset_write_ns"]
    assert turn["stall_true_s"] >= 0.08
    assert abs(turn["held_up_s"]) < 0.08, "what was asked for is not its own lateness"
    assert 0 <= turn["onset_at"] < 320


def test_rows_are_joined_to_the_turn_of_their_stream(tmp_path: Path) -> None:
    note = {"turn": 0, "user_chunk": 320, "user_end": 160, "onset_at": 32, "stalled": 0, "onset_late_us": 0}
    note |= {"stall_before_ns": 0, "stall_after_ns": 0, "latest_before_us": 0, "latest_us": 0, "stall_ms": 0}
    lines = [
        note | {"stream": stream, "user_recv_ns": int(at * 1e9), "onset_write_ns": int((at + 0.5) * 1e9)}
        for stream, at in (("a", 10.0), ("b", 10.0), ("a", 18.0))
    ]
    trace = tmp_path / "trace.jsonl"
    trace.write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"stream": "c"')  # not yet whole
    rows = pd.DataFrame(
        {
            "stream_id": ["a", "a", "c"],
            "user_offset_at": [9.99, 17.99, 10.0],
            "agent_onset_at": [10.503, 18.502, 10.5],
            "floor_transfer_offset_s": [0.513, 0.512, 0.5],
        }
    )
    met = call_truth.joined(rows, trace)
    assert met["stream_id"].tolist() == ["a", "a"]
    assert met["error_s"].tolist() == pytest.approx([0.001, 0.0], abs=1e-9)
