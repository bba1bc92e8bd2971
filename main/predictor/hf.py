"""Inference with transformers: answers for one request or a batch, whole or as they grow.

predictor = Predictor("models/SmolLM2-135M-Instruct", peft_path=None)
predictor("What is the capital of France?")                     # -> ["..."]
for chunks, texts in predictor.predict_stream("Tell me a story."):
    print(chunks[0], end="")
"""

import os
from collections.abc import Iterator
from typing import Any

import torch

from main.dialogue.ends import stop_token_ids
from main.dialogue.prompts import answer_lead
from main.models import context_length, has_tokenizer, load_adapter, load_model, load_tokenizer
from main.models.merging import merge_or_keep
from main.models.training_record import model_digest, read_record
from main.models.vocabulary import embedding_rows
from main.options import parse
from main.predictor.answerer import answerer
from main.predictor.as_trained import AsTrained
from main.predictor.base import BasePredictor
from main.predictor.call import Call, Voice
from main.predictor.decode import decode
from main.predictor.decoding import Decoding, batches
from main.predictor.options import PredictorOptions
from main.vision import load_vision


class Predictor(BasePredictor):
    """Answers with transformers. Decoding runs in the caller's thread, between two items."""

    where = "hf.Predictor call"

    def __init__(
        self,
        model_from_pretrained: str | os.PathLike[str],
        peft_path: str | os.PathLike[str] | None = None,
        **options: Any,
    ):
        """Load the model; the arguments are those of `PredictorOptions`.

        Raises:
            ConfigError: unknown arguments, or values that cannot work.
            MissingFileError, ModelError: see `main.models`.
        """
        given = {"model_from_pretrained": model_from_pretrained, **options}
        if peft_path is not None:
            given["peft_path"] = peft_path
        aliases = {"resume_path": "peft_path"}
        self.options = parse(PredictorOptions, given, "hf.Predictor()", aliases)
        self.tokenizer = _tokenizer(self.options)
        base_digest, self.model = _model(self.options)
        self.vision = load_vision(model_from_pretrained, self.model.config, self.tokenizer)
        self.stop_ids = frozenset(stop_token_ids(self.model, self.tokenizer))
        trained = AsTrained(read_record(self.options.peft_path or model_from_pretrained))
        trained.tell_differences(self.tokenizer, base_digest)
        lead = answer_lead(self.tokenizer)
        who = answerer(model_from_pretrained, self.options.peft_path, self.options.quantization)
        self.voice = Voice(self.tokenizer, self.stop_ids, lead, trained=trained, answerer=who)
        self.context = context_length(self.model.config)
        self.vocabulary = embedding_rows(self.model)
        self.system_prompt = self.options.system_prompt

    def _decode(
        self, rows: list[Decoding], call: Call, logprobs: bool = False, stepwise: bool = False
    ) -> Iterator[list[Decoding]]:
        budget = self.options.max_batch_tokens or _default_budget(self.model.device)
        pad_id = self.tokenizer.pad_token_id
        for batch in batches(rows, self.options.batch_size, budget):
            yield from decode(
                self.model,
                batch,
                call.settings,
                call.stop_ids,
                pad_id,
                logprobs,
                vision=self.vision,
            )


def _tokenizer(options: PredictorOptions) -> Any:
    """The base model's tokenizer, or the adapter's own when it brings one.

    Training may have set another chat template, which the adapter expects at inference too.
    """
    peft_path = options.peft_path
    own = peft_path is not None and has_tokenizer(peft_path)
    path = peft_path if peft_path is not None and own else options.model_from_pretrained
    return load_tokenizer(path, trust_remote_code=options.trust_remote_code)


def _model(options: PredictorOptions) -> tuple[str | None, Any]:
    """The digest of the base, if it carries an adapter that was trained on one, and the model."""
    model = load_model(
        options.model_from_pretrained,
        dtype=options.dtype,
        device=options.device,
        device_map=options.device_map,
        quantization=options.quantization,
        attn_implementation=options.attn_implementation,
        trust_remote_code=options.trust_remote_code,
    )
    if options.peft_path is None:
        return None, model
    digest = model_digest(model) if read_record(options.peft_path) else None
    adapted = load_adapter(model, options.peft_path)
    # Merging saves two small products a layer; below float32 it would round the adapter away.
    exact = model.dtype == torch.float32 and not getattr(model, "is_quantized", False)
    return digest, merge_or_keep(adapted) if exact else adapted


def _default_budget(device: torch.device) -> int:
    return 32_768 if device.type == "cpu" else 262_144
