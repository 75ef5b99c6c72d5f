#!/usr/bin/env python3
"""Checks that the program answers through MLX as mlx-lm does, greedily, on the same models: as long as no token is nearly another
one. The capital of France must be Paris.

usage: scripts/mlx_answers.py MODEL...

Needs what scripts/mlx-linux and scripts/mlxlm.py need.
"""

import json
import subprocess
import sys
from pathlib import Path

import mlxlm
from packages import programs

QUESTIONS = ["What is the capital of France? Answer with one word.", "Write one sentence about the sea."]
TOKENS = 32


def ours(program, model, question):
    line = [program, "run", "--model", model, "--backend", "mlx", "--temperature", "0", "--max-tokens", str(TOKENS), question]
    done = subprocess.run(line, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{program} run --model {model} --backend mlx: {done.stderr}")
    return done.stdout.rstrip("\n")


def theirs(model):
    line, variables = mlxlm.command("greedy", model, "--tokens", TOKENS, *QUESTIONS)
    done = subprocess.run(line, env=variables, check=True, stdout=subprocess.PIPE, text=True)
    return [json.loads(answer) for answer in done.stdout.splitlines()]


def main():
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    program = programs("--mlx") / "llm-local"
    for model in sys.argv[1:]:
        name, sure = Path(model).name, 0
        for question, expected in zip(QUESTIONS, theirs(model), strict=True):
            answer = ours(program, model, question)
            print(f"{name}: {question}\n  {answer!r}")
            same = answer.startswith(expected["sure"].rstrip("\n"))
            if not same or (expected["sure"] == expected["text"] and answer != expected["text"].rstrip("\n")):
                sys.exit(f"{name}: mlx-lm answers {expected['text']!r}, and surely {expected['sure']!r}")
            if "capital" in question and "Paris" not in answer:
                sys.exit(f"{name}: the answer does not name Paris")
            sure += len(expected["sure"])
        if sure < 40:
            sys.exit(f"{name}: only {sure} characters could be compared; ask something else")
        print(f"{name}: {sure} characters as mlx-lm's")


if __name__ == "__main__":
    main()
