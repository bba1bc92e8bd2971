"""What the four trainers share: reading arguments, loading data, tokenizer, model and adapter."""

import inspect
import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from torch import Tensor

from main import __version__
from main.dialogue.plain import PlainText
from main.errors import ConfigError, DataError
from main.loaders import OWN_LOADERS, get_loader, get_template, resolve
from main.loaders.cache import load_part
from main.loaders.preview import Preview, sights_of
from main.loaders.recognise import recognise
from main.loaders.shapes import AUTO
from main.loaders.shares import told as told_shares
from main.loaders.sources import Source
from main.models import (
    LoraOptions,
    add_adapter,
    family,
    load_adapter,
    load_config,
    load_model,
    load_tokenizer,
    save_adapter,
)
from main.models.adapter_fit import contradictions
from main.models.compiled import compile_problems
from main.models.content import adapter_content, base_content, base_dtypes
from main.models.lora import starts_as_base
from main.models.ragged import use_ragged
from main.models.training_record import (
    TrainingRecord,
    arguments_of,
    model_digest,
    plain,
    template_digest,
    write_record,
)
from main.models.vocabulary import embedding_rows
from main.options import documentation, parse, raise_all
from main.system.memory import Room
from main.system.processes import as_it_is, together, uses_deepspeed
from main.trainer.arguments import (
    LOOP_ALIASES,
    OF_EVALUATION,
    SETUP_ALIASES,
    LoopOptions,
    SetupOptions,
)
from main.trainer.dates import date_of
from main.trainer.encoded import EncodedRows
from main.trainer.fitting import row_limit, vocabulary_problems
from main.trainer.generated.answers import Generated
from main.trainer.generated.scores import names_of
from main.trainer.loop.home import Home
from main.trainer.loop.identity import options_of
from main.trainer.loop.launch import accept_launch
from main.trainer.loop.run import Loop
from main.trainer.loop.run_file import write_run_file
from main.trainer.loop.task import Answered, Run, Task
from main.trainer.loop.turns import in_turn
from main.trainer.placement import layout, tensor_parallel
from main.trainer.placement.base import is_shared_out
from main.trainer.policy.logprobs import LogprobModel
from main.trainer.policy.reference import Reference
from main.types import EpochResult
from main.vision import load_vision

log = logging.getLogger(__name__)
T = TypeVar("T")
MOST_ROWS = 2**31  # of a pass; what gives the rows has a limit of its own


class BaseTrainer:
    """Loads everything in the constructor, in the order in which mistakes are cheapest to find.

    A call makes a task of what was loaded and of the call's options, and hands it to a loop; the
    trainer itself stays as it is, but for the weights that are trained.
    """

    setup_class: ClassVar[type[SetupOptions]] = SetupOptions
    loop_class: ClassVar[type[LoopOptions]] = LoopOptions
    setup_aliases: ClassVar[Mapping[str, str]] = SETUP_ALIASES
    loop_aliases: ClassVar[Mapping[str, str]] = LOOP_ALIASES
    loaders: ClassVar[tuple[str, ...]]  # our row formats that the method can train on
    takes_images: ClassVar[bool] = False  # whether its batches carry pixels
    sets_itself: ClassVar[tuple[str, ...]] = ()  # of an adapter from `resume_path` too

    def __init_subclass__(cls) -> None:
        """Show the real arguments in `help()` and to editors, not `**arguments`.

        A trainer is made while no run computes: both use the process's random numbers.
        """
        if "__init__" in cls.__dict__:
            cls.__init__ = in_turn(cls.__init__)  # type: ignore[method-assign]
        for method, options in (("__init__", cls.setup_class), ("__call__", cls.loop_class)):
            if method in cls.__dict__:
                function = cls.__dict__[method]
                function.__signature__ = _signature(options)
                function.__doc__ = f"{function.__doc__ or ''}\n\n{documentation(options)}".strip()

    def __init__(self, **arguments: Any):
        self.setup, sources = self._read(arguments, f"{self._public_name()}()")
        setup = self.setup
        self.tokenizer = setup.tokenizer or load_tokenizer(
            setup.from_pretrained, trust_remote_code=setup.trust_remote_code
        )
        self.vision = self._load_vision() if self.takes_images else None
        self.template = get_template(
            self.tokenizer,
            setup.loader_name,
            self.vision,
            getattr(setup, "train_turns", "all"),
            date_of(setup),
            **setup.template_kwargs,
        )
        raise_all(self._date_problems())
        self.data_digests = {split: source.digest() for split, source in sources.items()}
        self.sources = sources
        self.train_data, self.eval_data = self.load_data(self.template)
        if self.train_data.shares:
            log.warning("mixture: %s", told_shares(self.train_data.shares))
        policy = self._load_policy()
        raise_all(self._misfits(policy))
        self.model = LogprobModel(policy, ragged=use_ragged(policy.get_base_model()))
        if self.layout.tensor > 1:
            raise_all(tensor_parallel.problems(self.causal_lm, self.layout.tensor))

    def __call__(self, **arguments: Any) -> Iterator[EpochResult]:
        raise NotImplementedError

    def preview(self, rows: int = 5, split: str = "train") -> Preview:
        """The first rows as the model sees them, with what is trained in colour.

        `print` shows them on a terminal, a notebook as HTML; see `main.loaders.preview`. What the
        online methods answer is drawn later: of GRPO's rows the prompt is shown, of PPO's the gold
        and bad answers too.

        Args:
            rows: how many.
            split: 'train', or 'eval' for the evaluated rows.

        Raises:
            ConfigError: another split, or rows that are not there.
        """
        data = {"train": self.train_data, "eval": self.eval_data}.get(split)
        if data is None or rows < 1:
            raise ConfigError(
                f"preview(rows={rows}, split={split!r}): rows must be 1 or more, and split 'train'"
                f"{', or eval' if self.eval_data is not None else ': nothing is evaluated'}."
            )
        shown = [data[i] for i in range(min(rows, len(data)))]
        return Preview([sight for row in shown for sight in sights_of(row, self.tokenizer)])

    def task(self, **arguments: Any) -> Any:
        """The method, configured for one run with the arguments of a call, all of them checked."""
        where = f"{self._public_name()}.__call__()"
        options = parse(self.loop_class, arguments, where, self.loop_aliases, self.without_effect)
        if options.torch_compile:
            whole = not (uses_deepspeed() or self.layout.is_shared)
            raise_all(compile_problems(self.causal_lm, options.bf16, whole))
        return self.configured(options)

    def without_effect(self, options: Any) -> dict[str, str]:
        """Arguments of a call that change nothing with what was loaded, and why; see `parse`."""
        if self.eval_data is not None:
            return {}
        names = [*OF_EVALUATION, "eval_steps"]
        names += ["eval_strategy"] if options.eval_strategy != "no" else []
        names += [n for n in ("load_best_model_at_end", "eval_generate") if getattr(options, n)]
        return dict.fromkeys(names, f"a data set without a split {self.setup.eval_mode!r}")

    def configured(self, options: Any) -> "BaseTask":
        """A new task of what was loaded and of checked options."""
        raise NotImplementedError

    def _run(self, arguments: dict[str, Any]) -> Iterator[EpochResult]:
        """Check the arguments now; train when the returned generator is iterated."""
        task, setup = self.task(**arguments), self.setup
        name = family(self.causal_lm.config)
        home = Home(Path(setup.output_dir), setup.task_name, name, setup.seed)
        return Loop(task, task.options, home).run()

    @classmethod
    def _public_name(cls) -> str:
        """'dpo.Trainer' for main/trainer/dpo/trainer.py: as callers import it."""
        return f"{cls.__module__.removesuffix('.trainer').rpartition('.')[2]}.Trainer"

    def _read(self, arguments: dict[str, Any], where: str) -> tuple[Any, dict[str, Source]]:
        """The arguments, and where the rows come from; `auto` becomes the loader of the rows."""
        auto = arguments.get("loader_name") == AUTO
        given = arguments | ({"loader_name": self.loaders[0]} if auto else {})
        setup = parse(self.setup_class, given, where, self.setup_aliases)
        raise_all(self._loader_problems(setup))
        self.layout = accept_launch()
        raise_all(layout.problems(setup, self.layout))
        sources = resolve(setup.data_path, setup.data_present_path)
        if auto:
            given["loader_name"], sources = recognise(sources, self.loaders, self._public_name())
            setup = parse(self.setup_class, given, where, self.setup_aliases)
        return setup, sources

    def _loader_problems(self, setup: SetupOptions) -> list[str]:
        if self._takes(setup.loader_name):
            return []
        return [
            f"loader_name={setup.loader_name!r} does not fit this trainer: "
            f"it must be one of {list(self.loaders)}."
        ]

    def _date_problems(self) -> list[str]:
        given = self.setup.template_date
        if given is None or self.template.date_written:
            return []
        return [f"template_date={given!r} changes nothing with a template that writes no date: "
                "leave it out."]  # fmt: skip

    @classmethod
    def _takes(cls, loader_name: str) -> bool:
        """By its name, or by its columns where it was registered from outside.

        Raises:
            ConfigError: no such loader.
        """
        columns = get_loader(loader_name).columns
        return loader_name in cls.loaders or (
            loader_name not in OWN_LOADERS
            and any(columns == get_loader(name).columns for name in cls.loaders)
        )

    @cached_property
    def _config(self) -> Any:
        setup = self.setup
        return setup.config or load_config(
            setup.from_pretrained, trust_remote_code=setup.trust_remote_code
        )

    def _load_vision(self) -> Any:
        return load_vision(self.setup.from_pretrained, self._config, self.tokenizer)

    def load_data(self, template: Any) -> tuple[Any, Any]:
        """(rows to train on, rows to evaluate or None), as this template writes them."""
        setup, sources = self.setup, self.sources
        if "train" not in sources:
            raise DataError(
                f"data_path={plain(setup.data_path)!r} has no 'train' split, only "
                f"{sorted(sources)}."
            )
        limit = row_limit(setup.max_length, self._config)

        def load(split: str) -> Any:
            source = sources[split]
            parts = [load_part(p, self.row_format, template, limit) for p in source.parts]
            return EncodedRows(parts, source)

        train = load("train")
        return train, load(setup.eval_mode) if setup.eval_mode in sources else None

    def _misfits(self, policy: Any) -> list[str]:
        """Tokens that the model has no embedding for."""
        data = [("train", self.train_data), (str(self.setup.eval_mode), self.eval_data)]
        encoded = {split: rows for split, rows in data if isinstance(rows, EncodedRows)}
        return vocabulary_problems(self.tokenizer, embedding_rows(policy), encoded)

    def _load_policy(self) -> Any:
        """The base model with an adapter: a new one, or the one of `resume_path`."""
        from accelerate.utils import set_seed

        setup = self.setup
        base = load_model(
            setup.from_pretrained,
            config=setup.config,
            dtype=setup.dtype,
            # The placement moves what a device is to hold; the whole may not fit.
            device="cpu" if uses_deepspeed() or self.layout.is_shared else setup.device,
            quantization=setup.quantization,
            attn_implementation=setup.attn_implementation,
            trust_remote_code=setup.trust_remote_code,
        )
        self.base_digest = model_digest(base)
        if setup.gradient_checkpointing:
            base.gradient_checkpointing_enable({"use_reentrant": False})
        names = {field.name for field in fields(LoraOptions)}
        options = LoraOptions(**{name: getattr(setup, name) for name in names})
        if setup.resume_path is not None:
            given = (setup.given & names) - set(self.sets_itself)
            raise_all(contradictions(base, setup.resume_path, options, given))
            return load_adapter(base, setup.resume_path, trainable=True)
        set_seed(setup.seed)
        return add_adapter(base, options)

    @property
    def row_format(self) -> str:
        """The loader that encodes the rows: the one asked for, unless a method reads them anew."""
        return self.setup.loader_name

    @property
    def causal_lm(self) -> Any:
        """The transformers model below the adapter."""
        return self.model.causal_lm()

    @property
    def policy(self) -> Any:
        """The PEFT model."""
        return self.model.model

    @property
    def starts_fresh(self) -> bool:
        """Whether the adapter, as it was made here, changes nothing yet."""
        return self.setup.resume_path is None and starts_as_base(self.setup)

    def save(
        self, directory: Path, options: LoopOptions | None = None, reference: str = ""
    ) -> None:
        """Write adapter and tokenizer as they are, for predictors, peft and vLLM.

        `options` of the call that trained it and its `reference` go into `training.json`.
        """
        save_adapter(self.policy, directory)
        self.tokenizer.save_pretrained(str(directory))
        write_record(directory, self._record(options, reference))

    def _record(self, options: LoopOptions | None, reference: str) -> TrainingRecord:
        """How the adapter is trained, for `training.json`."""
        return TrainingRecord(
            library=__version__,
            method=self._public_name(),
            base=plain(str(self.setup.from_pretrained)),
            base_digest=self.base_digest,
            loader=self.setup.loader_name,
            plain_text=isinstance(self.template, PlainText),
            template_digest=template_digest(self.tokenizer),
            template_kwargs=plain(self.setup.template_kwargs),
            template_date=self.template.date_written,
            data=self.data_digests,
            reference=reference,
            setup=arguments_of(self.setup),
            call=arguments_of(options) if options else {},
        )


class BaseTask(Task):
    """A method with what the trainer loaded: made afresh by every call, for one run.

    trained: the model without what a placement puts around it; `model` is the one to call where
        gradients are made. Both share all weights.
    room: for the rows of passes without a gradient.
    """

    def __init__(self, trainer: Any, options: Any):
        self.trainer, self.options, self.setup = trainer, options, trainer.setup
        self.model = self.trained = trainer.model
        self.work = trainer.model.work
        self.policy, self.causal_lm = trainer.policy, trainer.causal_lm
        self.tokenizer = trainer.tokenizer
        self.pad_id: int = self.tokenizer.pad_token_id or 0
        self.train_data, self.eval_data = trainer.train_data, trainer.eval_data
        self.batch_size = self.setup.batch_size
        self.batch_size_eval = self.setup.batch_size_eval or self.batch_size
        self.room = Room(MOST_ROWS, "passes without a gradient")
        self.generated: Generated | None = None
        if options.eval_generate:
            self.generated = Generated(trainer, options, self.batch_size_eval)

    def open(self, run: Run) -> None:
        super().open(run)
        self.room.alone = not is_shared_out(self.trained)

    def agreed(self, passes: Callable[[], T]) -> T:
        """What passes without a gradient give; all processes raise if one of them fails.

        Where they wait for each other in a pass, the launcher has to end them.
        """
        return (together if self.room.alone else as_it_is)(passes)

    def save(self, directory: Path) -> None:
        reference = self.held_against
        self.trainer.save(directory, self.options, reference.said if reference else "")

    def write_settings(self, folder: Path) -> None:
        method = self.trainer._public_name().partition(".")[0]
        write_run_file(folder, method, [self.setup, self.options])

    @property
    def held_against(self) -> Reference | None:
        """The policy whose log-probabilities the loss or the reward reads, where there is one."""
        return None

    # -- answers to evaluation rows

    def answered_names(self) -> list[str]:
        return names_of(self.options) if self.generated else []

    def answered(self) -> Answered | None:
        return self.generated.answered(self.run) if self.generated else None

    def state(self) -> dict[str, Any]:
        return {"generated": self.generated.state()} if self.generated else {}

    def load_state(self, state: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        if self.generated:
            self.generated.load_state(state.get("generated", {}))

    # -- what it is

    def identity(self) -> dict[str, Any]:
        return {
            "method": self.trainer._public_name(),
            "base": base_content(self.policy)[:16],
            "base's dtype": base_dtypes(self.policy),
            **adapter_content(self.policy),
            **options_of(self.setup),
        }

    def around(self) -> dict[str, Any]:
        return {
            "main": __version__,
            "from_pretrained": plain(str(self.setup.from_pretrained)),
            "data_path": plain(self.setup.data_path),
            "device": str(self.policy.device),
        }


def _signature(options: type) -> inspect.Signature:
    parameters = [inspect.Parameter("self", inspect.Parameter.POSITIONAL_OR_KEYWORD)]
    for name, parameter in inspect.signature(options).parameters.items():
        parameters.append(parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY, name=name))
    return inspect.Signature(parameters)
