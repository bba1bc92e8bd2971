"""One exception tree. Every class is also the stdlib class that a caller would expect to catch."""


class MainError(Exception):
    """Base of every error that this library raises on purpose."""


class ConfigError(MainError, ValueError):
    """An argument, or a combination of arguments, that cannot work."""


class DataError(MainError, ValueError):
    """A row, file or registry entry that cannot be read as what it claims to be."""


class MissingFileError(MainError, FileNotFoundError):
    """A path that the caller named does not exist."""

    # OSError's own __str__ would show only errno; the message is ours.
    __str__ = Exception.__str__


class ModelError(MainError, RuntimeError):
    """A model, tokenizer or adapter that cannot be used as asked."""


class CheckpointError(MainError, OSError):
    """A checkpoint that cannot be written, found or resumed from."""

    __str__ = Exception.__str__


class TrainingError(MainError, RuntimeError):
    """Training cannot go on: a loss that is not finite, or memory that does not suffice."""


class RewardError(MainError, ValueError):
    """A reward function that raised, or that returned something else than rewards."""


class GenerationError(MainError, RuntimeError):
    """A request that the predictor cannot answer, such as a prompt longer than the context."""


class MissingExtraError(MainError, ImportError):
    """An optional dependency is needed here and not installed."""

    def __init__(self, package: str, extra: str, purpose: str):
        super().__init__(
            f"{purpose} needs the package '{package}', which is not installed: "
            f"pip install '.[{extra}]' (in the project's folder)."
        )
