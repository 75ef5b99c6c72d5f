"""The programs that scripts run, and packages from PyPI for the scripts: these are kept under target/real-model, so that nothing on this machine changes.

Needs python 3.10 or newer with pip, and PyPI the first time.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "target" / "real-model"


def programs(*options):
    """Builds the programs, and says which folder they are in: `scripts/programs`."""
    built = subprocess.run([ROOT / "scripts" / "programs", *options], check=True, stdout=subprocess.PIPE, text=True)
    return Path(built.stdout.strip())


def pip(*arguments, env=None):
    command = [sys.executable, "-m", "pip", "-q", "--disable-pip-version-check", *arguments]
    subprocess.run(command, check=True, env=env and os.environ | env)


def install(name, packages, *options, env=None):
    """Installs `packages` into the folder `name`, and imports from there."""
    folder = FOLDER / name
    stamp = folder / "installed"
    wanted = "\n".join(packages)
    if not stamp.exists() or stamp.read_text() != wanted:
        shutil.rmtree(folder, ignore_errors=True)
        pip("install", "--root-user-action=ignore", "--target", str(folder), *options, *packages, env=env)
        stamp.write_text(wanted)
    sys.path.insert(0, str(folder))
    return folder
