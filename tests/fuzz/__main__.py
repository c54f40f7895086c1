"""Coverage-guided fuzzing of the parsers: python -m tests.fuzz [SECONDS] [PARSER ...]; `make fuzz`.

Each parser has its own process, its time and its corpus (.cache/fuzz/PARSER, which is kept: the next run goes on from there).
Whatever is raised that is no EdgeError, or takes seconds or gigabytes, ends it: the input is in .cache/fuzz/PARSER.crash-*.
"""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]
CORPUS = ROOT / ".cache" / "fuzz"
SECONDS = 300
INPUT_BYTES_MAX = 16_384
INPUT_S_MAX = 10
RSS_MIB_MAX = 1_024


def main() -> int:
    sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "adapters")]
    if importlib.util.find_spec("atheris") is None:
        print("SKIPPED: atheris is not installed (there is no wheel of it for this Python): NOTHING WAS FUZZED", file=sys.stderr)
        return 0
    from fuzzing import parsers

    seconds = float(sys.argv[1]) if len(sys.argv) > 1 else SECONDS
    names = sys.argv[2:] or list(parsers())
    failed = [name for name in names if not fuzz(name, seconds / len(names))]
    print(f"{len(names)} parsers, {seconds:g} s; failed: {', '.join(failed) or 'none'}")
    return bool(failed)


def fuzz(name: str, seconds: float) -> bool:
    """One parser. True: nothing was found."""
    from fuzzing import parsers

    folder, file = CORPUS / name.replace(" ", "-"), CORPUS / f"{name.replace(' ', '-')}.log"
    folder.mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate(parsers()[name].seeds):
        (folder / f"seed-{number}").write_bytes(seed)
    command = [
        sys.executable, str(ROOT / "tests/fuzz/one.py"), name, str(folder), f"-max_total_time={max(1, round(seconds))}",
        f"-max_len={INPUT_BYTES_MAX}", f"-timeout={INPUT_S_MAX}", f"-rss_limit_mb={RSS_MIB_MAX}",
        f"-artifact_prefix={CORPUS}/{folder.name}.", f"-dict={_words()}",
    ]  # fmt: skip
    began_s = time.monotonic()
    with file.open("wb") as log:
        status = subprocess.run(command, stdout=log, stderr=log, cwd=ROOT).returncode
    words = file.read_text(errors="replace")
    last = [line for line in words.splitlines() if line.startswith("#") and "cov:" in line][-1:] or ["no run"]
    print(
        f"{name}: {time.monotonic() - began_s:.0f} s, {' '.join(last[0].split()[:6])}{'' if status == 0 else '  FAILED'}",
        flush=True,
    )
    if status:
        print(words[-3_000:], file=sys.stderr)
    return status == 0


def _words() -> Path:
    """What the parsers look for: a fuzzer need not find it letter by letter."""
    from fuzzing import TOKENS

    file = CORPUS / "words.txt"
    lines = [token for token in TOKENS if len(token) < 64]
    file.write_text("".join('"' + "".join(f"\\x{byte:02x}" for byte in token) + '"\n' for token in lines))
    return file


if __name__ == "__main__":
    sys.exit(main())
