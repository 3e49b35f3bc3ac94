"""What is wrong with audio that came whole: nothing there, nothing to hear, absurd for its text. Pure."""

from workers.audio.track import Track
from workers.failures import TurnFailed

_ALLOWANCE_S = 2.0  # leading and trailing silence of short texts


def check(track: Track, text_chars: int, speed: float, shortest_s_per_char: float, longest_s_per_char: float) -> None:
    """Raise TurnFailed (outcome answered) where the audio is none for its text."""
    if not track.sample_count:
        raise TurnFailed("answered", "no_audio", "the answer holds no audio")
    if not track.first_audio_at:
        raise TurnFailed("answered", "silence_only", "nothing in the answer reaches audible_dbfs: it is silence")
    expected_chars = text_chars / speed
    if track.audio_s > _ALLOWANCE_S + longest_s_per_char * expected_chars:
        raise TurnFailed("answered", "too_long", f"{track.audio_s:.1f} s of audio for {text_chars} characters")
    if track.audio_s < shortest_s_per_char * expected_chars:
        raise TurnFailed("answered", "too_short", f"{track.audio_s:.2f} s of audio for {text_chars} characters")
