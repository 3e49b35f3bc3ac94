"""What users say to full-duplex models: where queries end, what is refused, what is downloaded and what is not."""

import hashlib
import http.server
import os
import shutil
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import psutil
import pytest
import soundfile

from workers import recordings
from workers.recordings import Recording, RecordingError

ROOT = Path(__file__).resolve().parent.parent
SAMPLES = ROOT.parent / "shared" / "samples" / "personaplex"
RATE = 24_000

Floats = npt.NDArray[np.float64]
T = TypeVar("T")

needs_samples = pytest.mark.skipif(not SAMPLES.is_dir(), reason="NVIDIA's recordings are not here")


def quiet(seconds: float, rate: int = RATE) -> Floats:
    return np.zeros(round(seconds * rate))


def voice(seconds: float, rate: int = RATE, peak: float = 0.5) -> Floats:
    return np.asarray(peak * np.cos(2 * np.pi * 200 * np.arange(round(seconds * rate)) / rate))


def spoken(rate: int = RATE, length_s: float = 4.0) -> Floats:
    """Voice in 1-2 s."""
    return np.concatenate([quiet(1, rate), voice(1, rate), quiet(length_s - 2, rate)])


def wav(path: Path, samples: Floats, rate: int = RATE, subtype: str = "PCM_16") -> Path:
    soundfile.write(path, samples, rate, subtype, format="WAV")
    return path


def with_78_byte_header(path: Path) -> None:
    data = (spoken() * 32767).astype("<i2").tobytes()
    tags = b"INFOISFT" + struct.pack("<I", 14) + b"Lavf60.16.100\0"
    chunks = b"fmt " + struct.pack("<IHHIIHH", 16, 1, 1, RATE, 2 * RATE, 2, 16)
    chunks += b"LIST" + struct.pack("<I", len(tags)) + tags + b"data" + struct.pack("<I", len(data))
    header = b"RIFF" + struct.pack("<I", 4 + len(chunks) + len(data)) + b"WAVE" + chunks
    assert len(header) == 78
    path.write_bytes(header + data)


def only(found: Sequence[T]) -> T:
    assert len(found) == 1
    return found[0]


# ---- NVIDIA's recordings, whose truth is known


@needs_samples
def test_the_official_recordings_are_cut_where_their_speech_is() -> None:
    assistant, service = recordings.load(SAMPLES)
    assert (assistant.name, assistant.prompt, assistant.source) == ("input_assistant", None, "official")
    assert (service.name, service.source) == ("input_service", "official")
    assert service.prompt == (SAMPLES / "prompt_service.txt").read_text()
    assert service.prompt.startswith("You work for SwiftPlex Appliances")
    for found, truth in ((assistant, [(3.26, 7.66), (21.74, 26.00)]), (service, [(5.18, 8.34)])):
        assert found.offsets_s == pytest.approx([offset for _, offset in truth], abs=0.040)
        onsets = [
            offset_s - query.offset_s + query.onset_s
            for query, offset_s in zip(found.queries, found.offsets_s, strict=True)
        ]
        assert onsets == pytest.approx([onset for onset, _ in truth], abs=0.040)


@needs_samples
def test_official_queries_are_the_bytes_of_the_file() -> None:
    for recording in recordings.load(SAMPLES):
        data = np.frombuffer((SAMPLES / f"{recording.name}.wav").read_bytes()[78:], "<i2")
        for query, offset_s in zip(recording.queries, recording.offsets_s, strict=True):
            end = round(offset_s * RATE)
            assert query.rate == RATE
            assert query.samples.dtype == np.int16
            assert query.offset_s == len(query.samples) / RATE
            assert np.array_equal(query.samples, data[end - len(query.samples) : end])


@needs_samples
def test_the_official_recordings_are_taken_from_a_server_and_kept(tmp_path: Path) -> None:
    with serving(SAMPLES) as official:
        found = recordings.choose(str(tmp_path), say=lambda _: None, base_url=official.url)
    assert [(one.name, one.source) for one in found] == [("input_assistant", "official"), ("input_service", "official")]
    kept = tmp_path / "audio" / "samples"
    assert {path.name: path.read_bytes() for path in kept.iterdir()} == {
        path.name: path.read_bytes() for path in SAMPLES.iterdir()
    }


# ---- queries of a recording


def test_a_pause_of_a_second_and_a_half_parts_queries(tmp_path: Path) -> None:
    parts = [quiet(1), voice(1), quiet(1.4), voice(1), quiet(1.6), voice(0.5), quiet(2)]
    wav(tmp_path / "two.wav", np.concatenate(parts))
    found = only(recordings.load(tmp_path))
    assert (found.name, found.prompt, found.source) == ("two", None, "local folder")
    assert found.offsets_s == pytest.approx([4.4, 6.5], abs=0.005)
    assert [query.name for query in found.queries] == ["two_1", "two_2"]
    assert [query.onset_s for query in found.queries] == pytest.approx([0.2, 0.2], abs=0.001)
    assert [query.offset_s for query in found.queries] == pytest.approx([3.6, 0.7], abs=0.005)
    assert [len(query.samples) / RATE for query in found.queries] == [query.offset_s for query in found.queries]


def test_a_query_that_begins_at_once_has_no_lead(tmp_path: Path) -> None:
    wav(tmp_path / "soon.wav", np.concatenate([quiet(0.05), voice(1)]))
    query = only(only(recordings.load(tmp_path)).queries)
    assert query.name == "soon"
    assert query.onset_s == pytest.approx(0.05, abs=0.001)
    assert query.offset_s == pytest.approx(1.05, abs=0.005)


@pytest.mark.parametrize(("below_db", "end_s"), [(15, 2.06), (34, 2.0)])
def test_what_is_far_fainter_than_the_voice_does_not_end_it(tmp_path: Path, below_db: float, end_s: float) -> None:
    tail = voice(0.06, peak=0.5 * 10 ** (-below_db / 20))
    wav(tmp_path / "fading.wav", np.concatenate([quiet(1), voice(1), tail, quiet(1)]))
    assert only(recordings.load(tmp_path)).offsets_s == pytest.approx([end_s], abs=0.020)


LIKE: dict[str, Callable[[Path], object]] = {
    "78-byte header": with_78_byte_header,
    "stereo": lambda path: wav(path, np.column_stack([spoken(), spoken()])),
    "float": lambda path: wav(path, spoken(), subtype="FLOAT"),
    "float beyond full scale": lambda path: wav(path, 8 * spoken(), subtype="FLOAT"),
    "24 bit": lambda path: wav(path, spoken(), subtype="PCM_24"),
    "offset": lambda path: wav(path, spoken() + 0.05),
    "telephone": lambda path: wav(path, spoken(8_000), 8_000),
    "CD": lambda path: wav(path, spoken(44_100), 44_100),
    "studio": lambda path: wav(path, np.column_stack([spoken(48_000)] * 2), 48_000, "FLOAT"),
}


@pytest.mark.parametrize("kind", LIKE)
def test_any_wav_is_spoken_at_24_khz(tmp_path: Path, kind: str) -> None:
    LIKE[kind](tmp_path / "own.wav")
    found = only(recordings.load(tmp_path))
    query = only(found.queries)
    assert (query.rate, query.samples.ndim) == (RATE, 1)
    assert query.samples.dtype == np.int16
    assert found.offsets_s == pytest.approx([2.0], abs=0.010)
    assert query.onset_s == pytest.approx(0.2, abs=0.010)
    middle = query.samples[RATE // 2 : RATE].astype(np.float64) / 32768
    true_peak = 1.0 if kind == "float beyond full scale" else 0.5
    assert np.sqrt(2 * np.square(middle).mean()) == pytest.approx(true_peak, rel=0.01)


BAD: dict[str, tuple[Callable[[Path], object], str]] = {
    "empty": (lambda path: path.write_bytes(b""), "an empty file"),
    "text": (lambda path: path.write_bytes(b"hello " * 100), "not audio"),
    "silence": (lambda path: wav(path, quiet(2)), "no speech in it"),
    "hiss": (lambda path: wav(path, np.random.default_rng(0).normal(0, 0.003, 2 * RATE)), "no speech in it"),
    "truncated": (lambda path: path.write_bytes(wav(path, spoken()).read_bytes()[:100_000]), "cut off"),
    "nothing": (lambda path: wav(path, quiet(0)), "no samples"),
}


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_file_is_refused_by_name(tmp_path: Path, kind: str) -> None:
    make, says = BAD[kind]
    wav(tmp_path / "good.wav", spoken())
    make(tmp_path / "bad.wav")
    with pytest.raises(RecordingError, match=f"^{tmp_path}: bad.wav: .*{says}") as refusal:
        recordings.load(tmp_path)
    assert "\n" not in str(refusal.value)
    assert "take it out of the folder" in str(refusal.value)
    assert "good.wav" not in str(refusal.value)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda path: wav(path, spoken(length_s=19.9)), "19.90 s"),
        (lambda path: wav(path, spoken(16_000, 20.0), 16_000), "16000 Hz"),
        (lambda path: wav(path, np.column_stack([spoken(length_s=20.0)] * 2)), "channels: 2"),
        (lambda path: wav(path, spoken(length_s=20.0), subtype="FLOAT"), "FLOAT"),
    ],
)
def test_what_is_called_as_an_official_one_must_be_like_it(
    tmp_path: Path, make: Callable[[Path], object], says: str
) -> None:
    make(tmp_path / "input_service.wav")
    (tmp_path / "prompt_service.txt").write_text("You sell bread.")
    with pytest.raises(RecordingError, match=f"input_service.wav: .*{says}.*official one has 20.00 s.*Rename it"):
        recordings.load(tmp_path)


def test_another_recording_under_an_official_name_is_not_called_official(tmp_path: Path) -> None:
    wav(tmp_path / "input_service.wav", spoken(length_s=20.0))
    with pytest.raises(RecordingError, match=r"input_service.wav: its prompt prompt_service.txt cannot be read"):
        recordings.load(tmp_path)
    (tmp_path / "prompt_service.txt").write_text("You sell bread.")
    found = only(recordings.load(tmp_path))
    assert (found.source, found.prompt) == ("local folder", "You sell bread.")


def test_a_recording_goes_with_the_prompt_beside_it(tmp_path: Path) -> None:
    for name in ("bread", "cheese", "wine"):
        wav(tmp_path / f"{name}.wav", spoken())
    (tmp_path / "bread.txt").write_bytes("\N{BOM}You sell bread, à la carte.\n".encode())
    (tmp_path / "prompt_cheese.txt").write_text("You sell cheese.")
    (tmp_path / "notes.txt").write_text("not a prompt")
    prompts = {one.name: one.prompt for one in recordings.load(tmp_path)}
    assert prompts == {"bread": "You sell bread, à la carte.", "cheese": "You sell cheese.", "wine": None}


@pytest.mark.parametrize(("data", "says"), [(b" \n", "is empty"), (b"caf\xe9", "is not UTF-8; convert it: iconv")])
def test_a_bad_prompt_is_refused_by_name(tmp_path: Path, data: bytes, says: str) -> None:
    wav(tmp_path / "bread.wav", spoken())
    (tmp_path / "bread.txt").write_bytes(data)
    with pytest.raises(RecordingError, match=f"bread.wav: its prompt bread.txt {says}"):
        recordings.load(tmp_path)


def test_a_folder_without_recordings_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RecordingError, match=r"no recordings .*there is no such folder.*--samples-dir"):
        recordings.load(tmp_path / "nowhere")
    (tmp_path / "notes.txt").write_text("not a recording")
    with pytest.raises(RecordingError, match=r"no recordings .*--synthetic"):
        recordings.load(tmp_path)


# ---- download, from a server that stands for GitHub


@dataclass
class Official:
    """Made files that are official as far as the module knows, and a server that has them."""

    folder: Path
    url: str = ""
    asked: list[str] = field(default_factory=list)


@contextmanager
def serving(folder: Path) -> Iterator[Official]:
    official = Official(folder)

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args: Any) -> None:
            super().__init__(*args, directory=str(folder))

        def do_GET(self) -> None:
            official.asked.append(self.path)
            if self.path.startswith("http://"):  # as a proxy is asked
                self.path = self.path[self.path.index("/", len("http://")) :]
            super().do_GET()

        def log_message(self, *_: Any) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        official.url = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield official
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture
def official(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Official]:
    made = tmp_path / "official"
    made.mkdir()
    wav(made / "input_assistant.wav", spoken(length_s=40.0))
    wav(made / "input_service.wav", spoken(length_s=20.0))
    (made / "prompt_service.txt").write_text("You sell bread.")
    table = {
        name: known._replace(sha256=hashlib.sha256((made / name).read_bytes()).hexdigest())
        for name, known in recordings._OFFICIAL.items()
    }
    monkeypatch.setattr(recordings, "_OFFICIAL", table)
    for variable in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(variable, raising=False)
    with serving(made) as found:
        yield found


NAMES = ["input_assistant.wav", "input_service.wav", "prompt_service.txt"]


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_second_run_asks_the_network_nothing(tmp_path: Path, official: Official) -> None:
    said: list[str] = []
    first = recordings.choose(str(tmp_path), say=said.append, base_url=official.url)
    assert official.asked == [f"/{name}" for name in NAMES]
    assert said == [f"downloading {official.url}/{name}" for name in NAMES]
    kept = tmp_path / "audio" / "samples"
    assert names(kept) == NAMES
    assert [(one.name, one.prompt, one.source) for one in first] == [
        ("input_assistant", None, "official"),
        ("input_service", "You sell bread.", "official"),
    ]
    again = recordings.choose(str(tmp_path), say=said.append, base_url=official.url)
    assert (len(official.asked), len(said)) == (3, 3)
    assert [one.offsets_s for one in again] == [one.offsets_s for one in first]


def test_only_what_is_wrong_or_missing_is_downloaded(tmp_path: Path, official: Official) -> None:
    kept = tmp_path / "kept"
    shutil.copytree(official.folder, kept)
    (kept / "input_service.wav").write_bytes((kept / "input_service.wav").read_bytes()[:-2])
    (kept / "prompt_service.txt").unlink()
    recordings.download(kept, lambda _: None, official.url)
    assert official.asked == ["/input_service.wav", "/prompt_service.txt"]
    assert [(kept / name).read_bytes() for name in NAMES] == [(official.folder / name).read_bytes() for name in NAMES]


def test_a_file_with_a_wrong_checksum_is_thrown_away(tmp_path: Path, official: Official) -> None:
    (official.folder / "input_assistant.wav").write_bytes(b"<html>log in to this network</html>")
    with pytest.raises(RecordingError, match=r"input_assistant.wav .*35 bytes with a wrong checksum") as refusal:
        recordings.download(tmp_path / "kept", lambda _: None, official.url)
    assert "--samples-dir DIR" in str(refusal.value)
    assert not (tmp_path / "kept").exists()


def test_a_file_that_is_too_large_is_not_read_to_its_end(
    tmp_path: Path, official: Official, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recordings, "_LARGEST_BYTES", 1 << 20)
    with pytest.raises(RecordingError, match=r"input_assistant.wav .*more than 1 MB"):
        recordings.download(tmp_path / "kept", lambda _: None, official.url)


def refusing() -> str:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{closed.getsockname()[1]}"


def test_without_a_network_one_line_says_what_to_do(tmp_path: Path, official: Official) -> None:
    for url, says in {
        "http://nowhere.invalid": "no address for nowhere.invalid",
        refusing(): "Connection refused",
        f"{official.url}/no": "HTTP 404",
    }.items():
        with pytest.raises(RecordingError, match=f"^input_assistant.wav cannot be downloaded .*{says}") as refusal:
            recordings.choose(str(tmp_path), say=lambda _: None, base_url=url)
        assert str(refusal.value).endswith("offline, name a folder that has it: --samples-dir DIR, or use --synthetic")
        assert "\n" not in str(refusal.value)


def test_a_server_that_never_answers_is_not_waited_for(
    tmp_path: Path, official: Official, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recordings, "_CONNECT_S", 0.05)
    with socket.create_server(("127.0.0.1", 0)) as mute:
        url = f"http://127.0.0.1:{mute.getsockname()[1]}"
        with pytest.raises(RecordingError, match=r"no answer from 127.0.0.1:\d+ within"):
            recordings.download(tmp_path, lambda _: None, url)


def test_proxies_of_the_environment_are_used(
    tmp_path: Path, official: Official, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", official.url)
    for variable in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(variable, raising=False)
    recordings.download(tmp_path / "kept", lambda _: None, "http://nowhere.invalid")
    assert official.asked == [f"http://nowhere.invalid/{name}" for name in NAMES]
    assert names(tmp_path / "kept") == NAMES
    monkeypatch.setenv("http_proxy", "http://proxy.invalid:3128")
    with pytest.raises(RecordingError, match=r"no address for proxy.invalid"):
        recordings.download(tmp_path / "other", lambda _: None, "http://nowhere.invalid")


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path, official: Official) -> None:
    (tmp_path / "audio").write_text("a file")
    with pytest.raises(RecordingError, match=f"input_assistant.wav cannot be kept in {tmp_path}.*--cache-dir DIR"):
        recordings.choose(str(tmp_path), say=lambda _: None, base_url=official.url)


def test_the_download_command_lists_what_there_is(
    tmp_path: Path, official: Official, capsys: pytest.CaptureFixture[str]
) -> None:
    kept = tmp_path / "kept"
    assert recordings.download_command(kept, official.url) == 0
    said = capsys.readouterr()
    listed = [line.split() for line in said.out.splitlines() if not line.startswith("downloading ")]
    assert listed == [
        ["input_assistant.wav", "40.0", "s", "1,920,044", "bytes", str(kept / "input_assistant.wav")],
        ["input_service.wav", "20.0", "s", "960,044", "bytes", str(kept / "input_service.wav")],
        ["prompt_service.txt", "text", "15", "bytes", str(kept / "prompt_service.txt")],
    ]
    assert said.err == ""


def test_the_download_command_fails_with_one_file_and_tries_the_others(
    tmp_path: Path, official: Official, capsys: pytest.CaptureFixture[str]
) -> None:
    (official.folder / "input_service.wav").unlink()
    kept = tmp_path / "kept"
    assert recordings.download_command(kept, official.url) == 1
    assert names(kept) == ["input_assistant.wav", "prompt_service.txt"]
    said = capsys.readouterr()
    assert said.err.startswith("input_service.wav cannot be downloaded (HTTP 404")
    assert said.err.count("\n") == 1


# ---- which


@pytest.fixture
def without_speech(monkeypatch: pytest.MonkeyPatch) -> list[Recording]:
    """Synthetic speech without an engine."""
    made = [Recording("synthetic_1", None, (), (), "synthetic")]
    monkeypatch.setattr(recordings, "synthetic", lambda texts: made)
    return made


def test_a_mock_run_never_asks_the_network(tmp_path: Path, official: Official, without_speech: list[Recording]) -> None:
    def chosen() -> list[str]:
        found = recordings.choose(str(tmp_path), mock=True, say=said.append, base_url=official.url)
        return [one.source for one in found]

    said: list[str] = []
    assert chosen() == ["synthetic"]
    assert len(said) == 1
    assert "users speak synthetic speech" in said[0]
    kept = tmp_path / "audio" / "samples"
    shutil.copytree(official.folder, kept)
    assert chosen() == ["official", "official"]
    (kept / "input_service.wav").write_bytes(b"broken")
    assert chosen() == ["synthetic"]
    assert official.asked == []


def test_synthetic_speech_is_spoken_alone_where_it_is_asked_for(
    tmp_path: Path, official: Official, without_speech: list[Recording]
) -> None:
    shutil.copytree(official.folder, tmp_path / "audio" / "samples")
    found = recordings.choose(str(tmp_path), str(official.folder), synthesized=True, base_url=official.url)
    assert found is without_speech
    assert official.asked == []


@pytest.mark.parametrize("mock", [False, True])
def test_a_folder_that_is_named_goes_before_all_others(tmp_path: Path, official: Official, mock: bool) -> None:
    wav(tmp_path / "own.wav", spoken())
    found = recordings.choose(str(tmp_path), str(tmp_path), mock=mock, base_url=official.url)
    assert [(one.name, one.source) for one in found] == [("own", "local folder")]
    with pytest.raises(RecordingError, match="no recordings"):
        recordings.choose(str(tmp_path), str(tmp_path / "nowhere"), mock=mock, base_url=official.url)
    assert official.asked == []


# ---- synthetic speech, by a real server


def servers() -> list[list[str]]:
    return [child.cmdline() for child in psutil.Process().children(recursive=True) if "gpu_server" in child.cmdline()]


def test_synthetic_speech_is_the_texts_spoken_alike_every_time(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("espeakng_loader", reason="the extra `espeak` is not installed")
    monkeypatch.setenv("CICADA_SERVER_TOKEN", "of another server")
    monkeypatch.setenv("http_proxy", refusing())
    texts = ["Is there a direct train to Boston tomorrow morning?", "Yes, please."]
    found, again = recordings.synthetic(texts), recordings.synthetic(texts)
    assert [(one.name, one.prompt, one.source) for one in found] == [
        ("synthetic_1", None, "synthetic"),
        ("synthetic_2", None, "synthetic"),
    ]
    long, short = (only(one.queries) for one in found)
    assert long.rate == RATE
    assert long.samples.dtype == np.int16
    assert 2.0 < long.offset_s - long.onset_s < 4.0  # 130 to 270 words a minute
    assert 0.4 < short.offset_s - short.onset_s < 1.5
    for one, other in zip(found, again, strict=True):
        assert np.array_equal(one.queries[0].samples, other.queries[0].samples)
    assert servers() == []


def test_a_text_without_a_word_ends_the_server_too() -> None:
    pytest.importorskip("espeakng_loader", reason="the extra `espeak` is not installed")
    with pytest.raises(RecordingError, match=r"^no synthetic speech by the bundled server: .*' '"):
        recordings.synthetic([" "])
    assert servers() == []


def in_a_process(program: str, **env: str) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program],
        cwd=ROOT,
        env=os.environ | env,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_synthetic_speech_is_made_in_a_locust_process() -> None:
    pytest.importorskip("espeakng_loader", reason="the extra `espeak` is not installed")
    program = """
import locust, gevent
from workers import recordings
print(gevent.spawn(lambda: [len(one.queries) for one in recordings.synthetic(["Hello there."])]).get(timeout=50))
"""
    assert in_a_process(program, LOCUST_SKIP_URLLIB3_PATCH="1") == "[1]\n"


def test_without_the_engine_the_error_says_what_to_install(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text("import sys\nsys.modules['espeakng_loader'] = None\n")
    program = """
from workers import recordings
try:
    recordings.synthetic(["Hello there."])
except recordings.RecordingError as error:
    print(error)
"""
    said = in_a_process(program, PYTHONPATH=f"{tmp_path}{os.pathsep}{ROOT}")
    assert said.startswith("no synthetic speech by the bundled server: the espeak engine is not installed")
    assert said.endswith("run: pip install -e '.[espeak]'\n")
    assert said.count("\n") == 1
