"""Collect what happens in one turn of the agent, for its trace row. Knows nothing of how a turn is made."""

from dataclasses import dataclass, field

from gpu_server.faults import Fault, Toll
from gpu_server.trace import AgentTurn, TurnOutcome

GREETING = -1


@dataclass(slots=True)
class Turn:
    """One turn's facts so far. Instants are monotonic seconds, None until they are reached."""

    stream_id: str
    number: int
    faults: tuple[Fault, ...] = ()
    user_last_voiced_received_at: float | None = None
    end_of_speech_at: float | None = None
    answer_asked_at: float | None = None  # end_of_speech_at, or when it began to answer unasked
    asr_admitted_at: float | None = None  # its slot; None also where the stage has no limit
    transcript_at: float | None = None
    llm_admitted_at: float | None = None
    first_token_at: float | None = None
    first_sentence_at: float | None = None
    speech_asked_at: float | None = None
    tts_admitted_at: float | None = None  # of the first sentence
    tts_first_audio_at: float | None = None
    first_audio_at: float | None = None
    last_audio_at: float | None = None
    finished_at: float | None = None
    interrupted_at: float | None = None
    tokens: int | None = None
    processing_s: float | None = None
    transcript: str | None = None
    audio_s: float = 0.0
    outcome: TurnOutcome | None = None
    toll: Toll = field(default_factory=Toll)

    def fault(self, kind: str) -> Fault | None:
        """The fault of this kind that hits this turn, if one does."""
        return next((fault for fault in self.faults if fault.kind == kind), None)

    def row(self) -> AgentTurn:
        assert self.finished_at is not None
        assert self.outcome is not None
        return AgentTurn(
            stream_id=self.stream_id,
            agent_turn=self.number,
            user_last_voiced_received_at=self.user_last_voiced_received_at,
            end_of_speech_at=self.end_of_speech_at,
            transcript_at=self.transcript_at,
            first_token_at=self.first_token_at,
            first_sentence_at=self.first_sentence_at,
            tts_first_audio_at=self.tts_first_audio_at,
            first_audio_at=self.first_audio_at,
            last_audio_at=self.last_audio_at,
            finished_at=self.finished_at,
            interrupted_at=self.interrupted_at,
            asr_s=_between(self.answer_asked_at, self.transcript_at),
            llm_ttfb_s=_between(self.transcript_at, self.first_token_at),
            llm_first_sentence_s=_between(self.transcript_at, self.first_sentence_at),
            tts_ttfb_s=_between(self.speech_asked_at, self.tts_first_audio_at),
            asr_wait_s=_between(self.answer_asked_at, self.asr_admitted_at),
            llm_wait_s=_between(self.transcript_at, self.llm_admitted_at),
            tts_wait_s=_between(self.speech_asked_at, self.tts_admitted_at),
            tokens=self.tokens,
            processing_s=self.processing_s,
            transcript=self.transcript,
            audio_s=round(self.audio_s, 6),
            outcome=self.outcome,
            fault=self.toll.names,
            fault_s=self.toll.seconds,
        )


def _between(start: float | None, end: float | None) -> float | None:
    return None if start is None or end is None else end - start
