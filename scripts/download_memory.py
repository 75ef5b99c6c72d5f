"""What scripts/check-download-memory checks."""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from hub import Hub, environment, program

LIMIT = 64_000_000
CASES = {"one large file": [512 << 20], "300 small files": [100_000] * 300}


def main():
    with tempfile.TemporaryDirectory() as folder:
        options = []
        for name, sizes in enumerate(CASES.values()):
            repo = Path(folder, "repos", "org", f"m{name}")
            repo.mkdir(parents=True)
            (repo / "config.json").write_text(json.dumps({"model_type": "llama"}))
            files = ["model.safetensors"]
            if len(sizes) > 1:
                files = [f"model-{n:05}-of-{len(sizes):05}.safetensors" for n in range(1, len(sizes) + 1)]
            options += [word for file, size in zip(files, sizes)
                        for word in ("--generate", f"org/m{name}/{file}={size}")]
        with Hub(Path(folder, "repos"), *options) as hub:
            for name, title in enumerate(CASES):
                check(title, hub, f"hf:org/m{name}", Path(folder, f"home{name}"))


def check(title, hub, reference, home):
    home.mkdir()
    env = environment(home, HF_ENDPOINT=hub.endpoint, HF_HUB_CACHE=home / "hub", LLM_LOCAL_CACHE=home / "store")
    process = subprocess.Popen([program("llm-local"), "pull", reference], env=env, stdin=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        sys.exit(f"{title}: llm-local pull ended with {process.returncode}")
    # Of this interpreter, too, before it became the program: never less than the program's own.
    peak = usage.ru_maxrss * 1024
    print(f"{title}: {peak / 1e6:.1f} MB")
    if peak >= LIMIT:
        sys.exit(f"{title}: expected less than {LIMIT / 1e6:.0f} MB")


if __name__ == "__main__":
    main()
