"""What full-duplex sessions of a worker share: recordings, and decoders that go with their session."""

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import soundfile

from tests.agent_peer import voice
from workers.clients.inbox import Arrival
from workers.clients.switchboard import switchboard
from workers.duplex_calling import DuplexCalling
from workers.events import Compressed
from workers.settings import build


@pytest.fixture
def calling(tmp_path: Path) -> Iterator[DuplexCalling]:
    for name, seconds in (("order", 0.6), ("service", 0.8)):
        soundfile.write(tmp_path / f"{name}.wav", voice(seconds, 24_000), 24_000, subtype="PCM_16")
    (tmp_path / "service.txt").write_text("Be brief.")
    made = DuplexCalling(build({"samples_dir": str(tmp_path)}), ["ws://127.0.0.1:1"], None, switchboard(), "w")
    yield made
    made.close()


def test_a_query_of_any_recording_can_be_named(calling: DuplexCalling) -> None:
    assert [query.name for _, query in calling.queries] == ["order", "service"]
    for _, query in calling.queries:
        assert calling.repertoire.named(query.name) is query
    assert [script.prompt == "Be brief." for script, _ in calling.queries] == [False, True]


@pytest.mark.parametrize("up", [True, False])
def test_what_comes_for_a_session_that_is_over_makes_no_decoder_again(calling: DuplexCalling, up: bool) -> None:
    asked: list[Any] = []
    calling.ear.ask = lambda verb, arguments, then: asked.append((verb, arguments))  # type: ignore[method-assign]
    session: Any = SimpleNamespace(up=up, decoded=True, stream=7, asked_of_ear=0, answered_by_ear=0)
    calling.take(session, [(Compressed(b"OggS"), Arrival(1.0, 1.0))])
    assert asked == ([("opus", [[(7, [b"OggS"])]])] if up else [])
