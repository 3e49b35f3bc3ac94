"""python -m workers clips: say what is wrong with the audio one wants to speak, and mend it. Knows nothing of runs."""

import argparse
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from workers.audio.clips import Clip


def add_arguments(verb: argparse.ArgumentParser) -> None:
    """`check DIR` and `fix DIR`."""
    actions = verb.add_subparsers(dest="action", required=True, metavar="check|fix")
    check = actions.add_parser(
        "check",
        help="say what is wrong with each file of a folder",
        description="Say what is wrong with each audio file of DIR. A query is a 16 kHz mono 16-bit WAV file.",
        epilog="exit status: 0 if a run would take all of them, 1 if it would refuse any, 2 if there are none",
    )
    check.add_argument("folder", type=Path, metavar="DIR")
    fix = actions.add_parser(
        "fix",
        help="write mended copies",
        description="Write a copy of each audio file of DIR as a query must be: one channel (the mean of all), 16 kHz, "
        "16 bit, no silence behind the voice. Good files are copied as they are.",
        epilog="exit status: 0 if all could be mended, 1 if any could not, 2 if there are none",
    )
    fix.add_argument("folder", type=Path, metavar="DIR")
    where = fix.add_mutually_exclusive_group()
    where.add_argument("--output", type=Path, metavar="DIR", help="where to (default: a folder `fixed` inside DIR)")
    where.add_argument("--in-place", action="store_true", help="replace what is wrong; the originals are lost")


def clips_command(options: argparse.Namespace) -> int:
    """Do it; the exit status."""
    if options.action == "check":
        return check(options.folder)
    return fix(options.folder, None if options.in_place else options.output or options.folder / "fixed")


def check(folder: Path) -> int:
    """Print a line a file; 1 if a run would refuse any."""
    from workers.audio import clips  # who only seals a run may lack what reads audio

    files = clips.audio_files(folder)
    width = max(len("file"), *(len(path.name) for path in files))
    print(f"{'file':{width}}  {'':7}  what")
    refused = 0
    for path in files:
        problems = clips.examine(path)
        is_refused = any(problem.refused for problem in problems)
        refused += is_refused
        verdict = "REFUSED" if is_refused else "warning" if problems else "ok"
        print(f"{path.name:{width}}  {verdict:7}  {', '.join(map(str, problems))}".rstrip())
    if refused:
        print(f"{refused} of {len(files)} would be refused. Mended copies: python -m workers clips fix {folder}")
    return 1 if refused else 0


def fix(folder: Path, output: Path | None) -> int:
    """Write mended copies into `output`, or over what is wrong if None; 1 if any cannot be mended."""
    from workers.audio import clips

    files = clips.audio_files(folder)
    targets = [path if output is None and _is_wav(path) else (output or folder) / f"{path.stem}.wav" for path in files]
    _refuse_to_overwrite(targets, files if output is None else [])
    if output is not None:
        output.mkdir(parents=True, exist_ok=True)
    failed = 0
    for path, target in zip(files, targets, strict=True):
        problems = clips.examine(path)
        if not problems:
            if output is not None:
                target.write_bytes(path.read_bytes())
            print(f"{path.name}: good as it is")
            continue
        try:
            _write(clips.fixed(path), target)
        except clips.ClipError as error:
            failed += 1
            print(f"{error}; this cannot be mended", file=sys.stderr)
            continue
        left = ", ".join(map(str, clips.examine(target)))  # what was clipped stays clipped
        print(f"{path.name}: mended ({', '.join(map(str, problems))})" + (f"; left: {left}" if left else ""))
    print(f"{len(files) - failed} of {len(files)} are in {output or folder}")
    return 1 if failed else 0


def _refuse_to_overwrite(targets: list[Path], allowed: list[Path]) -> None:
    from workers.audio.clips import ClipError

    there = {target for target in targets if target.exists() and target not in allowed}
    there |= {target for target in targets if targets.count(target) > 1}
    if there:
        names = ", ".join(sorted(target.name for target in there))
        raise ClipError(f"would write over {names} in {targets[0].parent}; name another folder with --output")


def _is_wav(path: Path) -> bool:
    return path.suffix.lower() == ".wav"


def _write(clip: "Clip", target: Path) -> None:
    import soundfile

    part = target.with_name(f".{target.name}.part")
    soundfile.write(part, clip.samples, clip.rate, "PCM_16", format="WAV")
    os.replace(part, target)  # whole or not at all
