"""What all families share: placeholders in the prompt, one token for every image feature.

The chat template writes one placeholder for an image. `expand` repeats it once for each feature
that the vision tower will make of the image, and `inputs` makes the pixels; both count from the
same sizes, and a difference is an error.
"""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from main.errors import DataError, MissingFileError, ModelError
from main.vision.image import pillow
from main.vision.media import Visual

if TYPE_CHECKING:
    import torch

Inputs = dict[str, "torch.Tensor"]


class Placed(NamedTuple):
    """Where the tokens of an image or video stand: token span [start, end)."""

    start: int
    end: int
    visual: Visual


class Expanded(NamedTuple):
    """Token ids with every placeholder repeated.

    moved: of T + 1 numbers, the new position of each old token and of the end.
    """

    ids: list[int]
    placed: list[Placed]
    moved: list[int]


class VisionProcessor(ABC):
    """Images of one model family.

    Args:
        path: folder or hub name of the model.
        config: its configuration.
        tokenizer: of the model, with the placeholder tokens in its vocabulary.
    """

    token_fields: ClassVar[
        dict[str, str]
    ]  # kind of visual -> field of the config with its placeholder id

    def __init__(self, path: str, config: Any, tokenizer: Any):
        self.path, self.config, self.tokenizer = path, config, tokenizer
        self.token_ids = {kind: getattr(config, name) for kind, name in self.token_fields.items()}

    @abstractmethod
    def runs(self, visual: Visual) -> list[int]:
        """Tokens at each placeholder that the prompt has for this visual; usually one."""

    @abstractmethod
    def features(self, visual: Visual) -> Inputs:
        """The model's inputs for one visual, of the size that `runs` counts."""

    @abstractmethod
    def joined(self, parts: Sequence[Inputs]) -> Inputs:
        """The inputs of several visuals as one."""

    def write(self, text: str, visuals: Sequence[Visual]) -> str:
        """The rendered dialogue with what the family writes around frames; by default as it is."""
        return text

    def positions(
        self, model: Any, ids: "torch.Tensor", mask: "torch.Tensor", visuals: Sequence[Visual]
    ) -> "torch.Tensor | None":
        """Position ids of prompts (B, T), where they are not simply counted; else None."""
        return None

    def token_types(self, ids: "torch.Tensor") -> Inputs:
        """What the model's forward needs beside the pixels to place them, made of ids (B, T)."""
        return {}

    def expand(self, ids: Sequence[int], visuals: Sequence[Visual]) -> Expanded:
        """Repeat each placeholder in `ids` as often as its image has features.

        Raises:
            DataError: not as many placeholders as images, or an image that cannot be read.
        """
        runs = [(self.token_id(v), n, i) for i, v in enumerate(visuals) for n in self.runs(v)]
        known = set(self.token_ids.values())
        places = [position for position, token in enumerate(ids) if token in known]
        if [ids[place] for place in places] != [token for token, _, _ in runs]:
            raise DataError(
                f"the prompt has {len(places)} placeholders for images, and its {len(visuals)} "
                f"images and videos need {len(runs)}. Placeholder tokens may not be written as "
                "text; the chat template has to write one for each image."
            )
        out: list[int] = []
        moved, spans = [], dict.fromkeys(range(len(visuals)), (0, 0))
        lengths = dict(zip(places, runs, strict=True))
        for position, token in enumerate(ids):
            moved.append(len(out))
            _, count, index = lengths.get(position, (0, 1, None))
            if index is not None:
                start = spans[index][0] if spans[index][1] else len(out)
                spans[index] = (start, len(out) + count)
            out += [token] * count
        placed = [Placed(*spans[i], visual) for i, visual in enumerate(visuals)]
        return Expanded(out, placed, [*moved, len(out)])

    def inputs(
        self,
        ids: Sequence[Sequence[int]],
        visuals: Sequence[Sequence[Visual]],
        names: Sequence[str],
    ) -> Inputs:
        """The pixels of B rows, after a check that their tokens fit; {} when none has an image.

        Args:
            ids: expanded prompts, unpadded or padded.
            visuals: of each row.
            names: of the rows, for messages, such as "row 7".

        Raises:
            DataError: an image that is gone, or of another size than its row was expanded for.
        """
        parts: list[Inputs] = []
        for row, images, name in zip(ids, visuals, names, strict=True):
            try:
                self._check(row, images)
                parts += [self.features(visual) for visual in images]
            except (DataError, MissingFileError) as error:
                raise DataError(f"{name}: {error}") from error
        return self.joined(parts) if parts else {}

    def _check(self, ids: Sequence[int], visuals: Sequence[Visual]) -> None:
        """As many placeholder tokens as features, of images and of videos."""
        for kind, token in self.token_ids.items():
            needed = sum(sum(self.runs(v)) for v in visuals if v.kind == kind)
            found = sum(one == token for one in ids)
            if found != needed:
                raise DataError(
                    f"there are {found} {kind} tokens for {needed} features of "
                    f"{', '.join(v.name for v in visuals) or 'no image'}. If a file has changed "
                    "since its row was encoded, delete the cached rows (the folder 'main' in the "
                    "cache of Hugging Face datasets)."
                )

    def token_id(self, visual: Visual) -> int:
        """The placeholder of a kind of visual.

        Raises:
            DataError: the family takes no videos.
        """
        if visual.kind not in self.token_ids:
            raise DataError(
                f"{self.config.model_type} models take images, not videos ({visual.name})."
            )
        return self.token_ids[visual.kind]

    @cached_property
    def image_processor(self) -> Any:
        """The model's own, from its preprocessor_config.json.

        Raises:
            MissingExtraError: pillow is not installed.
            ModelError: the model's folder has no settings for images.
        """
        pillow()
        from transformers import AutoImageProcessor

        try:
            return AutoImageProcessor.from_pretrained(self.path, trust_remote_code=False)
        except (OSError, ValueError, ImportError) as error:
            first = str(error).strip().splitlines()[0]
            raise ModelError(
                f"the image processor of '{self.path}' cannot be loaded (its settings are in "
                f"preprocessor_config.json): {first}"
            ) from error

    def fingerprint(self) -> str:
        """Changes with everything that changes the tokens of an image or video."""
        from transformers.utils import is_torchvision_available

        digest = hashlib.sha256(f"{type(self).__name__} {is_torchvision_available()}".encode())
        for name in SETTINGS:
            digest.update(settings_text(self.path, name).encode())
        digest.update(str(self.config.to_json_string()).encode())
        return digest.hexdigest()


SETTINGS = ("preprocessor_config.json", "processor_config.json", "video_preprocessor_config.json")


def copy_settings(path: str, folder: Path) -> None:
    """Give `folder` what the model at `path` says of its images; nothing for a model of text."""
    for name in (*SETTINGS, "chat_template.json"):
        text = settings_text(path, name)
        if text:
            (folder / name).write_text(text, encoding="utf-8")


def settings_text(path: str, name: str) -> str:
    """The text of a settings file in a model's folder or on the hub; '' when there is none."""
    from transformers.utils import cached_file

    found = cached_file(
        path, name, _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
    )  # fmt: skip
    if found is None:
        return ""
    with open(found, encoding="utf-8") as stream:
        return stream.read()
