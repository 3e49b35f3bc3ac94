"""Make the default queries anew: each line of queries.txt, spoken by the bundled server's engine.

    python -m gpu_server --port 8080 &
    python audio_files/make.py http://localhost:8080

Needs nothing but a server that answers `POST /v1/synthesize`; knows nothing of how it speaks.
"""

import json
import sys
import tempfile
import urllib.request
from pathlib import Path

from workers.clips_command import fix

HERE = Path(__file__).parent
VOICES = ("default", "tenor", "bass")  # those that pocketsphinx understands


def main(server: str) -> int:
    with tempfile.TemporaryDirectory() as spoken:
        for number, text in enumerate((HERE / "queries.txt").read_text().splitlines(), start=1):
            body = json.dumps({"text": text, "speaker_id": VOICES[number % len(VOICES)], "format": "wav"}).encode()
            request = urllib.request.Request(
                f"{server}/v1/synthesize", body, headers={"content-type": "application/json"}
            )
            with urllib.request.urlopen(request, timeout=60) as answer:
                (Path(spoken) / f"query_{number}.wav").write_bytes(answer.read())
        for old in HERE.glob("query_*.wav"):
            old.unlink()
        return fix(Path(spoken), HERE)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1] if len(sys.argv) > 1 else "http://localhost:8080"))
