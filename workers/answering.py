"""Which of an agent's speech answers which turn. Pure: knows nothing of the clock, of sockets or of who waits.

Speech is stale, and no answer, where it was there before the user's first word, or goes on with what was owed from a
turn before. What is left is this turn's answer, early where it began before the user's last word.
"""

from workers.audio.hearing import Hearing
from workers.audio.stretches import Stretch
from workers.clients.microphone import Spoken
from workers.samples.measure_call import CallTurn

_NEAR_S = 0.1
_HINTED_END_S = 0.3  # quiet that ends an answer when the server, too, says that it is over
_HINT_EARLY_S = 0.3  # by so much it may say so before the last of it has played
_AFTER_FALSE_START_S = 3.0


def answer_of(turn: CallTurn, hearing: Hearing, owed: bool, *, listens_on: bool = False) -> Stretch | None:
    """The first speech that can be an answer to this turn; None while there is none, or the ear is at work.

    owed: the turn before got no answer, so that one may still come. listens_on: the agent hears while it speaks (full
    duplex): what it says and ends before the user's last word is a backchannel or a false start, and no answer.
    """
    for stretch in hearing.stretches:
        if stretch.by is None:
            return None
        if listens_on and stretch.last_loud_at <= turn.user_offset_at:
            continue
        if not _is_stale(turn, stretch, owed):
            return stretch
    return None


def _is_stale(turn: CallTurn, stretch: Stretch, owed: bool) -> bool:
    if min(stretch.audible_at, stretch.arrived_at) < turn.user_onset_at:
        return True
    if turn.interrupted_at and stretch.audible_at >= turn.interrupted_at:
        return False  # the server has thrown away what was before
    return (turn.barge_in or owed) and stretch.audible_at < turn.user_offset_at


def mark_early(turn: CallTurn, answer: Stretch) -> None:
    """Say so where the answer began before the user's last word."""
    if answer.onset_at < turn.user_offset_at:
        turn.outcome = "early"


def quiet_at(last_loud_at: float, user_offset_at: float, stopped_hint_at: float, answer_end_s: float) -> float:
    """When the answer will have ended, if nothing more is heard. stopped_hint_at: the server's word, 0.0 without."""
    needed_s = answer_end_s
    if last_loud_at <= user_offset_at:  # a false start, in a pause of the user's: the answer is still to come
        needed_s = max(needed_s, _AFTER_FALSE_START_S)
    elif stopped_hint_at >= max(last_loud_at - _HINT_EARLY_S, user_offset_at):
        needed_s = min(needed_s, _HINTED_END_S)
    return max(last_loud_at, user_offset_at) + needed_s


def fill_in(turn: CallTurn, hearing: Hearing, spoken: Spoken, owed: bool, yield_s: float) -> None:
    """What microphone and hearing know of a turn that is over. yield_s: an agent that spoke on for longer did not."""
    turn.sent_at, turn.user_sent_at, turn.send_late_s = spoken.sent_at, spoken.voiced_sent_at, spoken.late_s
    turn.sample_rate, turn.chunks = hearing.rate, hearing.chunks
    turn.audio_bytes = hearing.audio_bytes
    turn.audio_s = turn.audio_bytes / (2 * hearing.rate) if hearing.rate else 0.0
    turn.last_chunk_at, turn.largest_gap_s = hearing.last_chunk_at, hearing.largest_gap_s
    answer, older = turn.answer, hearing.older
    if answer is not None:
        # Stalls are the answer's: what was still heard of an earlier one, or a click, is not.
        heard = hearing.utterances_so_far()
        turn.utterances = [said for said in heard if said.at[-1] >= answer.audible_at - _NEAR_S]
        if answer.first_chunk_at < turn.user_onset_at:  # of an agent that sends silence all the time
            answer.first_chunk_at, answer.first_chunk_width_s = answer.arrived_at, answer.audible_width_s
    for stretch in hearing.stretches:
        if stretch is not answer and _is_stale(turn, stretch, owed):
            turn.stale_s += stretch.last_loud_at - max(stretch.audible_at, turn.user_onset_at)
    if older is None:
        return
    turn.stale_s += max(0.0, older.last_loud_at - turn.user_onset_at)
    if turn.barge_in:
        turn.barge_in = older.last_loud_at > turn.user_onset_at
    if turn.barge_in:
        turn.silent_at = older.last_loud_at
        turn.yielded = older.last_loud_at - turn.user_onset_at <= yield_s
