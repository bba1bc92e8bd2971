"""Texts -> unit vectors of a sentence encoder, for rewards by likeness of meaning.

A sentence's vector is the mean of its tokens' last hidden states (Reimers and Gurevych,
"Sentence-BERT", arXiv 1908.10084, section 3), over the attention mask, divided by its length.
"""

from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from main.errors import ModelError
from main.models.folder import clear_errors, local_folder
from main.models.harmless import check_weights
from main.models.load import default_device, load_config
from main.models.tokenizers import load_tokenizer
from main.system.memory import Room
from main.system.settings import read_settings

DEFAULT_MAX_LENGTH = 512
_ADVICE = "use a smaller encoder, or another device."


class SentenceEncoder:
    """A sentence encoder in a folder (or hub name): text2vec, MiniLM, bge, Qwen3-Embedding.

    A blank text has the zero vector: it is like no other text, not even another blank one.

    Args:
        path: weights, config.json and tokenizer. Pooling is the mean, whatever the folder asks for.
        device: None = this process's accelerator, else the CPU.
        batch_size: texts computed at once; by default 32 on an accelerator and 1 on a CPU, where a
            vector must not depend, in its last bits, on what else is in the batch: a resumed run
            has other texts in its cache than an uninterrupted one.
        cache_size: vectors kept, the least recently used ones are dropped first.

    Raises:
        MissingFileError, ModelError: the folder is missing or holds no encoder.
    """

    def __init__(
        self,
        path: str | Path,
        device: str | torch.device | None = None,
        batch_size: int | None = None,
        cache_size: int = 20_000,
    ):
        self.device = torch.device(default_device() if device is None else device)
        self.batch_size = batch_size or (1 if self.device.type == "cpu" else 32)
        self.cache_size = cache_size
        config = load_config(path)
        self.tokenizer = load_tokenizer(path)
        self.model = _load(path, config).to(self.device)
        self.hidden_size = int(config.hidden_size)
        self.max_length = _max_length(Path(path), self.tokenizer, config)
        self._cache: OrderedDict[str, Tensor] = OrderedDict()

    def encode(self, texts: Sequence[str]) -> Tensor:
        """Vectors (N, H), float32, on the CPU, each of length 1 (0 for a blank text)."""
        new = [text for text in dict.fromkeys(texts) if text not in self._cache]
        new.sort(key=len)  # like lengths together: little padding
        vectors = {text: self._cache[text] for text in texts if text in self._cache}
        room = Room(self.batch_size, "texts of the sentence encoder", _ADVICE, kind=ModelError)
        rows = (row for part in room.over(new, self._embed) for row in part)
        vectors.update(zip(new, rows, strict=True))
        self._keep(vectors)
        return (
            torch.stack([vectors[text] for text in texts])
            if texts
            else torch.empty(0, self.hidden_size)
        )

    def token_ids(self, text: str) -> list[int]:
        """The ids of a text in the encoder's own vocabulary, without special tokens."""
        return self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]

    @torch.no_grad()
    def _embed(self, texts: Sequence[str]) -> Tensor:
        inputs = self.tokenizer(
            list(texts),
            padding=True,
            truncation=True,
            max_length=self.max_length,
            return_tensors="pt",
        ).to(self.device)
        if inputs["input_ids"].shape[1] == 0:  # blank texts under a tokenizer that adds nothing
            return torch.zeros(len(texts), self.hidden_size)
        hidden = self.model(**inputs).last_hidden_state.float()  # (B, T, H)
        mask = inputs["attention_mask"][..., None].float()
        mean = (hidden * mask).sum(1) / mask.sum(1).clamp(min=1)
        filled = torch.tensor([bool(text.strip()) for text in texts], device=self.device)
        return (torch.nn.functional.normalize(mean, dim=-1) * filled[:, None]).cpu()

    def _keep(self, vectors: dict[str, Tensor]) -> None:
        for text, vector in vectors.items():
            self._cache[text] = vector
            self._cache.move_to_end(text)
        while len(self._cache) > self.cache_size:
            self._cache.popitem(last=False)


def _load(path: str | Path, config: Any) -> Any:
    from transformers import AutoModel

    check_weights(local_folder(path), "sentence encoder")
    with clear_errors("sentence encoder", path):
        model, report = AutoModel.from_pretrained(
            str(path),
            config=config,
            dtype=torch.float32,
            output_loading_info=True,
            trust_remote_code=False,
        )
    # Some encoders are saved without the pooler of their class, which the mean does not need.
    missing = [name for name in sorted(report["missing_keys"]) if not name.startswith("pooler.")]
    if missing:
        raise ModelError(
            f"sentence encoder '{path}' lacks {len(missing)} tensors, e.g. '{missing[0]}': "
            "it is not a complete encoder."
        )
    return model.eval().requires_grad_(False)


def _max_length(folder: Path, tokenizer: Any, config: Any) -> int:
    """What the encoder was trained for; longer texts are cut."""
    limits = [DEFAULT_MAX_LENGTH, tokenizer.model_max_length]
    limits.append(getattr(config, "max_position_embeddings", None) or DEFAULT_MAX_LENGTH)
    found = read_settings(folder / "sentence_bert_config.json").get("max_seq_length")
    limits.append(found if isinstance(found, int) and found > 0 else DEFAULT_MAX_LENGTH)
    return int(min(limits))
