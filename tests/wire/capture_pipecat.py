"""Write pipecat.json: bytes that pipecat-ai's own serializers make, and what they make of ours.

Not run by the tests. With pipecat-ai, numpy and protobuf in an environment, from the project's root:

    PYTHONPATH=. python tests/wire/capture_pipecat.py        # Python < 3.13: the truth about μ-law is `audioop`'s

It asserts that pipecat reads our messages as we mean them; the messages it read are written down too, so that the tests
notice when ours change.
"""

import asyncio
import audioop
import io
import json
import struct
import wave
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pipecat.processors.frameworks.rtvi.models as rtvi
from pipecat.frames import frames
from pipecat.runner.utils import _detect_transport_type_from_message
from pipecat.serializers.protobuf import ProtobufFrameSerializer
from pipecat.serializers.twilio import TwilioFrameSerializer

from workers.clients.twilio import Twilio
from workers.clients.voice_agent import Pipecat
from workers.clients.websocket import TEXT

STREAM = "stream-1"
PCM = struct.pack("<320h", *((i * 97) % 20011 - 10000 for i in range(320)))
TELEPHONE = struct.pack("<160h", *((i * 397) % 60013 - 30000 for i in range(160)))


def wav(pcm: bytes, rate: int) -> bytes:
    """As pipecat's transports do with `add_wav_header`."""
    file = io.BytesIO()
    with wave.open(file, "wb") as writer:
        writer.setsampwidth(2)
        writer.setnchannels(1)
        writer.setframerate(rate)
        writer.writeframes(pcm)
    return file.getvalue()


def told(message: Any) -> frames.OutputTransportMessageUrgentFrame:
    return frames.OutputTransportMessageUrgentFrame(message=message.model_dump(exclude_none=True))


def words(text: str) -> rtvi.TextMessageData:
    return rtvi.TextMessageData(text=text)


def heard(text: str, final: bool) -> rtvi.UserTranscriptionMessage:
    data = rtvi.UserTranscriptionMessageData(text=text, user_id="", timestamp="2026-11-20T10:00:00Z", final=final)
    return rtvi.UserTranscriptionMessage(data=data)


METRICS = {
    "ttfb": [
        {"processor": "NvidiaLLMService#0", "model": "m", "value": 0.28341794013977051},
        {"processor": "NemotronTTSService#1", "value": 0.0},
    ],
    "processing": [{"processor": "NemotronASRService#0", "value": 9.5e-05}],
    "ttfa": [{"processor": "AcmeTTSService#0", "ttfa": 0.155, "ttfb": 0.15, "leading_silence": 0.005}],
    "tokens": [{"prompt_tokens": 96, "completion_tokens": 17, "total_tokens": 113}],
    "characters": [{"processor": "AcmeTTSService#0", "value": 42}],
}

FROM_SERVER: dict[str, frames.Frame] = {
    "text": frames.TextFrame(text="Grüße!"),
    "audio": frames.OutputAudioRawFrame(audio=PCM, sample_rate=24000, num_channels=1),
    "audio_wav": frames.OutputAudioRawFrame(audio=wav(PCM, 16000), sample_rate=16000, num_channels=1),
    "audio_stereo": frames.OutputAudioRawFrame(audio=PCM, sample_rate=24000, num_channels=2),
    "audio_empty": frames.OutputAudioRawFrame(audio=b"", sample_rate=24000, num_channels=1),
    "transcription": frames.TranscriptionFrame(text="two pizzas", user_id="u", timestamp="2026-11-20T10:00:00Z"),
    "interruption": frames.InterruptionFrame(),
    "bot-ready": told(rtvi.BotReady(id="1", data=rtvi.BotReadyData(version="2.2.0"))),
    "bot-started-speaking": told(rtvi.BotStartedSpeakingMessage()),
    "bot-stopped-speaking": told(rtvi.BotStoppedSpeakingMessage()),
    "user-started-speaking": told(rtvi.UserStartedSpeakingMessage()),
    "user-stopped-speaking": told(rtvi.UserStoppedSpeakingMessage()),
    "vad-user-stopped-speaking": told(rtvi.VADUserStoppedSpeakingMessage()),
    "user-transcription-interim": told(heard("two", False)),
    "user-transcription": told(heard("two pizzas", True)),
    "bot-llm-text": told(rtvi.BotLLMTextMessage(data=words("Coming"))),
    "bot-tts-text": told(rtvi.BotTTSTextMessage(data=words("Coming"))),
    "bot-transcription": told(rtvi.BotTranscriptionMessage(data=words("Coming up."))),
    "metrics": told(rtvi.MetricsMessage(data=METRICS)),
    "error": told(rtvi.Error(data=rtvi.ErrorData(error="the model is gone", fatal=True))),
    "server-message": told(rtvi.ServerMessage(data={"anything": [1, 2]})),
}


async def capture() -> dict[str, Any]:
    theirs = ProtobufFrameSerializer()
    from_server = {}
    for name, frame in FROM_SERVER.items():
        data = await theirs.serialize(frame)
        assert isinstance(data, bytes), name
        from_server[name] = data.hex()
    ours = Pipecat(STREAM, client_ready=True)
    from_client = {"client-ready": ours.opening()[0][1], "audio": ours.audio(PCM)[1]}
    ready = await theirs.deserialize(from_client["client-ready"])
    assert isinstance(ready, frames.InputTransportMessageFrame), ready
    assert ready.message["type"] == "client-ready", ready
    rtvi.ClientReadyData.model_validate(ready.message["data"])
    said = await theirs.deserialize(from_client["audio"])
    assert isinstance(said, frames.InputAudioRawFrame), said
    assert (said.audio, said.sample_rate, said.num_channels) == (PCM, 16000, 1), said
    return {
        "versions": {name: version(name) for name in ("pipecat-ai", "protobuf")},
        "pcm": PCM.hex(),
        "telephone_pcm": TELEPHONE.hex(),
        "from_server": from_server,
        "from_client": {name: data.hex() for name, data in from_client.items()},
        "twilio": await capture_twilio(),
        "ulaw": {"decoded": audioop.ulaw2lin(bytes(range(256)), 2).hex(), "encoded_from": encoded_from()},
    }


async def capture_twilio() -> dict[str, Any]:
    ours = Twilio(STREAM)
    theirs = TwilioFrameSerializer(ours.stream_sid, params=TwilioFrameSerializer.InputParams(auto_hang_up=False))
    theirs._sample_rate = 8000  # what setup() does; nothing is resampled, so samples can be compared
    from_server = {
        "media": frames.OutputAudioRawFrame(audio=TELEPHONE, sample_rate=8000, num_channels=1),
        "clear": frames.InterruptionFrame(),
        "mark": frames.OutputTransportMessageFrame(
            message={"event": "mark", "streamSid": ours.stream_sid, "mark": {"name": "end of greeting"}}
        ),
    }
    texts = {name: await theirs.serialize(frame) for name, frame in from_server.items()}
    sent = [*ours.opening(), ours.audio(TELEPHONE), ours.audio(TELEPHONE), *ours.closing()]
    assert {opcode for opcode, _ in sent} == {TEXT}
    assert _detect_transport_type_from_message(json.loads(sent[1][1])) == "twilio"
    for _, data in sent[2:4]:
        said = await theirs.deserialize(data.decode())
        assert isinstance(said, frames.InputAudioRawFrame), said
        codes = audioop.lin2ulaw(TELEPHONE, 2)
        assert near(said.audio, audioop.ulaw2lin(codes, 2)), "audioop rounds some negatives the other way, by one step"
    return {"from_server": texts, "from_client": [data.decode() for _, data in sent]}


def near(ours: bytes, theirs: bytes) -> bool:
    pairs = zip(struct.iter_unpack("<h", ours), struct.iter_unpack("<h", theirs), strict=True)
    return max(abs(a - b) for (a,), (b,) in pairs) <= 1024  # the widest step of μ-law


def encoded_from() -> str:
    """`first sample:code` for each code of the samples 0, 1, … 32767: G.711's decision values, times four."""
    codes = audioop.lin2ulaw(struct.pack("<32768h", *range(32768)), 2)
    return " ".join(f"{codes.index(code)}:{code}" for code in dict.fromkeys(codes))


if __name__ == "__main__":
    captured = asyncio.run(capture())
    Path(__file__).with_name("pipecat.json").write_text(json.dumps(captured, indent=1) + "\n")
    print(f"{len(captured['from_server'])} messages of pipecat-ai {captured['versions']['pipecat-ai']} written")
