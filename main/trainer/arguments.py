"""What the four trainers accept: the constructor says what to train, the call says how."""

import datetime
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from main.models import LoraOptions
from main.options import Options, below, not_positive
from main.trainer.available import scheduler_problems, tracker_problems
from main.trainer.generated.options import GeneratedOptions, higher_is_better

Strategy = Literal["no", "steps", "epoch"]
Precision = Literal["no", "bf16", "fp16"]

SETUP_ALIASES = {"max_new_tokens": "max_length", "chat_template_kwargs": "template_kwargs"}
LOOP_ALIASES = {
    "num_train_epochs": "num_epochs",
    "learning_rate": "lr",
    "lr_scheduler": "lr_scheduler_type",
    "metric_for_best": "metric_for_best_model",
}


@dataclass(kw_only=True)
class SetupOptions(LoraOptions, Options):
    """Arguments of every trainer's constructor, beside the adapter's own (LoraOptions).

    from_pretrained: folder of the base model.
    tokenizer, config: loaded from `from_pretrained` when omitted.
    loader_name: the row format, see main.loaders; 'auto' recognises it, and rows of others.
    data_path: a name in `data_present_path`, a file, a folder, a name of the hub, a mapping from
        splits to files, rows, a `datasets.Dataset` or `DatasetDict`, or a list of these with
        weights; see docs/rows.md.
    eval_mode: which split is evaluated; a data set without it is trained without evaluation.
    resume_path: an adapter directory whose weights training starts from.
    max_length: tokens of a row, prompt and answer together; longer rows lose their oldest turns.
    batch_size: rows a process computes at once; batch_size_eval defaults to it.
    task_name: names the folders under save_model/, data_record/ and logs/.
    seed: fixes the adapter's start, the order of rows and dropout.
    dtype: of the base: 'auto' (as the checkpoint is stored, or float32 where the device runs that
        badly), or a name such as 'bfloat16'; adapters are float32.
    device: where the model is; by default the process's own GPU, or the CPU.
    quantization: '4bit' or '8bit' loads the frozen base so (QLoRA; extra `qlora`).
    attn_implementation: transformers' name of an attention, e.g. 'sdpa'; by default its choice.
    trust_remote_code: run code that lies in the model's folder; never needed for our families.
    gradient_checkpointing: compute activations again in the backward pass: less memory, more time.
    output_dir: where those three folders are made.
    template_kwargs: handed to the chat template, e.g. {"enable_thinking": False}.
    template_date: what a template that writes a date takes for today's, as "2026-12-31"; None = as
        in the task's last checkpoint, or today. Predictors ask with the day's own date.
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
    template_date: str | None = None

    def problems(self) -> list[str]:
        found = super().problems()
        found += below(self, {"max_length": 1, "batch_size": 1, "batch_size_eval": 1})
        if not 0 <= self.seed < 2**31:
            found.append(f"seed={self.seed} must be from 0 to {2**31 - 1}.")
        if self.template_date is not None and not _is_date(self.template_date):
            found.append(f"template_date={self.template_date!r} must be a date as '2026-12-31'.")
        parts = Path(self.task_name).parts
        if (
            not parts
            or ".." in parts
            or Path(self.task_name).is_absolute()
            or "\0" in self.task_name
        ):
            found.append(
                f"task_name={self.task_name!r} names folders below save_model/: it must be "
                "a relative name without '..'."
            )
        return found


def _is_date(text: str) -> bool:
    try:
        return datetime.date.fromisoformat(text).isoformat() == text
    except ValueError:
        return False


# Arguments of the call that act on evaluations.
OF_EVALUATION = ("metric_for_best_model", "greater_is_better", "early_stopping_patience")


@dataclass(kw_only=True)
class LoopOptions(GeneratedOptions):
    """Arguments of every trainer's call, beside the algorithm's own.

    num_epochs: passes over the training rows; a fraction ends within one.
    max_steps: optimizer steps after which the run ends; rows are gone through as often as it takes.
        Given beside num_epochs, what comes first ends the run.
    lr: peak learning rate; warmup_ratio is the share of all optimizer steps spent rising to it, and
        warmup_steps their number, in its place.
    weight_decay: of AdamW, on the adapter's weights; adam_betas and adam_epsilon are its others.
    lr_scheduler_type: transformers' name of a schedule after the warm-up, e.g. 'cosine', 'linear',
        'constant'.
    gradient_accumulation_steps: micro-batches a process adds up in one optimizer step.
    max_grad_norm: gradients are scaled down to this norm; 0 leaves them.
    bf16, fp16: autocast the forward pass; adapter weights stay float32.
    torch_compile: compile the model's layers, on a GPU: steps are faster and need less memory, the
        first one takes a minute longer.
    group_by_length: rows of similar length share a step, which saves padding; the order of steps is
        random all the same.
    logging_strategy, eval_strategy, save_strategy: 'steps', 'epoch' or 'no'.
    logging_steps, eval_steps, save_steps: optimizer steps between two, under strategy 'steps'.
        The end of a run is logged, saved and evaluated besides, unless the strategy is 'no'.
    save_total_limit: newest checkpoints kept; the best one is kept besides.
    metric_for_best_model: a key of the evaluation, e.g. 'loss'; greater_is_better decides by it,
        and for a score of answers, such as 'generated/rouge-l', is known unless it is given.
    early_stopping_patience: stop after this many evaluations without a better metric.
    load_best_model_at_end: when the run has ended, the model gets the weights of the best of its
        checkpoints that were evaluated.
    report_to: accelerate trackers, e.g. ['tensorboard', 'wandb'], or 'none'.
    resume_from_checkpoint: a checkpoint directory, or 'auto' for the newest complete one.
    resume_changes: 'apply' goes on from a checkpoint with another learning rate, weight decay or
        schedule than it was trained with; otherwise a change is refused.
    non_finite: what to do with a step whose gradient is not finite: 'stop' or 'skip'.
    progress: show a progress bar; by default only when the output is a terminal.
    """

    num_epochs: float = 3
    max_steps: int | None = None
    lr: float = 1e-4
    weight_decay: float = 0.0
    warmup_ratio: float = 0.03
    warmup_steps: int | None = None
    lr_scheduler_type: str = "cosine"
    gradient_accumulation_steps: int = 1
    max_grad_norm: float = 1.0
    adam_betas: tuple = (0.9, 0.999)
    adam_epsilon: float = 1e-8
    bf16: bool = False
    fp16: bool = False
    torch_compile: bool = False
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
    load_best_model_at_end: bool = False
    report_to: list | str = "tensorboard"
    resume_from_checkpoint: str | Path | None = None
    resume_changes: Literal["apply"] | None = None
    non_finite: Literal["stop", "skip"] = "stop"
    progress: bool | None = None

    def problems(self) -> list[str]:
        steps = ("logging_steps", "eval_steps", "save_steps", "gradient_accumulation_steps")
        found = not_positive(self, ["num_epochs", "adam_epsilon"])
        found += below(self, dict.fromkeys(steps, 1))
        found += below(self, {"lr": 0, "weight_decay": 0, "max_grad_norm": 0, "warmup_steps": 0})
        for name in ("save_total_limit", "early_stopping_patience", "max_steps"):
            value = getattr(self, name)
            if value is not None and value < 1:
                found.append(f"{name}={value} must be 1 or more, or None.")
        if not 0 <= self.warmup_ratio < 1:
            found.append(f"warmup_ratio={self.warmup_ratio} must be at least 0 and below 1.")
        if not _are_betas(self.adam_betas):
            found.append(f"adam_betas={self.adam_betas} must be two numbers from 0 to below 1.")
        if self.bf16 and self.fp16:
            found.append("bf16 and fp16 exclude each other: set one of them.")
        if self.load_best_model_at_end and "no" in (self.eval_strategy, self.save_strategy):
            found.append(
                "load_best_model_at_end=True needs checkpoints that are evaluated: set "
                "eval_strategy and save_strategy to 'epoch' or 'steps'."
            )
        found += GeneratedOptions.problems(self)
        found += scheduler_problems(self.lr_scheduler_type)
        return found + tracker_problems(self.trackers)

    def without_effect(self) -> dict[str, str]:
        found = GeneratedOptions.without_effect(self)
        for name in ("logging", "eval", "save"):
            strategy = getattr(self, f"{name}_strategy")
            if strategy != "steps":
                found[f"{name}_steps"] = f"{name}_strategy={strategy!r}"
        if self.save_strategy == "no":
            found["save_total_limit"] = "save_strategy='no'"
        if self.eval_strategy == "no":
            named = [*OF_EVALUATION, *(["eval_generate"] if self.eval_generate else [])]
            found |= dict.fromkeys(named, "eval_strategy='no'")
        if self.resume_from_checkpoint is None:
            found["resume_changes"] = "resume_from_checkpoint=None"
        if self.warmup_steps is not None:
            found["warmup_ratio"] = f"warmup_steps={self.warmup_steps}"
        return found

    def harmless(self) -> frozenset[str]:
        return frozenset({"logging_steps"})

    @property
    def epochs(self) -> float | None:
        """The limit in epochs; None where only `max_steps` was given."""
        by_steps = self.max_steps is not None and "num_epochs" not in self.given
        return None if by_steps else self.num_epochs

    @property
    def best_metric(self) -> str:
        """`metric_for_best_model` without the prefix that transformers allows."""
        return self.metric_for_best_model.removeprefix("eval_")

    @property
    def best_is_greatest(self) -> bool:
        """Which way `best_metric` is better: as the caller says, or as the score itself does."""
        known = None if "greater_is_better" in self.given else higher_is_better(self.best_metric)
        return self.greater_is_better if known is None else known

    @property
    def precision(self) -> Precision:
        """The one asked for; what the launcher says may add to it."""
        return "bf16" if self.bf16 else "fp16" if self.fp16 else "no"

    @property
    def trackers(self) -> list[Any]:
        """Names for accelerate, or its tracker objects; 'none' and [] mean no tracker."""
        names = [self.report_to] if isinstance(self.report_to, str) else list(self.report_to)
        return [name for name in names if name != "none"]


def _are_betas(betas: tuple) -> bool:
    return len(betas) == 2 and all(isinstance(b, int | float) and 0 <= b < 1 for b in betas)
