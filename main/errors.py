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


class DiskError(MainError, OSError):
    """A file that cannot be written: the disk is full, read-only or faulty, or it is not yours."""

    __str__ = Exception.__str__


class InUseError(MainError, OSError):
    """A folder or file that somebody else is writing.

    elsewhere: on another host, of which nobody here can know whether it still lives.
    """

    __str__ = Exception.__str__

    def __init__(self, message: str, elsewhere: bool = False):
        super().__init__(message)
        self.elsewhere = elsewhere


class CheckpointError(MainError, OSError):
    """A checkpoint that cannot be found, read or resumed from."""

    __str__ = Exception.__str__


class TrainingError(MainError, RuntimeError):
    """Training cannot go on: a loss that is not finite, or memory that does not suffice."""


class RewardError(MainError, ValueError):
    """A reward function, or a metric's, that raised or returned something else than numbers."""


class GenerationError(MainError, RuntimeError):
    """A request that the predictor cannot answer, such as a prompt longer than the context.

    request: its number among those of the call, where one alone is the cause.
    """

    request: int | None = None


class EngineDiedError(GenerationError):
    """What computes behind a predictor is gone: no request can be answered any more."""


class MissingExtraError(MainError, ImportError):
    """An optional dependency is needed here and not installed."""

    def __init__(self, package: str, extra: str | None, purpose: str):
        """extra: of this project, which brings the package; None = it is installed by itself."""
        how = f"'.[{extra}]' (in the project's folder)" if extra else package
        super().__init__(
            f"{purpose} needs the package '{package}', which is not installed: pip install {how}."
        )
