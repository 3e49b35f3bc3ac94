"""When a listener first hears something: computed by hand here, and the same whatever container brought it."""

import io
import itertools

import numpy as np
import pytest
import soundfile

from workers.audio.containers import PcmStream, Samples, WavStream, decode
from workers.audio.playout import lateness, minimal_prebuffer_s
from workers.audio.track import Track, amplitude

RATE = 24_000
LOUD = amplitude(-40.0)


def constant(seconds: float, value: int) -> Samples:
    return np.full(round(seconds * RATE), value, np.int16)


def heard(*chunks: tuple[float, Samples], threshold: int = LOUD, keep: bool = False) -> Track:
    """A track of (arrival, samples) pairs, each arrival known to 0.1 ms."""
    track = Track(threshold, keep)
    track.sample_rate = RATE
    for at, samples in chunks:
        track.hear(samples, at, 0.0001)
    return track


@pytest.mark.parametrize(
    ("dbfs", "expected"), [(0.0, 32768), (-6.0206, 16384), (-20.0, 3277), (-40.0, 328), (-90.0, 1), (-120.0, 1)]
)
def test_amplitude(dbfs: float, expected: int) -> None:
    assert amplitude(dbfs) == expected


@pytest.mark.parametrize("silence_s", [0.0, 0.001, 0.25, 0.4, 1.0])
@pytest.mark.parametrize("pace", [0.0, 0.3, 1.0])
def test_ttfa_is_ttfc_and_the_silence_whenever_playout_never_waits(silence_s: float, pace: float) -> None:
    """Sent at once, at 0.3 of real time or in real time: the silence takes as long to play as it is."""
    audio = np.concatenate([constant(silence_s, 0), constant(0.5, 9000)])
    step = RATE // 50
    chunks = [(100.0 + pace * k * 0.02, audio[k * step : (k + 1) * step]) for k in range(-(-len(audio) // step))]
    track = heard(*chunks)
    assert track.first_chunk_at == 100.0
    assert track.first_audio_at == pytest.approx(100.0 + silence_s, abs=1e-9)
    assert track.last_chunk_at == chunks[-1][0]
    assert track.audio_s == pytest.approx(0.5 + silence_s)


def test_a_server_slower_than_real_time_is_heard_when_its_sound_comes() -> None:
    """Silence of 40 ms, then nothing for 300 ms: the sound is heard 5 ms into the chunk that came late."""
    sound = np.concatenate([constant(0.005, 0), constant(0.1, -9000)])
    track = heard((10.0, constant(0.04, 0)), (10.34, sound), (10.35, constant(0.1, 9000)))
    assert track.first_audio_at == pytest.approx(10.345)


def test_a_burst_queues_up_behind_what_plays() -> None:
    """Chunks of 100 ms silence at 0, 1 and 2 ms: the sound in the fourth, come at 3 ms, plays at 300 ms."""
    silence = constant(0.1, 0)
    track = heard((5.0, silence), (5.001, silence), (5.002, silence), (5.003, constant(0.1, 500)))
    assert track.first_audio_at == pytest.approx(5.3)


@pytest.mark.parametrize(
    ("value", "threshold", "audible"),
    [
        (-32768, 32768, True),
        (32767, 32768, False),
        (-32768, 1, True),
        (LOUD, LOUD, True),
        (-LOUD, LOUD, True),
        (LOUD - 1, LOUD, False),
        (1 - LOUD, LOUD, False),
        (0, 1, False),
    ],
)
def test_what_counts_as_loud(value: int, threshold: int, audible: bool) -> None:
    samples = constant(0.02, 0)
    samples[240] = value
    track = heard((1.0, samples), threshold=threshold)
    assert track.first_audio_at == (pytest.approx(1.01) if audible else 0.0)


def test_silence_is_never_heard_but_its_chunks_are_there() -> None:
    track = heard(*((50.0 + k / 10, constant(0.1, LOUD - 1)) for k in range(5)))
    assert track.first_audio_at == 0.0
    assert (track.first_chunk_at, track.last_chunk_at) == (50.0, 50.4)
    assert track.audio_s == pytest.approx(0.5)


def test_only_the_first_sound_counts() -> None:
    track = heard((1.0, constant(0.1, 9000)), (2.0, constant(0.1, 9000)))
    assert track.first_audio_at == 1.0


def test_media_positions_are_where_each_chunk_begins() -> None:
    track = heard((1.0, constant(0.1, 1)), (1.5, constant(0.02, 1)), (1.6, constant(0.3, 1)))
    assert track.chunk_at.tolist() == [1.0, 1.5, 1.6]
    assert track.chunk_media_s.tolist() == pytest.approx([0.0, 0.1, 0.12])


def test_a_width_belongs_to_the_arrival_it_came_with() -> None:
    track = Track(LOUD, keep=False)
    track.sample_rate = RATE
    track.hear(constant(0.02, 0), 1.0, 0.003)
    track.hear(constant(0.02, 0), 1.01, 0.007)  # still queued behind the first: the first's width stands
    track.hear(constant(0.02, 9000), 1.02, 0.009)
    assert track.first_chunk_width_s == 0.003
    assert track.first_audio_width_s == 0.003
    late = Track(LOUD, keep=False)
    late.sample_rate = RATE
    late.hear(constant(0.02, 0), 1.0, 0.003)
    late.hear(constant(0.02, 9000), 1.5, 0.009)  # playout waited for this one
    assert late.first_audio_width_s == 0.009


def test_samples_are_kept_only_where_asked_for() -> None:
    chunks = [(1.0, constant(0.1, 5)), (1.1, constant(0.1, -5))]
    assert len(heard(*chunks).samples) == 0
    kept = heard(*chunks, keep=True).samples
    assert np.array_equal(kept, np.concatenate([chunks[0][1], chunks[1][1]]))
    assert kept.dtype == np.int16


def test_nothing_heard() -> None:
    track = Track(LOUD, keep=True)
    assert track.audio_s == 0.0
    assert len(track.samples) == 0
    assert not track.first_chunk_at


# -------------------------------------------------------------------------------------- the same through any container

SILENCE_S = 0.3
WRITERS = {
    "flac": {"format": "FLAC", "subtype": "PCM_16"},
    "mp3": {"format": "MP3", "subtype": "MPEG_LAYER_III"},
    "opus": {"format": "OGG", "subtype": "OPUS"},
    "wav": {"format": "WAV", "subtype": "PCM_16"},
}
# How much later than its PCM a codec can be played: a FLAC block of 4096, two mp3 frames, an Ogg page of a second.
BLOCK_S = {"flac": 4096 / RATE, "mp3": 2 * 576 / RATE, "opus": 1.0}


def speech() -> Samples:
    sound = 9000 * np.sin(2 * np.pi * 300 * np.arange(2 * RATE) / RATE)
    return np.concatenate([constant(SILENCE_S, 0), sound.astype(np.int16)])


def sent(name: str, interval_s: float, piece_bytes: int) -> Track:
    """A track of speech() as `name`, in pieces that come `interval_s` apart from instant 100 on."""
    file = io.BytesIO()
    soundfile.write(file, speech(), RATE, **WRITERS.get(name, WRITERS["wav"]))
    data = speech().tobytes() if name == "pcm" else file.getvalue()
    edges = [*range(0, len(data), piece_bytes), len(data)]
    pieces = [(end, 100.0 + k * interval_s, 0.0) for k, end in enumerate(edges[1:])]
    track = Track(LOUD, keep=True)
    if name in ("pcm", "wav"):
        stream = PcmStream(RATE) if name == "pcm" else WavStream()
        for (begin, end), (_, at, width_s) in zip(itertools.pairwise(edges), pieces, strict=True):
            samples = stream.feed(data[begin:end])
            if len(samples):
                track.sample_rate = stream.sample_rate
                track.hear(samples, at, width_s)
    else:
        track.hear_decoded(decode(name, data), pieces)
    return track


@pytest.mark.parametrize("name", ["wav", "pcm", "flac", "mp3", "opus"])
def test_all_at_once_is_heard_at_the_same_instant_in_every_format(name: str) -> None:
    track = sent(name, 0.0, 1 << 20)
    assert track.first_chunk_at == 100.0
    assert track.first_audio_at == pytest.approx(100.0 + SILENCE_S, abs=0.01)
    assert track.audio_s == pytest.approx(SILENCE_S + 2.0, abs=0.03)
    assert len(track.chunk_at) == 1


@pytest.mark.parametrize("name", ["flac", "mp3", "opus"])
def test_a_fast_stream_is_heard_at_the_same_instant_in_every_format(name: str) -> None:
    """Faster than real time: the codec's block is here before the silence ahead of it has been played."""
    truth = sent("pcm", 0.001, 2000)
    track = sent(name, 0.001, 200)
    assert truth.first_audio_at == pytest.approx(100.0 + SILENCE_S, abs=1e-3)
    # The listener hears nothing until the first block is whole; then as PCM would be.
    assert track.first_audio_at >= truth.first_audio_at - 0.01
    assert track.first_audio_at <= truth.first_audio_at + track.chunk_at[-1] - 100.0 + 0.01


@pytest.mark.parametrize("name", ["flac", "mp3", "opus"])
def test_a_stream_in_real_time_is_late_by_a_block_at_most(name: str) -> None:
    file = io.BytesIO()
    soundfile.write(file, speech(), RATE, **WRITERS[name])
    pieces = 115
    piece_bytes = -(-len(file.getvalue()) // pieces)
    track = sent(name, 0.02, piece_bytes)
    assert track.first_audio_at >= 100.0 + SILENCE_S - 0.03
    assert track.first_audio_at <= track.chunk_at[-1]
    # Bytes are not spread evenly over time: what must hold is that every sample came before it was played.
    decoded = decode(name, file.getvalue())
    first = int((np.abs(decoded.samples.astype(int)) >= LOUD).argmax())
    whole = next(packet for packet in decoded.packets if packet.sample_end > first)
    came = 100.0 + (-(-whole.byte_end // piece_bytes) - 1) * 0.02
    assert track.first_audio_at >= came
    assert track.first_audio_at <= came + SILENCE_S + BLOCK_S[name]


@pytest.mark.parametrize("name", ["flac", "mp3", "opus"])
def test_every_sample_is_heard_once(name: str) -> None:
    file = io.BytesIO()
    soundfile.write(file, speech(), RATE, **WRITERS[name])
    decoded = decode(name, file.getvalue())
    for piece_bytes in (1, 7, 300, 5000, 1 << 20):
        track = sent(name, 0.001, piece_bytes)
        assert np.array_equal(track.samples, decoded.samples)
        assert track.sample_count == len(decoded.samples)


@pytest.mark.parametrize("name", ["flac", "mp3", "opus"])
def test_a_compressed_header_is_not_the_first_chunk(name: str) -> None:
    """Header, a pause of 200 ms, then the audio."""
    file = io.BytesIO()
    soundfile.write(file, speech(), RATE, **WRITERS[name])
    decoded = decode(name, file.getvalue())
    track = Track(LOUD, keep=False)
    track.hear_decoded(decoded, [(decoded.header_bytes, 100.0, 0.0), (len(file.getvalue()), 100.2, 0.0)])
    assert track.first_chunk_at == 100.2
    assert track.first_audio_at == pytest.approx(100.2 + SILENCE_S, abs=0.01)
    assert len(track.chunk_at) == 1


@pytest.mark.parametrize("name", ["flac", "mp3", "opus"])
def test_a_first_byte_that_cannot_be_played_yet_is_no_stall(name: str) -> None:
    """TTFC is the first byte of audio; playout begins when there is something to play, and nothing stalls before."""
    file = io.BytesIO()
    soundfile.write(file, speech(), RATE, **WRITERS[name])
    decoded = decode(name, file.getvalue())
    one_byte = decoded.header_bytes + 1
    track = Track(LOUD, keep=False)
    track.hear_decoded(decoded, [(one_byte, 100.0, 0.0), (len(file.getvalue()), 100.5, 0.0)])
    assert track.first_chunk_at == 100.0
    assert track.first_audio_at == pytest.approx(100.5 + SILENCE_S, abs=0.01)
    assert minimal_prebuffer_s(lateness(track.chunk_at, track.chunk_media_s)) == 0.0


def test_a_trailing_tag_that_comes_late_is_no_stall() -> None:
    """An ID3v1 tag after the last frame holds no audio: however late it comes, nobody waits for it."""
    file = io.BytesIO()
    soundfile.write(file, speech(), RATE, **WRITERS["mp3"])
    audio_bytes = len(file.getvalue())
    decoded = decode("mp3", file.getvalue() + b"TAG" + bytes(125))
    assert decoded.packets[-1].byte_end == audio_bytes
    track = Track(LOUD, keep=False)
    track.hear_decoded(decoded, [(audio_bytes, 100.0, 0.0), (audio_bytes + 128, 110.0, 0.0)])
    assert minimal_prebuffer_s(lateness(track.chunk_at, track.chunk_media_s)) == 0.0
    assert track.last_chunk_at == 100.0
