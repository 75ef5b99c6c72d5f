#!/usr/bin/env python3
"""llama.cpp, for comparison: prefill and decode rates of GGUF files, as JSON that `llm-local-measure speed --beside` reads.

usage: scripts/llamacpp.py OUT.json --threads N [--runs N] FILE.gguf...

The prompt (256 tokens, in one batch) and what is generated (64 tokens, the best each time) are those of `speed`. Builds
llama-cpp-python for this processor the first time, which takes 5 to 10 minutes and needs a C++ compiler, python 3.10 or
newer with pip, and PyPI.
"""

import argparse
import json
import statistics
import time
from pathlib import Path

from packages import install

PACKAGE = "llama-cpp-python==0.3.36"
PROMPT, DECODE = 256, 64


def library():
    """llama.cpp's C functions, silenced."""
    install("llama-cpp", [PACKAGE])
    import llama_cpp

    global silent  # the library keeps a pointer to it
    silent = llama_cpp.llama_log_callback(lambda level, text, data: None)
    llama_cpp.llama_log_set(silent, None)
    llama_cpp.llama_backend_init()
    return llama_cpp


def quantize(source, target, file_type):
    """Quantizes the GGUF file `source` to the `llama_ftype` `file_type`."""
    lib = library()
    params = lib.llama_model_quantize_default_params()
    params.ftype = file_type
    if lib.llama_model_quantize(str(source).encode(), str(target).encode(), params) != 0:
        raise SystemExit(f"llama.cpp could not quantize {source} to {file_type}")


def rates(lib, path, threads, runs):
    """Medians of prefill and decode, in tokens per second, after one run that does not count."""
    import numpy as np

    params = lib.llama_model_default_params()
    params.n_gpu_layers = 0
    model = lib.llama_model_load_from_file(str(path).encode(), params)
    if not model:
        raise SystemExit(f"llama.cpp could not load {path}")
    params = lib.llama_context_default_params()
    params.n_ctx = params.n_batch = params.n_ubatch = 512
    params.n_threads = params.n_threads_batch = threads
    context = lib.llama_init_from_model(model, params)
    vocab = lib.llama_vocab_n_tokens(lib.llama_model_get_vocab(model))
    prompt = (lib.llama_token * PROMPT)(*(64 + i * 7919 % (vocab - 64) for i in range(PROMPT)))
    one = (lib.llama_token * 1)()

    def step(tokens, count):
        if lib.llama_decode(context, lib.llama_batch_get_one(tokens, count)) != 0:
            raise SystemExit(f"llama.cpp could not compute {path}")
        return int(np.ctypeslib.as_array(lib.llama_get_logits_ith(context, -1), shape=(vocab,)).argmax())

    prefill, decode = [], []
    for _ in range(runs + 1):
        lib.llama_memory_clear(lib.llama_get_memory(context), True)
        start = time.perf_counter()
        one[0] = step(prompt, PROMPT)
        first = time.perf_counter()
        for _ in range(DECODE - 1):
            one[0] = step(one, 1)
        prefill.append(PROMPT / (first - start))
        decode.append((DECODE - 1) / (time.perf_counter() - first))
    lib.llama_free(context)
    lib.llama_model_free(model)
    return dict(prefill=statistics.median(prefill[1:]), decode=statistics.median(decode[1:]))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("files", type=Path, nargs="+")
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--runs", type=int, default=9)
    args = parser.parse_args()
    lib = library()
    results = {path.name: rates(lib, path, args.threads, args.runs) for path in args.files}
    engine = f"llama.cpp ({PACKAGE.replace('==', ' ')}, built for this processor)"
    args.out.write_text(json.dumps(dict(engine=engine, threads=args.threads, results=results), indent=1))


if __name__ == "__main__":
    main()
