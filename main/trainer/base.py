"""What the four trainers share: reading arguments, loading data, tokenizer, model and adapter."""

import inspect
from collections.abc import Iterator, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, ClassVar

from main.errors import DataError
from main.loaders import get_loader, get_template, load_dataset_split, resolve
from main.models import (
    LoraOptions,
    add_adapter,
    family,
    load_adapter,
    load_config,
    load_model,
    load_tokenizer,
    save_adapter,
    stop_token_ids,
)
from main.options import parse, raise_all
from main.trainer import layout, tensor_parallel
from main.trainer.arguments import LOOP_ALIASES, SETUP_ALIASES, LoopOptions, SetupOptions
from main.trainer.launch import launch_problems
from main.trainer.logprobs import LogprobModel
from main.trainer.loop import Loop, Place
from main.trainer.task import Task
from main.types import EpochResult
from main.utils.processes import uses_deepspeed
from main.vision import load_vision


class EncodedRows:
    """Memory-mapped rows of a file, read one at a time; `lengths` alone is held in memory."""

    def __init__(self, dataset: Any):
        self._dataset = dataset
        self.lengths = list(dataset["length"])

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self._dataset[index]


class BaseTrainer(Task):
    """Loads everything in the constructor, in the order in which mistakes are cheapest to find."""

    setup_class: ClassVar[type[SetupOptions]] = SetupOptions
    loop_class: ClassVar[type[LoopOptions]] = LoopOptions
    setup_aliases: ClassVar[Mapping[str, str]] = SETUP_ALIASES
    loop_aliases: ClassVar[Mapping[str, str]] = LOOP_ALIASES
    loaders: ClassVar[tuple[str, ...]]  # row formats that the method can train on
    takes_images: ClassVar[bool] = False  # whether its batches carry pixels

    def __init_subclass__(cls) -> None:
        """Show the real arguments in `help()` and to editors, not `**arguments`."""
        for method, options in (("__init__", cls.setup_class), ("__call__", cls.loop_class)):
            if method in cls.__dict__:
                cls.__dict__[method].__signature__ = _signature(options)

    def __init__(self, **arguments: Any):
        where = f"{type(self).__module__.rsplit('.', 1)[-1]}.Trainer"
        self.setup = setup = parse(self.setup_class, arguments, f"{where}()", self.setup_aliases)
        raise_all(self._problems(setup))
        self.layout = layout.take_over()
        raise_all(layout.problems(setup, self.layout))
        files = resolve(setup.data_path, setup.data_present_path)
        self.tokenizer = setup.tokenizer or load_tokenizer(
            setup.from_pretrained, trust_remote_code=setup.trust_remote_code
        )
        self.vision = self._load_vision() if self.takes_images else None
        self.template = get_template(
            self.tokenizer, setup.loader_name, self.vision, **setup.template_kwargs
        )
        self.batch_size = setup.batch_size
        self.batch_size_eval = setup.batch_size_eval or setup.batch_size
        self._load_data(files)
        self.model = LogprobModel(self._load_policy())
        if self.layout.tensor > 1:
            raise_all(tensor_parallel.problems(self.causal_lm, self.layout.tensor))

    def __call__(self, **arguments: Any) -> Iterator[EpochResult]:
        raise NotImplementedError

    def _run(self, arguments: dict[str, Any]) -> Iterator[EpochResult]:
        """Check the arguments now; train when the returned generator is iterated."""
        where = f"{type(self).__module__.rsplit('.', 1)[-1]}.Trainer.__call__()"
        self.options = parse(self.loop_class, arguments, where, self.loop_aliases)
        place = Place(
            Path(self.setup.output_dir),
            self.setup.task_name,
            family(self.causal_lm.config),
            self.setup.seed,
        )
        return Loop(self, self.options, place).run()

    def _problems(self, setup: SetupOptions) -> list[str]:
        if setup.loader_name in self.loaders:
            return launch_problems()
        get_loader(setup.loader_name)  # an unknown name has an error of its own
        return [
            f"loader_name={setup.loader_name!r} does not fit this trainer: "
            f"it must be one of {list(self.loaders)}."
        ]

    def _load_vision(self) -> Any:
        setup = self.setup
        config = setup.config or load_config(
            setup.from_pretrained, trust_remote_code=setup.trust_remote_code
        )
        return load_vision(setup.from_pretrained, config, self.tokenizer)

    def _load_data(self, files: dict[str, Path]) -> None:
        setup = self.setup
        if "train" not in files:
            raise DataError(
                f"data_path={setup.data_path!r} has no 'train' split, only {sorted(files)}."
            )

        def load(split: str) -> Any:
            return EncodedRows(
                load_dataset_split(files[split], self.row_format, self.template, setup.max_length)
            )

        self.train_data = load("train")
        self.eval_data = load(setup.eval_mode) if setup.eval_mode in files else None

    def _load_policy(self) -> Any:
        """The base model with an adapter: a new one, or the one of `resume_path`."""
        from accelerate.utils import set_seed

        setup = self.setup
        base = load_model(
            setup.from_pretrained,
            config=setup.config,
            dtype=setup.dtype,
            # The engine moves what a device is to hold; the whole may not fit.
            device="cpu" if uses_deepspeed() or self.layout.is_shared else setup.device,
            quantization=setup.quantization,
            attn_implementation=setup.attn_implementation,
            trust_remote_code=setup.trust_remote_code,
        )
        if setup.gradient_checkpointing:
            base.gradient_checkpointing_enable({"use_reentrant": False})
        if setup.resume_path is not None:
            return load_adapter(base, setup.resume_path, trainable=True)
        set_seed(setup.seed)
        names = [field.name for field in fields(LoraOptions)]
        return add_adapter(base, LoraOptions(**{name: getattr(setup, name) for name in names}))

    @property
    def row_format(self) -> str:
        """The loader that encodes the rows: the one asked for, unless a method reads them anew."""
        return self.setup.loader_name

    @property
    def unwrapped(self) -> Any:
        """`model` without the wrappers of several processes."""
        from accelerate.utils import extract_model_from_parallel

        return extract_model_from_parallel(self.model)

    @property
    def causal_lm(self) -> Any:
        """The transformers model below adapter and wrappers."""
        return self.unwrapped.causal_lm()

    @property
    def policy(self) -> Any:
        """The PEFT model, without wrappers."""
        return self.unwrapped.model

    @property
    def pad_id(self) -> int:
        return self.tokenizer.pad_token_id or 0

    @property
    def stop_ids(self) -> list[int]:
        return stop_token_ids(self.causal_lm, self.tokenizer)

    def save(self, directory: Path) -> None:
        save_adapter(self.policy, directory)
        self.tokenizer.save_pretrained(str(directory))


def _signature(options: type) -> inspect.Signature:
    parameters = [inspect.Parameter("self", inspect.Parameter.POSITIONAL_OR_KEYWORD)]
    for name, parameter in inspect.signature(options).parameters.items():
        parameters.append(parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY, name=name))
    return inspect.Signature(parameters)
