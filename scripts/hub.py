"""The hub that scripts point this program and Python's huggingface_hub at, both in an environment of their own.

`PROGRAMS` in the environment is the folder that scripts/programs prints.
"""

import os
import socket
import subprocess
from pathlib import Path

from packages import install

HUGGINGFACE_HUB = "huggingface_hub==2.4.0"
PREFIXES = ("HF_", "HUGGING", "LLM_LOCAL_", "TRANSFORMERS_", "XDG_")
PROXIES = ("http_proxy", "https_proxy", "all_proxy")


def program(name):
    return Path(os.environ["PROGRAMS"]) / name


def environment(home, **more):
    """What programs are run in: a home folder of their own, and nothing that this machine's user set for the Hub."""
    own = {k: v for k, v in os.environ.items() if not k.startswith(PREFIXES) and k.lower() not in PROXIES}
    own |= {"HOME": str(home), "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
    own |= {"HF_HUB_DISABLE_UPDATE_CHECK": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    return own | {name: str(value) for name, value in more.items()}


def install_huggingface_hub():
    """The folder that has huggingface_hub."""
    return install("huggingface_hub", [HUGGINGFACE_HUB])


class Hub:
    """Testkit's hub, which serves the repositories `folder/org/name` and what `options` say, until the block ends.

    Then `requests` and `bytes` tell what was asked of it.
    """

    def __init__(self, folder, *options):
        self.command = [program("examples/hub"), *options, folder]

    def __enter__(self):
        self.process = subprocess.Popen(self.command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        word, _, self.endpoint = self.process.stdout.readline().strip().partition(" ")
        if word != "endpoint":
            raise SystemExit(f"{self.command[0]} did not say its endpoint")
        return self

    def __exit__(self, *_):
        out, _ = self.process.communicate(timeout=60)
        told = dict(line.split() for line in out.splitlines())
        self.requests, self.bytes = int(told["requests"]), int(told["bytes"])


class Silence:
    """An endpoint that answers nothing, and fails the block if anybody so much as connects."""

    def __enter__(self):
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.socket.setblocking(False)
        self.endpoint = "http://127.0.0.1:{}".format(self.socket.getsockname()[1])
        return self

    def __exit__(self, kind, *_):
        try:
            self.socket.accept()
        except BlockingIOError:
            return
        finally:
            self.socket.close()
        if kind is None:
            raise AssertionError("the network was used, where everything needed is in the cache")
