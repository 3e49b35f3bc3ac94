"""Read the bodies of the speech routes into one kind of ask. Knows nothing of how they are answered."""

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import BaseModel, Field, ValidationError

from gpu_server.audio_out import FORMATS
from gpu_server.refusal import Refusal
from gpu_server.speech import DEFAULT_VOICE, SpeechRequest


@dataclass(frozen=True, slots=True)
class Ask:
    """What a client wants: speech, in which container, delivered how."""

    speech: SpeechRequest
    format: str
    delivery: Literal["stream", "sse", "whole"]


Speed = Annotated[float, Field(ge=0.25, le=4.0)]


class OpenAIBody(BaseModel):
    """`POST /v1/audio/speech` as OpenAI has it; fields it knows and this server does not are ignored."""

    input: str
    model: str | None = None
    voice: str | None = None
    response_format: str = "mp3"
    speed: Speed = 1.0
    stream_format: Literal["audio", "sse"] = "audio"

    def ask(self) -> Ask:
        speech = SpeechRequest(self.input, self.voice or DEFAULT_VOICE, self.speed)
        return Ask(speech, self.response_format, "sse" if self.stream_format == "sse" else "stream")


class SynthesizeBody(BaseModel):
    """`POST /v1/synthesize`, this server's own."""

    text: str
    speaker_id: str = DEFAULT_VOICE
    stream: bool = True
    format: str = "wav"
    speed: Speed = 1.0

    def ask(self) -> Ask:
        speech = SpeechRequest(self.text, self.speaker_id, self.speed)
        return Ask(speech, self.format, "stream" if self.stream else "whole")


Body = type[OpenAIBody] | type[SynthesizeBody]
BODIES: dict[str, Body] = {"/v1/audio/speech": OpenAIBody, "/v1/synthesize": SynthesizeBody}


def read_body(body_type: Body, data: bytes) -> Ask:
    """Parse a request body. Raises Refusal with one line for the person who wrote it."""
    try:
        return body_type.model_validate_json(data).ask()
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    if first["type"] == "json_invalid":
        raise Refusal(400, "invalid_json", f"the body is not JSON: {first['msg'].removeprefix('Invalid JSON: ')}")
    field = ".".join(str(part) for part in first["loc"])
    said = first["msg"][:1].lower() + first["msg"][1:]
    raise Refusal(400, "invalid_field", f"{field}: {said}" if field else f"the body must be a JSON object: {said}")


def check_ask(ask: Ask, voices: tuple[str, ...], max_characters: int) -> Ask:
    """Refuse what cannot be said; name the voice that "default" stands for."""
    text, voice = ask.speech.text, ask.speech.voice
    if not text.strip():
        raise Refusal(400, "empty_text", "the text is empty: send something to say")
    if len(text) > max_characters:
        raise Refusal(
            413, "text_too_long", f"the text has {len(text)} characters; this server takes {max_characters} at most"
        )
    if ask.format not in FORMATS:
        raise Refusal(400, "unsupported_format", f"no audio format {ask.format!r} here; there are {', '.join(FORMATS)}")
    if voice == DEFAULT_VOICE and DEFAULT_VOICE not in voices:
        return Ask(SpeechRequest(text, voices[0], ask.speech.speed), ask.format, ask.delivery)
    if voice not in voices:
        raise Refusal(400, "unknown_voice", f"no voice {voice!r} here; there are {', '.join(voices)}")
    return ask
