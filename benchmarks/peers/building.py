"""Compile the peers that are written in C, where a compiler is there. Knows nothing of what they do."""

import shutil
import subprocess
from pathlib import Path

_SOURCES = Path(__file__).parent
_COMPILERS = ("cc", "gcc", "clang")


def built(name: str, folder: Path, tls: bool = False) -> Path | None:
    """`name`.c, compiled into `folder`; None where that cannot be done. tls: with OpenSSL, whose headers it needs."""
    compiler = next(filter(None, map(shutil.which, _COMPILERS)), None)
    if compiler is None:
        return None
    folder.mkdir(parents=True, exist_ok=True)
    program = folder / name
    command = [compiler, "-O2", "-o", str(program), str(_SOURCES / f"{name}.c")]
    if tls:
        command += ["-DWITH_TLS", "-lssl", "-lcrypto"]
    made = subprocess.run(command, capture_output=True, text=True, check=False)
    return program if made.returncode == 0 else None
