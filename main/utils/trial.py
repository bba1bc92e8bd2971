"""A few steps of a real run on a model of fewer layers, measured: what `plan` is made from.

    python -m main.utils.trial SPECIFICATION.json RESULT.json

In a process of its own, whose peak of memory is its own.
"""

import copy
import json
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

DRAWS = 4  # the first one is passed over
WORD = " the"  # one token, nearly everywhere
QUIET = {"save_strategy": "no", "eval_strategy": "no", "progress": False, "logging_steps": 1}


@dataclass
class Specification:
    """What is tried.

    model, method: of the trainer. layers: how many of the model's; None = all.
    prompt_tokens, answer_tokens: of every row.
    setup, call: arguments of the trainer's constructor and of its call.
    """

    model: str
    method: str
    layers: int | None
    prompt_tokens: int
    answer_tokens: int
    setup: dict[str, Any]
    call: dict[str, Any]


@dataclass
class Trial:
    """What was measured: bytes, and seconds.

    process: before anything was loaded. base: frozen weights and buffers. adapter: what is trained,
    with its gradients and Adam's two moments. passes: what the peak has beside these.
    start: until the first step, from a loaded model. step: of one optimizer step.
    """

    process: float
    base: float
    adapter: float
    passes: float
    start: float
    step: float


def main(arguments: list[str]) -> None:
    specification = Specification(**json.loads(Path(arguments[0]).read_text(encoding="utf-8")))
    with tempfile.TemporaryDirectory() as folder:
        found = measured(specification, Path(folder))
    Path(arguments[1]).write_text(json.dumps(asdict(found)), encoding="utf-8")


def measured(of: Specification, folder: Path) -> Trial:
    """Make the run in `folder` and measure it."""
    trainer_class = import_module(f"main.trainer.{of.method}").Trainer
    from main.trainer.loop.throughput import most_resident_memory, peak_memory
    from main.utils.clock import Clock

    on_gpu = not _on_cpu(of.setup)
    process = 0.0 if on_gpu else float(most_resident_memory())
    trainer = trainer_class(
        **{"from_pretrained": of.model, "data_path": _rows(of, folder), "output_dir": folder},
        **{"config": shallow(of.model, of.layers), "task_name": "trial"},
        **of.setup,
    )
    base, adapter = _weights(trainer.model)
    clock = Clock()
    began = time.perf_counter()
    call = {**QUIET, **_judged(of), **of.call, "report_to": [clock], "max_steps": _steps(of)}
    list(trainer(**call))
    step, first = clock.seconds()
    passes = peak_memory(trainer.policy.device) * 2**30 - process - base - adapter
    return Trial(process, base, adapter, passes, max(0.0, first - began - step), step)


def shallow(model: str, layers: int | None) -> Any:
    """The model's configuration with its first layers alone; None = all of them."""
    from main.models import load_config

    config = load_config(model)
    if layers is None:
        return config
    config = copy.deepcopy(config)
    text = config.get_text_config()
    whole = text.num_hidden_layers
    for name, value in text.to_dict().items():  # such as `layer_types`
        if isinstance(value, list) and len(value) == whole:
            setattr(text, name, value[:layers])
    text.num_hidden_layers = layers
    return config


def depth(model: str) -> int:
    """Layers of the model."""
    from main.models import load_config

    return load_config(model).get_text_config().num_hidden_layers


def _on_cpu(setup: Mapping[str, Any]) -> bool:
    import torch

    device = setup.get("device")
    return not torch.cuda.is_available() if device is None else str(device) == "cpu"


def _weights(model: Any) -> tuple[float, float]:
    frozen = [p for p in model.parameters() if not p.requires_grad]
    held = sum(tensor.nbytes for tensor in [*frozen, *model.buffers()])
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return float(held), 4.0 * 4 * trained


# -- rows of one length


def _rows(of: Specification, folder: Path) -> dict[str, str]:
    from main.loaders import get_template
    from main.models import load_tokenizer

    template = get_template(load_tokenizer(of.model), of.setup.get("loader_name", "LLM_Chat"))
    frame = len(template.encode_prompt([{"role": "user", "content": WORD}])) - 1
    question = {"role": "user", "content": WORD * max(1, of.prompt_tokens - frame)}
    path = folder / "rows.jsonl"
    with path.open("w", encoding="utf-8") as file:
        for number in range(_count(of)):
            answer = WORD * (of.answer_tokens - 1) + f" {number}"
            file.write(json.dumps(_row(of.method, question, answer)) + "\n")
    return {"train": str(path)}


def _row(method: str, question: dict[str, str], answer: str) -> dict[str, Any]:
    if method == "lora":
        return {"conversations": [question, {"role": "assistant", "content": answer}]}
    if method == "grpo":
        return {"prompt": [question], "answer": answer}
    return {"conversations": [question], "gold_answers": answer, "bad_answers": answer[::-1]}


def _count(of: Specification) -> int:
    """Rows for all draws: a draw of completions needs fewer."""
    step = of.setup.get("batch_size", 8) * of.call.get("gradient_accumulation_steps", 1)
    return DRAWS * step * of.call.get("steps_per_generation", 1)


def _steps(of: Specification) -> int:
    of_a_draw = of.call.get("num_iterations", of.call.get("ppo_epochs", 1))
    return DRAWS * of_a_draw * of.call.get("steps_per_generation", 1)


def _judged(of: Specification) -> dict[str, Any]:
    online = of.method in ("grpo", "ppo") and "reward_func" not in of.call
    return {"reward_func": _length} if online else {}


def _length(prompts: list, completions: list, **columns: Any) -> list[float]:
    """Judges are the user's own: this one takes no time."""
    return [len(str(completion)) % 7 / 7 for completion in completions]


if __name__ == "__main__":
    main(sys.argv[1:])
