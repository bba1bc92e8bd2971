"""What the four trainers accept: the constructor says what to train, the call says how."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from main.models import LoraOptions
from main.options import below

Strategy = Literal["no", "steps", "epoch"]

SETUP_ALIASES = {"max_new_tokens": "max_length"}
LOOP_ALIASES = {
    "num_train_epochs": "num_epochs",
    "learning_rate": "lr",
    "lr_scheduler": "lr_scheduler_type",
    "metric_for_best": "metric_for_best_model",
}


@dataclass(kw_only=True)
class SetupOptions(LoraOptions):
    """Arguments of every trainer's constructor, beside the adapter's own (LoraOptions).

    from_pretrained: folder of the base model.
    tokenizer, config: loaded from `from_pretrained` when omitted.
    loader_name: the row format, see main.loaders.
    data_path: a name in `data_present_path`, the mapping itself, or a file.
    eval_mode: which split is evaluated; a data set without it is trained without evaluation.
    resume_path: an adapter directory whose weights training starts from.
    max_length: tokens of a row, prompt and answer together; longer rows lose their oldest turns.
    batch_size: rows a process computes at once; batch_size_eval defaults to it.
    task_name: names the folders under save_model/, data_record/ and logs/.
    seed: fixes the adapter's start, the order of rows and dropout.
    output_dir: where those three folders are made.
    template_kwargs: handed to the chat template, e.g. {"enable_thinking": False}.
    """

    from_pretrained: str | Path
    data_path: Any
    tokenizer: Any = None
    config: Any = None
    loader_name: str = "LLM_Chat"
    data_present_path: str | Path = "./data/present.json"
    resume_path: str | Path | None = None
    max_length: int = 1024
    batch_size: int = 8
    batch_size_eval: int | None = None
    eval_mode: Literal["train", "dev", "test"] = "dev"
    task_name: str = "default"
    seed: int = 42
    dtype: Any = "auto"
    device: Any = None
    quantization: Literal["4bit", "8bit"] | None = None
    attn_implementation: str | None = None
    trust_remote_code: bool = False
    gradient_checkpointing: bool = False
    output_dir: str | Path = "."
    template_kwargs: dict = field(default_factory=dict)

    def problems(self) -> list[str]:
        found = super().problems()
        found += below(self, {"max_length": 1, "batch_size": 1, "batch_size_eval": 1})
        parts = Path(self.task_name).parts
        if not parts or ".." in parts or Path(self.task_name).is_absolute():
            found.append(
                f"task_name={self.task_name!r} names folders below save_model/: it must be "
                "a relative name without '..'."
            )
        return found


@dataclass(kw_only=True)
class LoopOptions:
    """Arguments of every trainer's call, beside the algorithm's own.

    num_epochs: passes over the training rows.
    lr: peak learning rate; warmup_ratio is the share of all optimizer steps spent rising to it.
    gradient_accumulation_steps: micro-batches a process adds up in one optimizer step.
    max_grad_norm: gradients are scaled down to this norm; 0 leaves them.
    bf16, fp16: autocast the forward pass; adapter weights stay float32.
    logging_steps, eval_steps, save_steps: optimizer steps between two, under strategy 'steps'.
    save_total_limit: newest checkpoints kept; the best one is kept besides.
    metric_for_best_model: a key of the evaluation, e.g. 'loss'; greater_is_better decides by it.
    early_stopping_patience: stop after this many evaluations without a better metric.
    report_to: accelerate trackers, e.g. ['tensorboard', 'wandb'], or 'none'.
    resume_from_checkpoint: a checkpoint directory, or 'auto' for the newest complete one.
    non_finite: what to do with a step whose gradient is not finite: 'stop' or 'skip'.
    progress: show a progress bar; by default only when the output is a terminal.
    """

    num_epochs: int = 3
    lr: float = 1e-4
    weight_decay: float = 0.0
    warmup_ratio: float = 0.03
    lr_scheduler_type: str = "cosine"
    gradient_accumulation_steps: int = 1
    max_grad_norm: float = 1.0
    adam_betas: tuple = (0.9, 0.999)
    adam_epsilon: float = 1e-8
    bf16: bool = False
    fp16: bool = False
    group_by_length: bool = True
    logging_strategy: Strategy = "steps"
    logging_steps: int = 10
    eval_strategy: Strategy = "epoch"
    eval_steps: int = 500
    save_strategy: Strategy = "epoch"
    save_steps: int = 500
    save_total_limit: int | None = None
    metric_for_best_model: str = "loss"
    greater_is_better: bool = False
    early_stopping_patience: int | None = None
    report_to: list | str = "tensorboard"
    resume_from_checkpoint: str | Path | None = None
    non_finite: Literal["stop", "skip"] = "stop"
    progress: bool | None = None

    def problems(self) -> list[str]:
        found = below(self, {"num_epochs": 1, "gradient_accumulation_steps": 1})
        found += below(self, {"logging_steps": 1, "eval_steps": 1, "save_steps": 1})
        found += below(self, dict.fromkeys(("lr", "weight_decay", "max_grad_norm"), 0))
        for name in ("save_total_limit", "early_stopping_patience"):
            value = getattr(self, name)
            if value is not None and value < 1:
                found.append(f"{name}={value} must be 1 or more, or None.")
        if not 0 <= self.warmup_ratio < 1:
            found.append(f"warmup_ratio={self.warmup_ratio} must be at least 0 and below 1.")
        if self.bf16 and self.fp16:
            found.append("bf16 and fp16 exclude each other: set one of them.")
        return found + _scheduler_problems(self.lr_scheduler_type)

    @property
    def trackers(self) -> list[str]:
        """Names for accelerate; 'none' and [] mean no tracker."""
        names = [self.report_to] if isinstance(self.report_to, str) else list(self.report_to)
        return [name for name in names if name != "none"]


def _scheduler_problems(name: str) -> list[str]:
    from transformers.trainer_utils import SchedulerType

    needs_more = ("reduce_lr_on_plateau", "cosine_with_min_lr", "warmup_stable_decay", "greedy")
    known = [kind.value for kind in SchedulerType if not kind.value.startswith(needs_more)]
    return [] if name in known else [f"lr_scheduler_type={name!r} must be one of {known}."]
