"""Query clips: one file a defect, by name; what is mended is as it must be."""

import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import soundfile

from workers.audio import clips
from workers.audio.clips import Clip, ClipError

ROOT = Path(__file__).resolve().parent.parent
RATE = 16_000
Floats = npt.NDArray[np.float64]


def voice(rate: int = RATE, seconds: float = 1.0, peak: float = 0.5) -> Floats:
    t = np.arange(int(rate * seconds)) / rate
    return np.asarray(peak * np.cos(2 * np.pi * 200 * t))


def with_pauses(before_s: float, after_s: float, rate: int = RATE, seconds: float = 1.0) -> Floats:
    return np.concatenate([np.zeros(int(before_s * rate)), voice(rate, seconds), np.zeros(int(after_s * rate))])


def wav(path: Path, samples: Floats, rate: int = RATE, subtype: str = "PCM_16", format: str = "WAV") -> Path:
    soundfile.write(path, samples, rate, subtype, format=format)
    return path


def stereo(samples: Floats) -> Floats:
    return np.column_stack([samples, samples])


def cut(path: Path) -> None:
    wav(path, with_pauses(0.1, 0))
    path.write_bytes(path.read_bytes()[:20_000])


def patched(at: int, value: bytes) -> Callable[[Path], None]:
    def make(path: Path) -> None:
        data = bytearray(wav(path, voice()).read_bytes())
        data[at : at + len(value)] = value
        path.write_bytes(data)

    return make


def written(data: bytes) -> Callable[[Path], None]:
    return lambda path: path.write_bytes(data) and None


def sounding(samples: Floats, rate: int = RATE, subtype: str = "PCM_16", format: str = "WAV") -> Callable[[Path], None]:
    return lambda path: wav(path, samples, rate, subtype, format) and None


HEADER = struct.pack("<4sI4s4sIHHIIHH4sI", b"RIFF", 36, b"WAVE", b"fmt ", 16, 1, 1, RATE, 2 * RATE, 2, 16, b"data", 0)

REFUSED: dict[str, tuple[Callable[[Path], None], str, bool]] = {  # maker, what is said of it, whether it can be mended
    "rate": (sounding(voice(24_000), 24_000), "24000 Hz, not 16000 Hz", True),
    "telephone": (sounding(voice(8_000), 8_000), "8000 Hz", True),
    "stereo": (sounding(stereo(voice())), "2 channels, not 1", True),
    "float": (sounding(voice(), subtype="FLOAT"), "32 bit float, not 16-bit PCM", True),
    "double": (sounding(voice(), subtype="DOUBLE"), "64 bit float", True),
    "wide": (sounding(voice(), subtype="PCM_24"), "24 bit PCM", True),
    "narrow": (sounding(voice(), subtype="PCM_U8"), "8 bit PCM", True),
    "mu-law": (sounding(voice(), subtype="ULAW"), "U-Law", True),
    "adpcm": (sounding(voice(), subtype="IMA_ADPCM"), "IMA ADPCM", True),
    "everything": (sounding(stereo(voice(24_000)), 24_000, "FLOAT"), "2 channels", True),
    "flac inside": (sounding(voice(), format="FLAC"), "FLAC, no WAV", True),
    "cut off": (cut, "12044 bytes|cut off", False),
    "empty": (written(b""), "an empty file", False),
    "header only": (written(HEADER), "no samples", False),
    "half a header": (written(HEADER[:20]), "not audio that can be read", False),
    "text": (written(b"hello " * 1000), "not audio that can be read", False),
    "page": (written(b"<!DOCTYPE html><html>not found</html>"), "not audio that can be read", False),
    "unknown codec": (patched(20, b"\x77\x77"), "not audio that can be read", False),
    "silence": (sounding(np.zeros(RATE)), "silence only", False),
    "hiss": (sounding(np.random.default_rng(0).normal(0, 0.003, RATE)), "no speech in it", False),
    "out of phase": (sounding(np.column_stack([voice(), -voice()])), "2 channels", False),
}

WARNED: dict[str, tuple[Callable[[Path], None], str]] = {
    "trailing": (sounding(with_pauses(0.1, 0.35)), "350 ms of silence behind the voice"),
    "leading": (sounding(with_pauses(1.5, 0)), "1.5 s of silence before the voice"),
    "clipped": (sounding(np.clip(voice(peak=3), -1, 1)), "at full scale"),
    "offset": (sounding(with_pauses(0.2, 0) + 0.05), "a DC offset of +5.0% of full scale"),
    "long": (sounding(voice(seconds=61)), "61 s long"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_wrong_file_is_refused_by_name(tmp_path: Path, name: str) -> None:
    make, says, mendable = REFUSED[name]
    path = tmp_path / f"{name}.wav"
    make(path)
    problems = clips.examine(path)
    assert problems[0].refused
    assert any(part in ", ".join(map(str, problems)) for part in says.split("|"))
    with pytest.raises(ClipError) as refusal:
        clips.load(tmp_path)
    text = str(refusal.value)
    assert f"{name}.wav: " in text
    assert "\n" not in text
    assert f"python -m workers clips fix {tmp_path}" in text
    if not mendable:
        with pytest.raises(ClipError, match=name):
            clips.fixed(path)
        return
    mended = clips.fixed(path)
    assert (mended.rate, mended.samples.dtype, mended.samples.ndim) == (RATE, np.int16, 1)
    assert len(mended.samples) == pytest.approx(RATE, abs=RATE * 0.005)
    assert np.abs(mended.samples).max() == pytest.approx(0.5 * 32768, rel=0.15)  # an abrupt edge rings


@pytest.mark.parametrize("name", WARNED)
def test_what_can_be_spoken_all_the_same_is_a_warning(tmp_path: Path, name: str) -> None:
    make, says = WARNED[name]
    make(tmp_path / "query.wav")
    problems = clips.examine(tmp_path / "query.wav")
    assert [problem.refused for problem in problems] == [False]
    assert says in str(problems[0])
    assert len(clips.load(tmp_path)) == 1


def test_every_wrong_file_is_named_at_once(tmp_path: Path) -> None:
    wav(tmp_path / "good.wav", voice())
    wav(tmp_path / "fast.wav", voice(44_100), 44_100)
    (tmp_path / "empty.wav").touch()
    with pytest.raises(ClipError, match=r"empty\.wav: an empty file; fast\.wav: 44100 Hz") as refusal:
        clips.load(tmp_path)
    assert "good" not in str(refusal.value)


def test_trailing_silence_is_trimmed_and_leading_silence_kept(tmp_path: Path) -> None:
    wav(tmp_path / "query.wav", with_pauses(0.3, 0.7))
    [clip] = clips.load(tmp_path)
    assert clip.name == "query.wav"
    assert clip.onset_s == pytest.approx(0.3, abs=0.0005)
    assert clip.offset_s == pytest.approx(1.3, abs=0.0005)
    assert len(clip.samples) == round(clip.offset_s * RATE)
    assert abs(int(clip.samples[-1])) > 100


def test_good_samples_are_spoken_as_they_are(tmp_path: Path) -> None:
    wav(tmp_path / "query.wav", voice())
    [clip] = clips.load(tmp_path)
    assert np.array_equal(clip.samples, soundfile.read(tmp_path / "query.wav", dtype="int16")[0])


def test_any_names_in_natural_order(tmp_path: Path) -> None:
    names = ["Bestellung äöü.wav", "query_1.wav", "query_2.WAV", "query_10.wav", "query_10b.Wav"]
    for name in reversed(names):
        wav(tmp_path / name, voice())
    (tmp_path / "notes.txt").write_text("no audio")
    (tmp_path / "._query_1.wav").write_bytes(b"what a Mac leaves behind")
    (tmp_path / "folder.wav").mkdir()
    assert [clip.name for clip in clips.load(tmp_path)] == names


@pytest.mark.parametrize("make", [lambda folder: None, Path.mkdir, Path.touch], ids=["missing", "empty", "a file"])
def test_no_audio_files_is_an_error_with_the_folder(tmp_path: Path, make: Callable[[Path], None]) -> None:
    folder = tmp_path / "queries"
    make(folder)
    with pytest.raises(ClipError, match=f"^no audio files in {folder}: "):
        clips.load(folder)


def test_a_header_that_promises_hours_costs_no_memory(tmp_path: Path) -> None:
    for name, length in {"promises": 0x7FFE0000, "streamed": 0xFFFFFFFF}.items():
        data = bytearray(wav(tmp_path / f"{name}.wav", voice()).read_bytes())
        data[40:44] = struct.pack("<I", length)
        (tmp_path / f"{name}.wav").write_bytes(data)
    assert clips.examine(tmp_path / "promises.wav")[0].refused
    assert clips.examine(tmp_path / "streamed.wav") == []  # what a pipe could not know is no fault


def test_hours_are_refused_unread(tmp_path: Path) -> None:
    path = tmp_path / "hours.wav"
    path.write_bytes(HEADER[:-4] + struct.pack("<I", 2 * RATE * 3600))
    with path.open("r+b") as file:
        file.truncate(44 + 2 * RATE * 3600)
    assert [str(problem) for problem in clips.examine(path)] == ["3600 s long, at most 600 s"]


def test_another_rate_keeps_the_instants(tmp_path: Path) -> None:
    clip = clips.load(ROOT / "audio_files")[0]
    for rate in (8_000, 24_000, 48_000):
        other = clips.resampled(clip, rate)
        assert (other.rate, other.onset_s, other.offset_s) == (rate, clip.onset_s, clip.offset_s)
        assert len(other.samples) == pytest.approx(clip.offset_s * rate, abs=1)
        assert np.array_equal(other.samples, clips.resampled(clip, rate).samples)  # no dither
    assert clips.resampled(clip, RATE) is clip


def test_the_default_queries_are_good() -> None:
    queries = clips.load(ROOT / "audio_files")
    assert [clip.name for clip in queries] == [f"query_{number}.wav" for number in range(1, 11)]
    assert len((ROOT / "audio_files" / "queries.txt").read_text().splitlines()) == 10
    for clip in queries:
        assert clips.examine(ROOT / "audio_files" / clip.name) == []
        assert 2.0 <= clip.offset_s <= 5.0
        assert clip.onset_s < 0.1


def workers(*arguments: object) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "workers", "clips", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def test_check_says_what_is_wrong_with_each(tmp_path: Path) -> None:
    wav(tmp_path / "a.wav", voice())
    wav(tmp_path / "b.wav", with_pauses(0, 0.5))
    assert workers("check", tmp_path).returncode == 0
    wav(tmp_path / "c.wav", stereo(voice(24_000)), 24_000)
    checked = workers("check", tmp_path)
    assert checked.returncode == 1
    assert checked.stdout.splitlines() == [
        "file            what",
        "a.wav  ok",
        "b.wav  warning  500 ms of silence behind the voice (left out when spoken)",
        "c.wav  REFUSED  24000 Hz, not 16000 Hz, 2 channels, not 1",
        f"1 of 3 would be refused. Mended copies: python -m workers clips fix {tmp_path}",
    ]


def test_fix_writes_a_whole_set_of_good_copies_and_leaves_the_originals(tmp_path: Path) -> None:
    good = wav(tmp_path / "a.wav", voice()).read_bytes()
    wrong = wav(tmp_path / "b.WAV", stereo(with_pauses(0.1, 0.5, 24_000)), 24_000, "FLOAT").read_bytes()
    wav(tmp_path / "c.flac", voice(), format="FLAC")
    fixed = workers("fix", tmp_path)
    assert (fixed.returncode, fixed.stderr) == (0, "")
    assert (tmp_path / "a.wav").read_bytes() == (tmp_path / "fixed" / "a.wav").read_bytes() == good
    assert (tmp_path / "b.WAV").read_bytes() == wrong
    assert [clip.name for clip in clips.load(tmp_path / "fixed")] == ["a.wav", "b.wav", "c.wav"]
    assert workers("check", tmp_path / "fixed").returncode == 0
    assert len(clips.load(tmp_path / "fixed")[1].samples) == pytest.approx(1.1 * RATE, abs=20)


def test_fix_writes_over_nothing_unless_in_place(tmp_path: Path) -> None:
    wav(tmp_path / "a.wav", voice(8_000), 8_000)
    other = tmp_path / "other"
    assert workers("fix", tmp_path, "--output", other).returncode == 0
    again = workers("fix", tmp_path, "--output", other)
    assert again.returncode == 2
    assert "would write over a.wav" in again.stderr
    assert workers("fix", tmp_path, "--output", tmp_path).returncode == 2
    assert soundfile.info(tmp_path / "a.wav").samplerate == 8_000
    assert workers("fix", tmp_path, "--in-place").returncode == 0
    assert soundfile.info(tmp_path / "a.wav").samplerate == RATE
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.wav", "other"]


def test_fix_says_what_it_cannot_mend_and_mends_the_rest(tmp_path: Path) -> None:
    wav(tmp_path / "a.wav", voice(8_000), 8_000)
    (tmp_path / "b.wav").write_bytes(b"garbage")
    fixed = workers("fix", tmp_path)
    assert fixed.returncode == 1
    assert fixed.stderr.startswith("b.wav: not audio that can be read")
    assert "Traceback" not in fixed.stderr
    assert [clip.name for clip in clips.load(tmp_path / "fixed")] == ["a.wav"]


@pytest.mark.parametrize("action", ["check", "fix"])
def test_no_folder_is_one_line(tmp_path: Path, action: str) -> None:
    done = workers(action, tmp_path / "nowhere")
    assert done.returncode == 2
    assert done.stderr.startswith(f"python -m workers clips: no audio files in {tmp_path / 'nowhere'}")
    assert len(done.stderr.splitlines()) == 1


def test_clips_are_frozen() -> None:
    clip = Clip("a", np.zeros(1, np.int16), RATE, 0.0, 0.1)
    with pytest.raises(AttributeError):
        clip.name = "b"  # type: ignore[misc]
