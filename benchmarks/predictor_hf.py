"""Batched `Predictor` against one-by-one `generate`: 64 prompts of mixed length, greedy, fp32.

    python benchmarks/predictor_hf.py [--model models/SmolLM2-135M-Instruct] [--rounds 3]

Both sides answer all 64 prompts in every round, the order of the sides alternating. Wall time and
CPU time of the process are recorded: where their ratio falls below the number of threads, another
process held the cores and the round's wall time says nothing: it is marked and left out. Where no
round was quiet (`quiet_rounds` 0) only `speedup_cpu` is to be quoted. The texts have to be equal.
Results go to benchmarks/results/predictor_hf.json.
"""

import argparse
import random
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from kept import keep

from main.predictor.hf import Predictor

PACKAGES = ("torch", "transformers", "peft")
CONTENDED = 0.95  # of the threads: below it the cores were shared
LENGTHS = (4, 16, 48, 96, 160)  # words of a prompt's middle part
TASKS = (
    "Say in one sentence what this is about:",
    "Continue this text:",
    "Write a title for:",
    "Explain to a child:",
)
WORDS = (
    "the river carried small boats past a quiet village where farmers sold bread apples and honey "
    "while children learned about stars weather trees trains music numbers maps and old stories"
)


def prompts(count: int = 64) -> list[str]:
    """The same mixed requests on every machine."""
    rng = random.Random(0)
    return [
        f"{rng.choice(TASKS)} {' '.join(rng.choices(WORDS.split(), k=rng.choice(LENGTHS)))}."
        for _ in range(count)
    ]


def one_by_one(predictor: Predictor, queries: list[str], max_new_tokens: int) -> list[str]:
    """What a script with plain transformers does."""
    tokenizer, model = predictor.tokenizer, predictor.model
    texts = []
    for query in queries:
        inputs = tokenizer.apply_chat_template(
            [{"role": "user", "content": query}],
            add_generation_prompt=True,
            return_tensors="pt",
            return_dict=True,
        ).to(model.device)
        output = model.generate(**inputs, do_sample=False, max_new_tokens=max_new_tokens)
        answer = output[0, inputs["input_ids"].shape[1] :]
        texts.append(tokenizer.decode(answer, skip_special_tokens=True))
    return texts


def timed(run: Callable[[], list[str]], threads: int) -> tuple[list[str], dict[str, Any]]:
    """The answers, and seconds of wall and CPU time."""
    wall, cpu = time.perf_counter(), time.process_time()
    texts = run()
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    return texts, {"wall": wall, "cpu": cpu, "contended": cpu / wall < CONTENDED * threads}


def median(rounds: list[dict[str, Any]], clock: str) -> float:
    """Over the rounds that had the cores to themselves; over all when none had."""
    quiet = [r[clock] for r in rounds if not r["contended"]]
    return statistics.median(quiet or [r[clock] for r in rounds])


def main() -> None:
    """Measure, print and write the result."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default="models/SmolLM2-135M-Instruct")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--max-new-tokens", type=int, default=64)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    predictor = Predictor(options.model, dtype="float32")
    queries, budget = prompts(), options.max_new_tokens
    sides = {
        "one_by_one": lambda: one_by_one(predictor, queries, budget),
        "predictor": lambda: predictor(queries, max_new_tokens=budget),
    }
    one_by_one(predictor, queries[:2], 8)  # both warm
    predictor(queries[:2], max_new_tokens=8)
    texts: dict[str, list[str]] = {}
    rounds: dict[str, list[dict[str, Any]]] = {name: [] for name in sides}
    for i in range(options.rounds):
        for name in list(sides)[:: 1 if i % 2 == 0 else -1]:
            texts[name], seconds = timed(sides[name], options.threads)
            rounds[name].append(seconds)
            print(i + 1, name, seconds, flush=True)
    write(options, predictor, queries, texts, rounds)


def write(
    options: argparse.Namespace,
    predictor: Predictor,
    queries: list[str],
    texts: dict[str, list[str]],
    rounds: dict[str, list[dict[str, Any]]],
) -> None:
    """Print the speed-ups and keep everything that they were made from."""
    lengths = [len(predictor.tokenizer(query)["input_ids"]) for query in queries]
    differing = [
        i for i, pair in enumerate(zip(*texts.values(), strict=True)) if pair[0] != pair[1]
    ]
    result = {
        "prompts": len(queries),
        "query_tokens": {"min": min(lengths), "max": max(lengths), "sum": sum(lengths)},
        "max_new_tokens": options.max_new_tokens,
        "answer_tokens": sum(len(predictor.tokenizer(t)["input_ids"]) for t in texts["predictor"]),
        "threads": options.threads,
        "device": str(predictor.model.device),
        "model": Path(options.model).name,
        "rounds": rounds,
        "quiet_rounds": {
            name: sum(not r["contended"] for r in done) for name, done in rounds.items()
        },
        "differing_texts": differing,
        "speedup_wall": median(rounds["one_by_one"], "wall") / median(rounds["predictor"], "wall"),
        "speedup_cpu": median(rounds["one_by_one"], "cpu") / median(rounds["predictor"], "cpu"),
    }
    keep(__file__, result, PACKAGES)


if __name__ == "__main__":
    main()
