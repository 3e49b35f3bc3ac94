"""Injected faults: read from the command line, drawn the same every time, and seen on the wire as injected."""

import asyncio
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

import numpy as np
import pytest

from gpu_server.audio_out import FORMATS
from gpu_server.faults import KINDS, Fault, InjectedCut, Toll, draw, example, parse_fault, spoil_delivery, spoil_source
from gpu_server.speech import Chunks
from gpu_server.trace import TraceRow
from tests.server_process import Server, running_server
from tests.server_wire import Answer, post

RATE = 24_000


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("delay:p=0.1,s=0.5", Fault("delay", 0.1, s=0.5)),
        ("stall:p=1,after_s=0.5,s=0.3", Fault("stall", 1.0, s=0.3, after_s=0.5)),
        ("cut:p=0.05,after_s=0.5", Fault("cut", 0.05, after_s=0.5)),
        ("error:p=0.1,status=503", Fault("error", 0.1, status=503)),
        ("silence:p=0.1,s=0.4", Fault("silence", 0.1, s=0.4)),
        ("truncate:keep=0.5,p=0.1", Fault("truncate", 0.1, keep=0.5)),
        ("garbage:p=0.1", Fault("garbage", 0.1)),
        ("refuse_json:p=0.1", Fault("refuse_json", 0.1)),
    ],
)
def test_specs_are_read(spec: str, expected: Fault) -> None:
    assert parse_fault(spec) == expected


@pytest.mark.parametrize("kind", KINDS)
def test_examples_parse(kind: str) -> None:
    assert parse_fault(example(kind)).kind == kind


@pytest.mark.parametrize(
    ("spec", "named"),
    [
        ("delya:p=1,s=1", "delya"),
        ("", "no fault"),
        ("delay", "p="),
        ("delay:p=1", "s="),
        ("delay:p=1,s=1,ms=3", "'ms'"),
        ("delay:p=often,s=1", "often"),
        ("delay:p=1.5,s=1", "p=1.5"),
        ("delay:p=nan,s=1", "p=nan"),
        ("delay:p=1,s=-1", "s=-1"),
        ("cut:p=1,after_s=0", "after_s=0"),
        ("error:p=1,status=200", "status=200"),
        ("truncate:p=1,keep=2", "keep=2"),
    ],
)
def test_a_bad_spec_is_named_in_one_line(spec: str, named: str) -> None:
    with pytest.raises(ValueError, match="fault") as caught:
        parse_fault(spec)
    assert named in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_draw_follows_from_seed_and_ordinal_alone() -> None:
    faults = [Fault("delay", 0.3), Fault("cut", 0.3)]
    first = [draw(faults, 7, ordinal) for ordinal in range(1000)]
    assert first == [draw(faults, 7, ordinal) for ordinal in range(1000)]
    assert first != [draw(faults, 8, ordinal) for ordinal in range(1000)]
    for fault in faults:
        assert 250 < sum(fault in hit for hit in first) < 350
    assert 60 < sum(len(hit) == 2 for hit in first) < 120  # independent of each other


def test_certain_and_impossible_faults() -> None:
    assert all(draw([Fault("delay", 1.0)], 0, ordinal) for ordinal in range(200))
    assert not any(draw([Fault("delay", 0.0)], 0, ordinal) for ordinal in range(200))


async def source(seconds: float, chunk: int = 960) -> Chunks:
    samples = np.arange(round(seconds * RATE)).astype(np.int16)
    for start in range(0, len(samples), chunk):
        yield samples[start : start + chunk]


def heard(chunks: Chunks) -> tuple[int, bool]:
    """Samples delivered, and whether a cut ended them."""

    async def scenario() -> tuple[int, bool]:
        samples = 0
        try:
            async for chunk in chunks:
                samples += len(chunk)
        except InjectedCut:
            return samples, True
        return samples, False

    return asyncio.run(scenario())


def test_a_cut_is_made_at_its_sample() -> None:
    toll = Toll()
    assert heard(spoil_delivery(source(1.0), [Fault("cut", 1, after_s=0.51)], toll)) == (round(0.51 * RATE), True)
    assert toll.names == "cut"


@pytest.mark.parametrize("kind", ["cut", "stall"])
def test_a_fault_the_audio_is_too_short_for_is_not_claimed(kind: str) -> None:
    toll = Toll()
    fault = Fault(kind, 1, s=30.0, after_s=2.0)
    assert heard(spoil_delivery(source(1.0), [fault], toll)) == (RATE, False)
    assert (toll.names, toll.seconds) == (None, None)


@pytest.mark.parametrize(("keep", "expected"), [(0.5, RATE // 2), (0.0, 0), (1.0, RATE), (0.333, int(0.333 * RATE))])
def test_truncation_keeps_its_share(keep: float, expected: int) -> None:
    assert heard(spoil_source(source(1.0), [Fault("truncate", 1, keep=keep)], Toll())) == (expected, False)


def test_two_faults_add_up() -> None:
    toll = Toll()
    faults = [Fault("silence", 1, s=0.25), Fault("delay", 1, s=0.02)]
    chunks = spoil_delivery(spoil_source(source(1.0), faults, toll), faults, toll)
    assert heard(chunks) == (round(1.25 * RATE), False)
    assert toll.names == "silence,delay"
    assert toll.seconds is not None
    assert toll.seconds >= 0.27


# On the wire: one server with every fault, each request's fate known from the seed before it is sent.

SPECS = {
    "delay": "delay:p=0.12,s=0.15",
    "stall": "stall:p=0.12,after_s=0.5,s=0.2",
    "cut": "cut:p=0.12,after_s=0.5",
    "error": "error:p=0.12,status=502",
    "silence": "silence:p=0.12,s=0.4",
    "truncate": "truncate:p=0.12,keep=0.25",
    "garbage": "garbage:p=0.12",
    "refuse_json": "refuse_json:p=0.12",
}
SEED = 5
REQUESTS = 70
AUDIO_S = 1.0


@dataclass(frozen=True)
class Hit:
    """A request struck by exactly one fault, or by none."""

    answer: Answer
    row: TraceRow

    @property
    def pcm(self) -> np.ndarray[tuple[int], np.dtype[np.int16]]:
        return np.frombuffer(self.answer.body, "<i2")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    faults = [part for spec in SPECS.values() for part in ("--fault", spec)]
    trace = tmp_path_factory.mktemp("faults") / "trace.jsonl"
    args = ("--engine", "tone", "--tone-seconds", str(AUDIO_S), "--fault-seed", str(SEED), *faults)
    with running_server(*args, trace=trace) as server:
        yield server


@pytest.fixture(scope="module")
def hits(server: Server) -> dict[str | None, list[Hit]]:
    """What came of each request, by the one fault the seed foretells; those with several are left out."""
    faults = [parse_fault(spec) for spec in SPECS.values()]
    answers = []
    for ordinal in range(REQUESTS):
        headers = {"X-Request-ID": f"r{ordinal}"}
        answers.append(post(server.port, "/v1/synthesize", {"text": "Hello.", "format": "pcm"}, headers))
    rows = {row["request_id"]: row for row in server.rows(REQUESTS)}
    found: dict[str | None, list[Hit]] = {}
    for ordinal, answer in enumerate(answers):
        kinds = [fault.kind for fault in draw(faults, SEED, ordinal)]
        if len(kinds) < 2:
            found.setdefault(kinds[0] if kinds else None, []).append(Hit(answer, rows[f"r{ordinal}"]))
    return found


def test_each_fault_was_met(hits: dict[str | None, list[Hit]]) -> None:
    assert set(hits) == {None, *SPECS}, "choose another SEED: this one leaves a fault untested"


def test_the_trace_names_the_fault(hits: dict[str | None, list[Hit]]) -> None:
    for kind, struck in hits.items():
        assert {hit.row["fault"] for hit in struck} == {kind}


def check(kind: str | None) -> Callable[[Callable[[Hit], None]], Callable[[dict[str | None, list[Hit]]], None]]:
    """Run a check on every request that met this fault."""

    def decorate(look: Callable[[Hit], None]) -> Callable[[dict[str | None, list[Hit]]], None]:
        def test(hits: dict[str | None, list[Hit]]) -> None:
            for hit in hits[kind]:
                look(hit)

        return test

    return decorate


@check(None)
def test_no_fault(hit: Hit) -> None:
    assert (hit.answer.status, hit.answer.whole, len(hit.pcm)) == (200, True, RATE)
    assert (hit.row["outcome"], hit.row["fault_s"]) == ("ok", None)


@check("delay")
def test_delay(hit: Hit) -> None:
    assert (hit.answer.whole, len(hit.pcm), hit.row["outcome"]) == (True, RATE, "ok")
    assert hit.row["ttfb_s"] is not None
    assert hit.row["fault_s"] is not None
    assert hit.row["ttfb_s"] >= hit.row["fault_s"] >= 0.15
    assert hit.answer.arrivals[0][0] - hit.row["received_at"] >= 0.15  # nothing at all came before


@check("stall")
def test_stall(hit: Hit) -> None:
    assert (hit.answer.whole, len(hit.pcm), hit.row["outcome"]) == (True, RATE, "ok")
    assert hit.row["fault_s"] is not None
    assert hit.row["fault_s"] >= 0.2
    # 13 chunks of 40 ms go at once: the first that begins past 0.5 s waits, and with it all bytes beyond.
    read = accumulate(len(data) for _, data in hit.answer.arrivals)
    beyond_at = next(at for (at, _), size in zip(hit.answer.arrivals, read, strict=True) if size > 2 * 0.54 * RATE)
    assert beyond_at >= (hit.row["first_audio_at"] or 0) + 0.2


@check("cut")
def test_cut(hit: Hit) -> None:
    assert (hit.answer.status, hit.answer.whole) == (200, False)
    assert len(hit.pcm) == RATE // 2
    assert (hit.row["outcome"], hit.row["audio_s"], hit.row["status"]) == ("failed", 0.5, 200)


@check("error")
def test_error(hit: Hit) -> None:
    assert (hit.answer.status, hit.row["status"], hit.row["outcome"]) == (502, 502, "failed")
    assert "injected" in json.loads(hit.answer.body)["error"]["message"]


@check("silence")
def test_silence(hit: Hit) -> None:
    silent = round(0.4 * RATE)
    assert len(hit.pcm) == RATE + silent
    assert not hit.pcm[:silent].any()
    assert hit.pcm[silent] != 0
    assert (hit.row["outcome"], hit.row["fault_s"]) == ("ok", 0.4)


@check("truncate")
def test_truncate(hit: Hit) -> None:
    assert (hit.answer.status, hit.answer.whole, len(hit.pcm)) == (200, True, RATE // 4)
    assert (hit.row["outcome"], hit.row["audio_s"]) == ("ok", 0.25)


@check("garbage")
def test_garbage(hit: Hit) -> None:
    assert (hit.answer.status, hit.answer.whole) == (200, True)
    assert hit.answer.headers["content-type"].startswith("text/html")
    assert hit.answer.body.startswith(b"<html")
    assert (hit.row["outcome"], hit.row["status"], hit.row["audio_s"]) == ("failed", 200, 0)


@check("refuse_json")
def test_refuse_json(hit: Hit) -> None:
    assert (hit.answer.status, hit.answer.headers["content-type"]) == (200, "application/json")
    body = json.loads(hit.answer.body)
    assert body["success"] is False
    assert body["error"]
    assert hit.row["outcome"] == "failed"


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("name", FORMATS)
def test_a_cut_is_a_cut_in_every_format(cutting: Server, name: str, stream: bool) -> None:
    """Also in one that has not yet written anything after 50 ms of audio."""
    request_id = f"cut-{name}-{stream}"
    body = {"text": "x", "format": name, "stream": stream}
    answer = post(cutting.port, "/v1/synthesize", body, {"X-Request-ID": request_id})
    assert (answer.status, answer.whole) == (200, False)
    assert answer.body
    row = cutting.row(request_id)
    assert (row["outcome"], row["status"], row["fault"], row["audio_s"]) == ("failed", 200, "cut", 0.05)


@pytest.fixture(scope="module")
def cutting(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    trace = tmp_path_factory.mktemp("cutting") / "trace.jsonl"
    with running_server("--engine", "tone", "--fault", "cut:p=1,after_s=0.05", trace=trace) as server:
        yield server


def test_a_stall_interrupts_a_paced_stream_and_the_pace_then_catches_up(tmp_path: Path) -> None:
    """The stall comes after pacing: the whole ends no later than it would have, or s after the hole began."""
    args = ("--engine", "tone", "--tone-seconds", "1", "--pace", "0,1", "--fault", "stall:p=1,after_s=0.2,s=0.1")
    with running_server(*args, trace=tmp_path / "trace.jsonl") as server:
        answer = post(server.port, "/v1/synthesize", {"text": "x", "format": "pcm"})
        row = server.rows(1)[0]
    assert answer.whole
    assert len(answer.body) == 2 * RATE
    assert row["fault"] == "stall"
    assert row["first_audio_at"] is not None
    assert row["finished_at"] - row["first_audio_at"] >= 0.9
