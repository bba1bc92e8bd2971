"""What trainers share whose policy draws completions while it trains: GRPO and PPO."""

import json
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from main.dialogue.accounts import Dialogue
from main.dialogue.ends import stop_token_ids
from main.dialogue.episodes import Drawn, Episode
from main.dialogue.playing import play
from main.dialogue.tools import tool_schemas
from main.errors import ConfigError, GenerationError, MainError, RewardError
from main.loaders.shares import AGAIN
from main.models import context_length
from main.system.processes import (
    as_it_is,
    once_a_copy,
    splits_copies,
    this_copy,
    this_process,
    together,
)
from main.trainer.base import BaseTask
from main.trainer.loop.task import Metrics, MicroBatch, Row, Run
from main.trainer.online.episodes import attempt, outside_of, raise_for_all
from main.trainer.online.records import describe, describe_episodes, samples_table
from main.trainer.online.sample import Prompt, Sample, seed_of
from main.trainer.placement.base import is_shared_out
from main.trainer.rewards.functions import Rewards, Scores
from main.trainer.rewards.notes import TrainerState
from main.trainer.rewards.scoreable import (
    column_names,
    columns_of,
    completion_texts,
    scoreable,
)
from main.trainer.rollout.choice import make_sampler
from main.trainer.rollout.sampler import Sampler

SHOWN = 8  # samples in the table of an epoch


class OnlineTask(BaseTask):
    """Draws completions, has them judged, and records both.

    A sampler lives from `open` to `close`; an error in it ends all processes.
    """

    sampler: Sampler | None = None
    rewards: Rewards
    columns: Sequence[str] = ()  # of the data sets, for reward functions
    shown: str = ""  # the table of the latest draw
    evaluates_alone = False  # completions are drawn and judged by all together
    rehearses = False

    def __init__(self, trainer: Any, options: Any):
        super().__init__(trainer, options)
        self.stop_ids = stop_token_ids(self.causal_lm, self.tokenizer)
        toolbox, template = options.toolbox(), trainer.template
        self.outside = outside_of(options, toolbox, template, self.stop_ids)
        self.schemas = toolbox.schemas if toolbox else None
        if toolbox:
            self.train_data, self.eval_data = trainer.load_data(template.showing(self.schemas))

    def open(self, run: Run) -> None:
        super().open(run)
        if self.options.has_turns and this_copy().size != this_process().size:
            raise ConfigError(
                "tools and environment_factory need a process for each copy of the policy, and "
                "tensor parallelism shares a copy out: two processes would run each call."
            )
        if self.options.use_vllm and is_shared_out(self.model):
            raise ConfigError(
                "use_vllm=True needs a whole copy of the policy in each process, and the launcher "
                "shares it out (ZeRO stage 3, FSDP or tensor parallelism). Draw with "
                "use_vllm=False, or launch with a whole copy each (DDP, or stage 2)."
            )
        self.columns = column_names(self._rows())
        base = self.setup.from_pretrained
        longest = self.setup.max_length + self.options.max_completion_length
        context = context_length(self.causal_lm.config) or longest
        self.sampler = together(
            lambda: make_sampler(
                self.options,
                self.policy,
                self.stop_ids,
                self.pad_id,
                base,
                min(longest, context),
            )
        )

    def _rows(self) -> Iterator[Row]:
        for data in (self.train_data, self.eval_data):
            yield from (data[i] for i in range(len(data))) if data is not None else ()

    def close(self) -> None:
        if self.sampler is not None:
            self.sampler.close()
        self.sampler = None

    def example(self, row: Row, number: int) -> Prompt:
        return Prompt(row, number)

    def source(self, example: Prompt | Sample) -> int:
        return int(example.row["row"]) % AGAIN

    def progress(self) -> TrainerState:
        """Where the run is, for reward functions."""
        return TrainerState(self.run.step, self.run.total_steps)

    # -- prompts -> samples -> rewards

    def draw(
        self, prompts: Sequence[Prompt], seeds: Sequence[int], greedy: bool = False
    ) -> list[Sample]:
        """A completion for each prompt. All processes must call it.

        Raises:
            RewardError: an environment failed; on every process, if on one.
        """
        episodes = [self._episode(*asked) for asked in zip(prompts, seeds, strict=True)]
        context = context_length(self.causal_lm.config)
        limits = self.options.episode_limits(self.options.max_completion_length, context)

        def draw(going: Sequence[Episode], room: Sequence[int]) -> list[Drawn]:
            return self._turns(going, room, greedy)

        with self.run.at_hand():
            # Those that hold one copy wait in the middle of a pass for one that fails.
            drawn_by = as_it_is if splits_copies() else together
            error = drawn_by(lambda: attempt(lambda: play(episodes, draw, self.outside, limits)))
        if self.options.has_turns:
            raise_for_all(error)
        texts = completion_texts(self.tokenizer, [e.completion_ids for e in episodes])
        played = zip(prompts, episodes, texts, strict=True)
        return [Sample.of(prompt, episode, text) for prompt, episode, text in played]

    def _episode(self, prompt: Prompt, seed: int) -> Episode:
        """Before its first turn."""
        if not self.options.has_turns:
            return Episode(Dialogue([]), prompt.ids, seed, {"row": prompt.row["row"]})
        messages, columns = json.loads(prompt.row["prompt"]), columns_of(prompt.row)
        row = {**columns, "prompt": messages, "row": prompt.row["row"]}
        variables = columns.get("chat_template_kwargs")
        tools = self.schemas or tool_schemas(columns.get("tools"))
        return Episode(Dialogue(messages, tools, variables), prompt.ids, seed, row)

    def _turns(self, going: Sequence[Episode], room: Sequence[int], greedy: bool) -> list[Drawn]:
        """The next turn of each episode, of at most so many tokens."""
        assert self.sampler is not None, "a run is open"
        ids, seeds = [e.ids for e in going], [e.turn_seed or 0 for e in going]
        try:
            completions = self.sampler.sample(ids, seeds, greedy, room)
        except GenerationError as error:
            if error.request is None:
                raise
            row = going[error.request].row["row"]
            raise GenerationError(f"{self._when()}, source row {row}: {error}") from error
        if not self.options.use_vllm:
            self._note_work(ids, [completion.ids for completion in completions])
        return [completion.drawn for completion in completions]

    def _when(self) -> str:
        """Of completions that were drawn now: after so many updates of the policy."""
        return f"after {self.run.step} steps"

    def _note_work(self, prompts: list[list[int]], completions: list[list[int]]) -> None:
        """A prompt that follows itself was computed once."""
        own = [ids for i, ids in enumerate(prompts) if i == 0 or ids != prompts[i - 1]]
        drawn = sum(map(len, completions))
        self.trainer.model.work.add(sum(map(len, own)) + drawn, drawn, backward=False)

    def seeds(self, prompts: Sequence[Prompt], step: int, attempt: int = 0) -> list[int]:
        return [seed_of(self.setup.seed, step, prompt, attempt) for prompt in prompts]

    def reward(self, samples: Sequence[Sample]) -> Metrics:
        """Set reward, parts and notes of the samples; returns what the functions logged.

        Raises:
            RewardError: on every process, if on one.
        """
        scores = self._scored(samples)
        for i, sample in enumerate(samples):
            parts = scores.by_function[i].tolist()
            sample.parts = dict(zip(scores.names, parts, strict=True))
            sample.reward, sample.notes = float(scores.rewards[i]), scores.notes.of(i)
            if self.options.environment_factory is not None:
                sample.parts["environment"] = float(sample.step_rewards.sum())
                sample.reward += sample.parts["environment"]
        return scores.notes.metrics

    def _scored(self, samples: Sequence[Sample]) -> Scores:
        try:
            return once_a_copy(lambda: self.rewards.score(scoreable(samples, self.columns)))
        except MainError as error:  # also what is told of another process: all stop for one reason
            raise RewardError(f"{self._when()}: {error}") from error

    @property
    def part_names(self) -> list[str]:
        """What a reward is made of."""
        steps = ["environment"] if self.options.environment_factory is not None else []
        return [*self.rewards.names, *steps]

    # -- evaluation and records

    def evaluate(self, rows: list[Row], device: torch.device) -> Metrics:
        """Rewards of what the policy answers to each prompt."""
        samples = self.answers(rows)
        metrics = self.reward(samples) | self.described(samples)
        return metrics | self.describe_evaluated(samples)

    def described(self, samples: Sequence[Sample]) -> Metrics:
        """What the records say of any completions."""
        turns = describe_episodes(samples) if self.options.has_turns else {}
        return describe(samples, self.part_names) | turns

    def answers(self, rows: list[Row]) -> list[Sample]:
        """The likeliest completion of each prompt, for evaluation."""
        return self.draw([Prompt(row) for row in rows], [0] * len(rows), greedy=True)

    def evaluated_names(self) -> list[str]:
        return [*self.described([]), "logged/*"]  # what functions log is theirs to say

    def describe_evaluated(self, samples: list[Sample]) -> Metrics:
        """What a method records of evaluated completions besides."""
        return {}

    def show(self, samples: Sequence[Sample]) -> None:
        """Keep the first of these for the table of the epoch."""
        if samples:
            self.shown = samples_table(samples[:SHOWN], self.part_names)

    def sample_text(self) -> str:
        return self.shown

    def state(self) -> dict[str, Any]:
        return super().state() | {"shown": self.shown}

    def load_state(self, state: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        super().load_state(state, tensors)
        self.shown = state["shown"]

    # -- checks

    def check_groups(self, size: str) -> None:
        """The completions of a prompt must fit into an optimizer step; `size` names its batch.

        Raises:
            ConfigError: they do not.
        """
        options, ranks = self.options, this_copy().size
        step = self.batch_size * ranks * options.gradient_accumulation_steps
        if step % options.num_generations:
            raise ConfigError(
                f"num_generations={options.num_generations} does not divide the {step} completions "
                f"of an optimizer step ({size}={self.batch_size} x "
                f"{ranks} processes x gradient_accumulation_steps="
                f"{options.gradient_accumulation_steps}). Change one of them."
            )

    def check_context(self) -> None:
        """A prompt and its completion must fit into the model's context.

        Raises:
            ConfigError: one does not; it names the row.
        """
        context, wanted = context_length(self.causal_lm.config), self.options.max_completion_length
        if context is None or self.setup.max_length + wanted <= context:
            return
        data: Any
        for data in (self.train_data, self.eval_data or []):
            for row in (data[i] for i in range(len(data))):
                if len(row["prompt_ids"]) + wanted > context:
                    raise ConfigError(
                        f"row {row['row']} has a prompt of {len(row['prompt_ids'])} tokens; with "
                        f"max_completion_length={wanted} it exceeds the model's context of "
                        f"{context}. Lower max_completion_length, or max_length to shorten or skip "
                        "long prompts."
                    )


def regrouped(samples: Sequence[Sample], like: Sequence[MicroBatch]) -> list[MicroBatch]:
    """The samples in micro-batches of the sizes of `like`."""
    rest: Iterator[Sample] = iter(samples)
    return [micro._replace(items=[next(rest) for _ in micro.items]) for micro in like]


def counted(micro_batches: Sequence[MicroBatch]) -> list[Any]:
    """What is in those that are no fillers."""
    return [item for micro in micro_batches if micro.counted for item in micro.items]


def set_dropout(model: nn.Module, adapter: float = 0.0) -> None:
    """The adapter's as asked for, the base's off in any mode: the ratio would measure it too.

    A resumed adapter that was trained with some keeps it in its config.
    """
    for name, module in model.named_modules():
        if isinstance(module, nn.Dropout):
            module.p = adapter if "lora_dropout" in name else 0.0
        elif isinstance(getattr(module, "attention_dropout", None), float):
            setattr(module, "attention_dropout", 0.0)  # noqa: B010
