#!/usr/bin/env python3
"""mlx-lm, for comparison, on the version of MLX and the BLAS that scripts/mlx-linux prepares for llm-local.

usage: scripts/mlxlm.py convert CHECKPOINT OUT           a 4-bit model, as `python -m mlx_lm convert -q` makes it
       scripts/mlxlm.py greedy MODEL --tokens N TEXT...  answers to users' messages, a line of JSON each
       scripts/mlxlm.py rates MODEL                      prefill and decode rates, a line of JSON for each line of input

`greedy` and `rates` compute in f32, whatever the model is stored in, as llm-local does on the CPU. The prompt of `rates` (256 tokens)
and what it generates (64 tokens, the best each time) are those of `llm-local-measure speed`. Needs python 3.10 or newer with
pip on Linux, and PyPI the first time.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

from packages import FOLDER, ROOT, install

# The version of MLX that mlx-sys, and so scripts/mlx-linux, is bound to.
PACKAGES = ["mlx[cpu]==0.32.2", "mlx-lm==0.32.2"]
PROMPT, DECODE = 256, 64
# Logits of the two engines differ by less; a greedy token that is better by less may differ too.
NEAR = 0.01


def packages():
    """Makes mlx-lm importable. Most of its files are never imported, so compiling all of them first would take longer."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    return install("mlx", PACKAGES, "--no-compile")


def environment():
    """Variables with which MLX's wheel computes with the OpenBLAS of scripts/mlx-linux: its own BLAS is ten times slower."""
    folder = Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")).resolve() / "mlx-linux" / "lib"
    blas = folder / "libopenblas.so.0"
    if not blas.exists():
        sys.exit(f"{blas} is not there; scripts/mlx-linux prepares it")
    return os.environ | {"LD_PRELOAD": str(blas), "LD_LIBRARY_PATH": str(folder), "TOKENIZERS_PARALLELISM": "false"}


def command(*arguments):
    """This program in a process of its own, and the environment that it needs."""
    packages()
    return [sys.executable, __file__, *map(str, arguments)], environment()


def load(model):
    """The model, computed in f32, and its tokenizer."""
    packages()
    import mlx.core as mx
    from mlx_lm import load

    model, tokenizer = load(str(model))
    model.set_dtype(mx.float32)
    mx.eval(model.parameters())
    return model, tokenizer


def convert(checkpoint, out):
    """Written beside and renamed, so that a folder that is there is whole."""
    part = out.with_suffix(".part")
    shutil.rmtree(part, ignore_errors=True)
    folder = packages()
    line = [sys.executable, "-m", "mlx_lm", "convert", "-q", "--hf-path", str(checkpoint), "--mlx-path", str(part)]
    subprocess.run(line, check=True, env=environment() | {"PYTHONPATH": str(folder)}, stdout=subprocess.DEVNULL)
    part.rename(out)


def greedy(path, texts, count):
    """For each text: the tokens of prompt and answer, the answer, and how far of it no token was nearly another one."""
    model, tokenizer = load(path)
    import mlx.core as mx
    from mlx_lm.generate import generate_step

    for text in texts:
        messages = [{"role": "user", "content": text}]
        prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True)
        tokens, sure = [], None
        for token, logprobs in generate_step(mx.array(prompt), model, max_tokens=count):
            best = mx.sort(logprobs)[-2:]
            if sure is None and float(best[1] - best[0]) < NEAR:
                sure = len(tokens)
            if int(token) in tokenizer.eos_token_ids:
                break
            tokens.append(int(token))
        answer = dict(text=tokenizer.decode(tokens), sure=tokenizer.decode(tokens[:sure]))
        print(json.dumps(dict(prompt=prompt, tokens=tokens, **answer)), flush=True)


def rates(path):
    model, tokenizer = load(path)
    import mlx.core as mx
    from mlx_lm.generate import generate_step, generation_stream

    vocab = model.args.vocab_size
    prompt = mx.array([64 + i * 7919 % (vocab - 64) for i in range(PROMPT)])
    for _ in sys.stdin:
        start, times, tokens = time.perf_counter(), [], []
        for token, _ in generate_step(prompt, model, max_tokens=DECODE):
            tokens.append(int(token))
            times.append(time.perf_counter())
        # It computes a step ahead: the last one would run beside what is measured next.
        mx.synchronize(generation_stream)
        prefill, decode = PROMPT / (times[0] - start), (DECODE - 1) / (times[-1] - times[0])
        print(json.dumps(dict(prefill=prefill, decode=decode, tokens=tokens)), flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    one = commands.add_parser("convert")
    one.add_argument("checkpoint", type=Path)
    one.add_argument("out", type=Path)
    one = commands.add_parser("greedy")
    one.add_argument("model", type=Path)
    one.add_argument("texts", nargs="+")
    one.add_argument("--tokens", type=int, required=True)
    one = commands.add_parser("rates")
    one.add_argument("model", type=Path)
    args = parser.parse_args()
    if args.command != "convert" and "libopenblas" not in os.environ.get("LD_PRELOAD", ""):
        line, variables = command(*sys.argv[1:])
        os.execvpe(line[0], line, variables)
    if args.command == "convert":
        convert(args.checkpoint, args.out)
    elif args.command == "greedy":
        greedy(args.model, args.texts, args.tokens)
    else:
        rates(args.model)


if __name__ == "__main__":
    main()
