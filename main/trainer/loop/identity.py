"""What a run is: all that its numbers depend on, by content; and what a resume may change.

An option that stands in none of the lists below is part of the run, and a checkpoint goes on only
with the same value.
"""

import logging
import platform
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from main.errors import CheckpointError
from main.loaders.shares import Share, draws
from main.models.training_record import arguments_of
from main.trainer.arguments import LoopOptions
from main.trainer.loop.home import Home
from main.trainer.loop.launch import placement_kind
from main.trainer.loop.opening import step_rows
from main.trainer.loop.task import Rows, Task, shares_of

log = logging.getLogger(__name__)

# Names and places of what is compared by its content: rows, base, adapter, reward model.
BY_CONTENT = (
    *("from_pretrained", "tokenizer", "config", "trust_remote_code", "dtype"),
    *("data_path", "data_present_path", "loader_name", "eval_mode", "template_kwargs"),
    "template_date",
    *("train_turns", "max_length", "resume_path", "critic_resume_path", "reward_from_pretrained"),
    *("teacher_from_pretrained", "teacher_peft_path"),
    *("lora_r", "lora_alpha", "lora_dropout", "target_modules", "use_dora", "use_rslora"),
    *("modules_to_save", "task_name", "output_dir", "seed"),
)
# How the same numbers are computed; of the batch sizes the product is compared, as rows_per_step.
COMPUTED = (
    *("batch_size", "per_device_train_batch_size", "gradient_accumulation_steps", "device"),
    *("gradient_checkpointing", "attn_implementation", "torch_compile"),
    *("share_prompt", "share_prompts", "sampling_batch_size", "vllm_mode"),
    *("vllm_server_base_url", "vllm_server_timeout", "vllm_gpu_memory_utilization"),
)
# How long a run is, what it leaves behind, and when it stops.
MAY_CHANGE = (
    *("num_epochs", "max_steps", "logging_strategy", "logging_steps", "save_strategy"),
    *("save_steps", "save_total_limit", "eval_strategy", "eval_steps", "batch_size_eval"),
    *("per_device_eval_batch_size", "report_to", "progress", "early_stopping_patience"),
    *("eval_generate", "eval_metrics", "eval_max_new_tokens"),
    *("load_best_model_at_end", "non_finite", "resume_from_checkpoint", "resume_changes"),
)
# Changed only where `resume_changes="apply"` says that it is meant.
APPLIED = ("lr", "weight_decay", "lr_scheduler_type", "warmup_ratio", "warmup_steps")


def identity(task: Task, options: LoopOptions, home: Home) -> dict[str, Any]:
    """Name -> JSON value. Asked for before a placement shares the weights out."""
    evaluated = task.eval_data
    return {
        "rows": _rows(task.train_data),
        "evaluated rows": "none" if evaluated is None else _rows(evaluated),
        "rows_per_step": step_rows(task, options),
        "seed": home.seed,
        "placement": placement_kind().kind_of_state,
        **options_of(options),
        **task.identity(),
    }


def options_of(options: Any) -> dict[str, Any]:
    """The arguments of a constructor or a call that are part of a run."""
    without = (*BY_CONTENT, *COMPUTED, *MAY_CHANGE)
    return {n: value for n, value in arguments_of(options).items() if n not in without}


def around(task: Task) -> dict[str, Any]:
    """What is told when a resumed run has another: versions, paths, device."""
    packages = {name: _version(name) for name in ("torch", "transformers", "peft", "accelerate")}
    return {"python": platform.python_version(), **packages, **task.around()}


def check(directory: Path, then: Mapping[str, Any], now: Mapping[str, Any], apply: bool) -> None:
    """Both as `identity` returned them; `apply`: whether the changes of `APPLIED` are meant.

    Raises:
        CheckpointError: it is another run's; it names what differs, with both values.
    """
    found = differences(then, now)
    meant = {name: text for name, text in found.items() if name in APPLIED}
    other = [text for name, text in found.items() if name not in APPLIED]
    if other:
        raise CheckpointError(
            f"{directory} belongs to another run; {'; '.join(other)[:1600]}. Give the same model, "
            "data and arguments (rows_per_step is batch_size x accumulation x processes), or start "
            "anew from its weights with resume_path."
        )
    changed = "; ".join(meant.values())
    if meant and not apply:
        raise CheckpointError(
            f"{directory} was trained with other values; {changed}. Give the same, or "
            'resume_changes="apply" to go on with the new ones.'
        )
    if meant:
        log.warning("%s goes on with changes; %s.", directory, changed)


def differences(then: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, str]:
    """What differs -> both values in words."""
    return {
        name: f"{name}: {_shown(then.get(name))} then, {_shown(now.get(name))} now"
        for name in dict.fromkeys((*then, *now))
        if then.get(name) != now.get(name)
    }


def _shown(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 200 else f"{text[:200]}..."


def _rows(rows: Rows) -> str:
    mixed = ", ".join(f"{n} of {s.rows}" for s, n in _drawn(rows))
    drawn = f", drawn {mixed}" if mixed else ""
    return f"{len(rows)} of {sum(rows.lengths)} tokens{drawn} ({rows.digest[:16]})"


def _drawn(rows: Rows) -> list[tuple[Share, int]]:
    """The entries of a mixture, and how often an epoch draws from each."""
    shares = shares_of(rows)
    return list(zip(shares, draws(shares), strict=True)) if shares else []


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "unknown"
