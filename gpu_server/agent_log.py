"""Write the agent's log in the lines NVIDIA's bots write, so that analysers made for theirs read ours.

Form: `2026-11-20 09:18:12.970 | DEBUG    | MODULE:function:line | streamId=ID - NvidiaLLMService#0 TTFB: 0.201s`
(loguru, pipecat 1.14). Knows nothing of dialogue or sockets.
"""

import queue
import sys
import threading
from datetime import datetime
from pathlib import Path

_WAITING_LINES = 20_000  # a reader of stderr who has stalled must not stall the calls
_CLOSE_S = 2.0
_METRICS = "pipecat.processors.metrics.frame_processor_metrics"


class AgentLog:
    """Lines go to a file, or to stderr, from a thread of their own; those nobody takes are dropped and counted."""

    def __init__(self, path: Path | None) -> None:
        self.lost = 0
        self._file = None if path is None else path.open("a", encoding="utf-8")
        self._lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._writer = threading.Thread(target=self._write, name="agent-log", daemon=True)
        self._writer.start()

    def line(self, where: str, stream_id: str, text: str, level: str = "DEBUG") -> None:
        at = datetime.now().isoformat(" ", "milliseconds")
        self.put(f"{at} | {level:<8} | {where} | streamId={stream_id} - {text}")

    def put(self, line: str) -> None:
        """Write a line as it is."""
        if self._lines.qsize() > _WAITING_LINES:
            self.lost += 1
            return
        self._lines.put(f"{line}\n")

    def close(self) -> None:
        self._lines.put(None)
        self._writer.join(_CLOSE_S)

    def _write(self) -> None:
        out = sys.stderr if self._file is None else self._file
        ended = False
        while not ended:
            lines = [self._lines.get()]
            while not self._lines.empty():
                lines.append(self._lines.get())
            ended = None in lines
            try:
                out.write("".join(line for line in lines if line is not None))
                out.flush()
            except (OSError, ValueError):  # a full disk, a pipe whose reader has gone
                self.lost += len(lines)
        if self._file is not None:
            self._file.close()


class CallLog:
    """One call's lines. `number` counts calls: pipecat numbers a session's services so."""

    def __init__(self, log: AgentLog, stream_id: str, number: int) -> None:
        self._log = log
        self._stream_id = stream_id
        self.asr = f"NemotronASRService#{number}"
        self.llm = f"NvidiaLLMService#{number}"
        self.tts = f"NemotronTTSService#{number}"
        self._aggregator = f"LLMUserAggregator#{number}"

    def accepted(self) -> None:
        text = f"Accepted WebSocket connection for stream ID {self._stream_id}"
        self._log.line("gpu_server.calls:opened:1", "n/a", text, "INFO")

    def gone(self, ignored: int) -> None:
        more = f"; {ignored} messages were not understood" if ignored else ""
        self._say("gpu_server.agent:closed:1", f"Client disconnected{more}", "INFO")

    def user_started(self) -> None:
        self._say("gpu_server.agent:_user_started:1", f"{self._aggregator}: User started speaking")

    def user_stopped(self) -> None:
        self._say("gpu_server.agent:_user_stopped:1", f"{self._aggregator}: User stopped speaking")

    def recognized(self, asr_s: float, vad_stop_s: float, transcript: str | None) -> None:
        self._say("gpu_server.agent:run_stt:1", f"{self.asr} ASR compute latency: {round(asr_s, 3)}")
        if transcript is not None:
            self._say("gpu_server.agent:run_stt:2", f"Final user transcript: [{_one_line(transcript)}]")
        # As pipecat counts it, from the caller's last voiced audio.
        self._say(f"{_METRICS}:stop_ttfb_metrics:175", f"{self.asr} TTFB: {vad_stop_s + asr_s:.3f}s")

    def first_token(self, ttfb_s: float) -> None:
        self._say(f"{_METRICS}:stop_ttfb_metrics:175", f"{self.llm} TTFB: {ttfb_s:.3f}s")

    def first_sentence(self, seconds: float) -> None:
        text = f"{self.llm} LLM first sentence generation time: {round(seconds, 3)}"
        self._say("gpu_server.agent:process_frame:1", text)

    def thought(self, prompt: int, completion: int, seconds: float) -> None:
        usage = f"{self.llm} prompt tokens: {prompt}, completion tokens: {completion}"
        self._say(f"{_METRICS}:start_llm_usage_metrics:337", usage)
        self._say(f"{_METRICS}:stop_processing_metrics:308", f"{self.llm} processing time: {seconds:.3f}s")

    def generating(self, text: str) -> None:
        where = "pipecat.services.tts_service:_synthesize_text:1690"
        self._say(where, f"{self.tts}: Generating TTS [{_one_line(text)}]")

    def first_speech(self, ttfb_s: float) -> None:
        self._say(f"{_METRICS}:stop_ttfb_metrics:175", f"{self.tts} TTFB: {ttfb_s:.3f}s")

    def spoken(self, seconds: float) -> None:
        self._say(f"{_METRICS}:stop_processing_metrics:308", f"{self.tts} processing time: {seconds:.3f}s")

    def bot_started(self) -> None:
        self._say("pipecat.transports.base_output:_bot_started_speaking:751", "Bot started speaking")

    def bot_stopped(self) -> None:
        self._say("pipecat.transports.base_output:_bot_stopped_speaking:856", "Bot stopped speaking")

    def failed(self, error: Exception) -> None:
        where = "gpu_server.agent:_run:1"
        self._say(where, f"turn failed: {type(error).__name__}: {_one_line(str(error))}", "ERROR")

    def _say(self, where: str, text: str, level: str = "DEBUG") -> None:
        self._log.line(where, self._stream_id, text, level)


def _one_line(text: str) -> str:
    return " ".join(text.split())
