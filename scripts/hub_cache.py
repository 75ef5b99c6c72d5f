"""What scripts/check-hub-cache checks, once the program and the hub are built.

Each check has a cache of its own. What is not to make a request is given an endpoint that fails if there is one.
"""

import filecmp
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from hub import Hub, Silence, environment, install_huggingface_hub, program
from packages import ROOT

FIXTURES = ROOT / "tests" / "fixtures"
MODEL, ADAPTER = "org/tiny", "org/lora"
WEIGHTS = "model.safetensors"
PROMPT = ["--max-tokens", "4", "Once upon a time"]
# Bytes that Python gets before it is killed.
CUT = 600_000


def check(holds, message):
    if not holds:
        raise AssertionError(message)


class Setup:
    """Repositories to serve, and a cache for both tools to use."""

    def __init__(self, folder):
        self.repos, self.cache, self.store = folder / "repos", folder / "hub", folder / "store"
        self.model, self.adapter = self.repos / MODEL, self.repos / ADAPTER
        shutil.copytree(FIXTURES / "models" / "tiny-llama", self.model)
        shutil.copytree(FIXTURES / "adapters" / "tiny-llama-lora-peft", self.adapter)
        (self.adapter / "README.md").write_text("What neither tool needs to load it.\n")
        self.folder = folder

    def environment(self, endpoint, **more):
        places = dict(HF_ENDPOINT=endpoint, HF_HUB_CACHE=self.cache, LLM_LOCAL_CACHE=self.store)
        return environment(self.folder / "home", **places, **more)

    def ours(self, endpoint, *arguments, fails=False, **more):
        """Runs the program; its standard output, or its standard error if it is to fail."""
        env = self.environment(endpoint, **more)
        command = [program("llm-local"), *map(str, arguments)]
        run = subprocess.run(command, env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=120)
        shown = f"llm-local {' '.join(command[1:])}: exit status {run.returncode}\n{run.stdout}{run.stderr}"
        check((run.returncode != 0) == fails, shown)
        return run.stderr if fails else run.stdout

    def offline(self, *arguments, fails=False):
        """Runs the program with HF_HUB_OFFLINE, and makes sure that it asks nothing."""
        with Silence() as silence:
            return self.ours(silence.endpoint, *arguments, fails=fails, HF_HUB_OFFLINE=1)

    def python(self, function, *arguments, **more):
        """Calls a function of huggingface_hub on the cache."""
        import huggingface_hub

        return getattr(huggingface_hub, function)(*arguments, cache_dir=self.cache, **more)

    def python_locally(self, function, *arguments, **more):
        """The same with `local_files_only`, and makes sure that it asks nothing."""
        with Silence() as silence:
            more = dict(local_files_only=True, endpoint=silence.endpoint) | more
            return self.python(function, *arguments, **more)

    def scan(self):
        """What huggingface_hub says is in the cache, which it must find sound: revisions by repository."""
        found = self.python("scan_cache_dir")
        check(not found.warnings, f"scan_cache_dir warns: {list(map(str, found.warnings))}")
        dangling = [p for p in self.cache.rglob("*") if p.is_symlink() and not p.exists()]
        check(not dangling, f"links that lead nowhere: {dangling}")
        return {repo.repo_id: repo.revisions for repo in found.repos}, found

    def ask_for_nothing_whole(self):
        """The answers of the model and of the adapter, from the files in `repos` themselves."""
        base = self.ours("http://127.0.0.1:9", "run", "--model", self.model, *PROMPT)
        both = self.ours("http://127.0.0.1:9", "run", "--model", self.model, "--adapter", self.adapter, *PROMPT)
        check(base != both, f"the adapter changes nothing: both answers are {base!r}")
        return base, both


def same_files(folder, expected, names=None):
    names = sorted(names or os.listdir(expected))
    for name in names:
        check(filecmp.cmp(Path(folder) / name, expected / name, shallow=False), f"{folder}/{name} has other bytes")
    there = sorted(os.listdir(folder))
    check(there == names, f"{folder} has the files {there}; expected {names}")


def python_reads_what_we_wrote(setup):
    with Hub(setup.repos) as hub:
        setup.ours(hub.endpoint, "pull", f"hf:{MODEL}")
        setup.ours(hub.endpoint, "pull", "--adapter", f"hf:{ADAPTER}")
    first = setup.python_locally("snapshot_download", MODEL)
    old = setup.folder / "old"
    shutil.copytree(setup.model, old)
    # Another commit, that shares all but one file with the first.
    changed = setup.model / "generation_config.json"
    changed.write_text(json.dumps(json.loads(changed.read_text()) | {"max_length": 77}))
    with Hub(setup.repos) as hub:
        setup.ours(hub.endpoint, "pull", f"hf:{MODEL}")
    size = (setup.model / WEIGHTS).stat().st_size
    check(hub.bytes < size // 4, f"{hub.bytes} bytes came for a revision that shares its weights with another")

    second = setup.python_locally("snapshot_download", MODEL)
    check(Path(first).name != Path(second).name, f"both revisions are at {first}")
    same_files(second, setup.model)
    same_files(setup.python_locally("snapshot_download", MODEL, revision=Path(first).name), old)
    for name in os.listdir(setup.model):
        path = setup.python_locally("hf_hub_download", MODEL, name)
        check(path == os.path.join(second, name), f"{name} is at {path}, not in {second}")

    # Only what is needed was pulled, and the list of files tells that there is more.
    wanted = ["adapter_config.json", "adapter_model.safetensors"]
    same_files(setup.python_locally("snapshot_download", ADAPTER, allow_patterns=wanted), setup.adapter, wanted)
    # Without patterns too, though README.md was not fetched.
    same_files(setup.python_locally("snapshot_download", ADAPTER), setup.adapter, wanted)
    with Hub(setup.repos) as hub:
        same_files(setup.python("snapshot_download", ADAPTER, endpoint=hub.endpoint), setup.adapter)
    size = (setup.adapter / "adapter_model.safetensors").stat().st_size
    check(hub.bytes < size // 2, f"{hub.bytes} bytes came for a README.md: Python fetched what is in the cache")

    repos, found = setup.scan()
    check(set(repos) == {MODEL, ADAPTER}, f"scan_cache_dir finds {set(repos)}")
    check(not found.incomplete_files, f"incomplete files: {found.incomplete_files}")
    revisions = {Path(r.snapshot_path).name: r for r in repos[MODEL]}
    check(set(revisions) == {Path(first).name, Path(second).name}, f"scan_cache_dir finds the revisions {revisions}")
    check(revisions[Path(second).name].refs == {"main"}, f"main is not at {second}: {revisions}")
    weights = {f.blob_path for r in revisions.values() for f in r.files if f.file_name == WEIGHTS}
    check(len(weights) == 1, f"two revisions with the same weights do not share them: {weights}")

    setup.ours("http://127.0.0.1:9", "rm", f"hf:{MODEL}@{Path(first).name}")
    repos, _ = setup.scan()
    check([r.refs for r in repos[MODEL]] == [{"main"}], f"one revision was deleted; left are {repos[MODEL]}")
    same_files(setup.python_locally("snapshot_download", MODEL), setup.model)


def shard(folder):
    """Cuts the weights in `folder` into two shards, with their index."""
    weights = (folder / WEIGHTS).read_bytes()
    start = 8 + int.from_bytes(weights[:8], "little")
    header = json.loads(weights[8:start])
    header.pop("__metadata__", None)
    names, index = sorted(header), {"weight_map": {}}
    for at, part in enumerate((names[::2], names[1::2]), 1):
        file, entries, data = f"model-{at:05}-of-00002.safetensors", {}, b""
        for name in part:
            begin, end = header[name]["data_offsets"]
            entries[name] = header[name] | {"data_offsets": [len(data), len(data) + end - begin]}
            data += weights[start + begin : start + end]
            index["weight_map"][name] = file
        text = json.dumps(entries).encode()
        (folder / file).write_bytes(len(text).to_bytes(8, "little") + text + data)
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / WEIGHTS).unlink()


def shards_with_their_index_are_read_by_both_and_go_without_a_trace(setup):
    expected, _ = setup.ask_for_nothing_whole()
    shard(setup.model)
    with Hub(setup.repos) as hub:
        setup.ours(hub.endpoint, "pull", f"hf:{MODEL}")
    same_files(setup.python_locally("snapshot_download", MODEL), setup.model)
    check(setup.offline("run", "--model", f"hf:{MODEL}", *PROMPT) == expected, "the model in shards answers otherwise")
    repos, found = setup.scan()
    check(set(repos) == {MODEL} and not found.incomplete_files, f"scan_cache_dir finds {found}")
    setup.offline("rm", f"hf:{MODEL}")
    left = list(setup.cache.glob("models--*"))
    check(not left, f"something of the deleted model is left: {[str(p) for f in left for p in f.rglob('*')]}")


def we_read_what_python_wrote(setup):
    expected = setup.ask_for_nothing_whole()
    with Hub(setup.repos) as hub:
        for repo in (MODEL, ADAPTER):
            setup.python("snapshot_download", repo, endpoint=hub.endpoint)
    run = ["run", "--model", f"hf:{MODEL}"]
    check(setup.offline(*run, *PROMPT) == expected[0], "the model that Python fetched answers otherwise")
    answer = setup.offline(*run, "--adapter", f"hf:{ADAPTER}", *PROMPT)
    check(answer == expected[1], "with the adapter that Python fetched, the model answers otherwise")
    with Hub(setup.repos) as hub:
        setup.ours(hub.endpoint, "pull", f"hf:{MODEL}")
    check(hub.bytes < 100_000, f"{hub.bytes} bytes came for what is in the cache")

    listed = setup.offline("list")
    lines = [line for line in listed.splitlines() if f"hf:{MODEL} " in line]
    origin = "found in the cache of another tool"
    check(len(lines) == 1 and origin in lines[0], f"list does not say where it is from:\n{listed}")
    verified = setup.offline("verify", f"hf:{MODEL}").splitlines()
    check(len(verified) == 5 and all(line.endswith(": intact") for line in verified), f"verify says {verified}")

    setup.offline("rm", f"hf:{MODEL}")
    check(f"hf:{MODEL} " not in setup.offline("list"), "list shows what was deleted")
    repos, found = setup.scan()
    check(set(repos) == {ADAPTER}, f"scan_cache_dir finds {set(repos)}; expected what was not deleted")
    check(found.size_on_disk < 1_000_000, f"the cache has {found.size_on_disk} bytes: the weights are there still")
    check(not list(setup.cache.glob("models--org--tiny/blobs/*")), "content of the deleted model is there still")
    same_files(setup.python_locally("snapshot_download", ADAPTER), setup.adapter)
    check(f"hf:{MODEL}" in setup.offline(*run, *PROMPT, fails=True), "the error does not name the deleted model")


def we_read_what_python_fetched_file_by_file(setup):
    """As transformers does, which leaves no list of the files."""
    expected, _ = setup.ask_for_nothing_whole()
    run = ["run", "--model", f"hf:{MODEL}", *PROMPT]
    names = sorted(os.listdir(setup.model))
    names.remove(WEIGHTS)
    with Hub(setup.repos) as hub:
        for name in names:
            setup.python("hf_hub_download", MODEL, name, endpoint=hub.endpoint)
        error = setup.offline(*run, fails=True)
        check("weights" in error, f"the error does not say that the weights are missing: {error}")
        setup.python("hf_hub_download", MODEL, WEIGHTS, endpoint=hub.endpoint)
    check(not list(setup.cache.glob("*/trees")), "there is a list of files, so this checks nothing")
    check(setup.offline(*run) == expected, "the model that Python fetched file by file answers otherwise")


def we_read_what_python_shares_between_repositories(setup):
    """As it keeps what comes by xet, which the hub here does not speak: in a store for all, to which the blob links."""
    from huggingface_hub.utils._shared_blobs import publish_blob_to_shared_store

    expected, _ = setup.ask_for_nothing_whole()
    with Hub(setup.repos) as hub:
        blob = Path(setup.python("hf_hub_download", MODEL, WEIGHTS, endpoint=hub.endpoint)).resolve()
        setup.python("snapshot_download", MODEL, endpoint=hub.endpoint)
    size = blob.stat().st_size
    shared = publish_blob_to_shared_store(
        blob_path=str(blob), xet_hash="ab" * 32, cache_dir=str(setup.cache), expected_size=size
    )
    check(shared and blob.is_symlink(), f"huggingface_hub did not move {blob} to its shared store")
    check(setup.offline("run", "--model", f"hf:{MODEL}", *PROMPT) == expected, "the shared weights answer otherwise")
    verified = setup.offline("verify", f"hf:{MODEL}").splitlines()
    check(len(verified) == 5 and all(line.endswith(": intact") for line in verified), f"verify says {verified}")
    payload = blob.resolve()
    setup.offline("rm", f"hf:{MODEL}")
    repos, _ = setup.scan()
    check(not repos, f"scan_cache_dir finds {set(repos)}")
    check(payload.stat().st_size == size, f"{payload} went, which is not of this repository alone")


def what_python_left_unfinished_is_no_file(setup):
    expected, _ = setup.ask_for_nothing_whole()
    with Hub(setup.repos) as hub:
        command = [sys.executable, __file__, "--killed", hub.endpoint]
        env = setup.environment(hub.endpoint)
        killed = subprocess.run(command, env=env, capture_output=True, text=True, timeout=60)
    check(killed.returncode == -9, f"the download was to be killed; exit status {killed.returncode}\n{killed.stderr}")
    left = list(setup.cache.glob("*/blobs/*.incomplete"))
    sizes = [path.stat().st_size for path in left]
    check(len(left) == 1 and 0 < sizes[0] <= CUT, f"expected one unfinished file: {dict(zip(left, sizes))}")

    run = ["run", "--model", f"hf:{MODEL}", *PROMPT]
    error = setup.offline(*run, fails=True)
    check(WEIGHTS in error, f"the error does not name what is missing: {error}")
    check(f"hf:{MODEL}" not in setup.offline("list"), "list shows what is not whole")
    with Hub(setup.repos) as hub:
        setup.ours(hub.endpoint, "pull", f"hf:{MODEL}")
    same_files(setup.python_locally("snapshot_download", MODEL), setup.model)
    check(setup.offline(*run) == expected, "what was fetched beside an unfinished file answers otherwise")
    _, found = setup.scan()
    unfinished = {f.file_path for f in found.incomplete_files}
    check(unfinished == set(left), f"{unfinished} are unfinished; expected {left}")


def killed_download(endpoint):
    """Downloads the model, in small pieces, until something of the weights is there; then kills itself."""
    install_huggingface_hub()
    from huggingface_hub import constants, hf_hub_download, snapshot_download
    from tqdm import tqdm

    class Deadly(tqdm):
        def update(self, n=1):
            super().update(n)
            if self.n >= CUT:
                os.kill(os.getpid(), 9)

    constants.DOWNLOAD_CHUNK_SIZE = 64 << 10
    snapshot_download(MODEL, endpoint=endpoint, ignore_patterns=WEIGHTS)
    hf_hub_download(MODEL, WEIGHTS, endpoint=endpoint, tqdm_class=Deadly)


def main():
    install_huggingface_hub()
    checks = [
        python_reads_what_we_wrote,
        shards_with_their_index_are_read_by_both_and_go_without_a_trace,
        we_read_what_python_wrote,
        we_read_what_python_fetched_file_by_file,
        we_read_what_python_shares_between_repositories,
        what_python_left_unfinished_is_no_file,
    ]
    with tempfile.TemporaryDirectory() as folder:
        own = environment(folder)
        os.environ.clear()
        os.environ.update(own)
        for run in checks:
            setup = Path(folder) / run.__name__
            setup.mkdir()
            run(Setup(setup))
            print(run.__name__.replace("_", " "), flush=True)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--killed"]:
        killed_download(sys.argv[2])
    else:
        main()
