"""Inference with vLLM: the calls and the answers of `main.predictor.hf`.

predictor = Predictor("models/SmolLM2-135M-Instruct", peft_path=None, max_model_len=4096)
predictor("What is the capital of France?")                     # -> ["..."]
predictor("Sort this ticket: ...", choice=["refund", "exchange"])
predictor("Hello", peft_path="save_model/other/Llama_100")      # another adapter for this call
predictor({"role": "user", "content": [{"type": "image", "image": "a.jpg"},   # of a model that
                                       {"type": "text", "text": "?"}]})       # reads images

The engine starts processes of its own (tens of seconds on a CPU); `with Predictor(...) as pred:` or
`pred.close()` ends them, and so does the end of the script.
"""

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch

from main.dialogue.ends import generation_config, stop_token_ids
from main.dialogue.prompts import answer_lead
from main.models import dtype_name, load_config, load_tokenizer
from main.models.training_record import read_record
from main.options import nearest, parse, raise_all
from main.predictor.answerer import answerer
from main.predictor.as_trained import AsTrained
from main.predictor.base import BasePredictor
from main.predictor.call import Call, Voice
from main.predictor.decoding import Decoding
from main.predictor.structured import StructuredOptions
from main.predictor.vllm_adapters import Adapters, lora_arguments
from main.predictor.vllm_engine import ALIKE, Engine, Request, engine_options
from main.predictor.vllm_params import sampling_params, take
from main.predictor.vllm_pixels import OWN_PIXELS, check_torchvision, image_input
from main.vision import load_vision

OWN_ADAPTER = Path()  # stands for the adapter that the predictor was made with
SET_HERE = {"model", "tokenizer"}  # engine options that this module decides


@dataclass
class PredictorOptions:
    """Keyword arguments of `Predictor`; all others go to vLLM's engine.

    model_from_pretrained: folder of the base model, or its name on the hub.
    peft_path (also resume_path): folder of the adapter that answers unless a call names another.
    dtype: 'auto' = as `main.models.load_model` would choose.
    trust_remote_code: run Python code that the model brings along.
    system_prompt: opens every dialogue that has no system message.
    """

    model_from_pretrained: str | Path
    peft_path: str | Path | None = None
    dtype: Any = "auto"
    trust_remote_code: bool = False
    system_prompt: str | None = None


@dataclass
class CallOptions(StructuredOptions):
    """What a caller may say about one call, beside `StructuredOptions`.

    peft_path: folder of the adapter that answers this call; None = the base model. Needs an engine
        with adapters: one made with peft_path or enable_lora=True.
    """

    peft_path: str | Path | None = OWN_ADAPTER

    def problems(self) -> list[str]:
        """One sentence for every value that cannot work."""
        found = super().problems()
        if self.no_repeat_ngram_size:
            found.append(
                "no_repeat_ngram_size is not among what vLLM can do: leave it out, use "
                "repetition_penalty, or main.predictor.hf."
            )
        return found


class Predictor(BasePredictor):
    """Answers with vLLM; may be called from several threads at once."""

    where = "vllm.Predictor call"
    call_options = CallOptions

    def __init__(
        self,
        model_from_pretrained: str | os.PathLike[str],
        peft_path: str | os.PathLike[str] | None = None,
        **options: Any,
    ):
        """Start the engine.

        Args:
            options: those of `PredictorOptions`; every other name has to be one of vLLM's engine
                arguments (`max_model_len`, `gpu_memory_utilization`, `tensor_parallel_size`,
                `enable_lora`, `max_lora_rank`, ...).

        Raises:
            ConfigError: an argument that neither knows, or values that cannot work.
            MissingExtraError: vLLM is not installed.
            MissingFileError, ModelError: a model or adapter that is missing or cannot be used.
        """
        given = {"model_from_pretrained": model_from_pretrained, **options}
        if peft_path is not None:
            given["peft_path"] = peft_path
        self.options, engine = _split(given)
        own = self.options
        config = load_config(own.model_from_pretrained, trust_remote_code=own.trust_remote_code)
        arguments = _engine_arguments(own, config, engine)
        tokenizer = load_tokenizer(
            own.model_from_pretrained, trust_remote_code=own.trust_remote_code
        )
        self.vision = load_vision(own.model_from_pretrained, config, tokenizer)
        if self.vision is not None:
            check_torchvision(own.model_from_pretrained)
            arguments = {**arguments, **OWN_PIXELS}
        self._dtype = getattr(torch, arguments["dtype"])
        self._config = config
        self._generation_config = generation_config(own.model_from_pretrained, config)
        self.system_prompt = own.system_prompt
        self.engine = Engine(arguments)
        try:
            self.context = self.engine.context
            self.vocabulary = config.get_text_config().vocab_size
            trained = AsTrained(read_record(own.model_from_pretrained))
            stops, lead = self._stop_ids(tokenizer), answer_lead(tokenizer)
            who = answerer(own.model_from_pretrained, quantization=arguments.get("quantization"))
            base = Voice(tokenizer, stops, lead, trained=trained, answerer=who)
            self._adapters = Adapters(self.engine, base, self._stop_ids, arguments, config)
            self.voice = base if own.peft_path is None else self._adapters.voice(own.peft_path)
        except BaseException:
            self.close()
            raise

    @property
    def tokenizer(self) -> Any:
        """The tokenizer of the adapter that the predictor was made with, or the base model's."""
        return self.voice.tokenizer

    @property
    def stop_ids(self) -> frozenset[int]:
        """Tokens that end an answer."""
        return self.voice.stop_ids

    def close(self) -> None:
        """End the engine and its processes."""
        self.engine.close()

    def __enter__(self) -> "Predictor":
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()

    def _stop_ids(self, tokenizer: Any) -> frozenset[int]:
        return frozenset(stop_token_ids(self._generation_config, tokenizer, self._config))

    def _voice(self, settings: CallOptions) -> Voice:
        path = settings.peft_path
        if path is OWN_ADAPTER:
            return self.voice
        return self._adapters.base if path is None else self._adapters.voice(path)

    def _decode(
        self, rows: list[Decoding], call: Call, logprobs: bool = False, stepwise: bool = False
    ) -> Iterator[list[Decoding]]:
        settings = call.settings
        running = [row for row in rows if not row.finished]
        params = [
            sampling_params(row, settings, call.stop_ids, logprobs, stepwise, settings.structure)
            for row in running
        ]
        requests = [
            Request(row.prompt_ids, param, call.voice.adapter, self._images(row))
            for row, param in zip(running, params, strict=True)
        ]
        if not stepwise:
            for row, output in zip(running, self.engine.run(requests), strict=True):
                take(row, output, call.stop_ids)
            yield rows
            return
        yield from self._steps(running, requests, call)

    def _images(self, row: Decoding) -> Mapping[str, Any]:
        if self.vision is None:
            return {}
        return image_input(row.prompt_ids, row.visuals, self.vision, self._dtype)

    def _steps(
        self, rows: list[Decoding], requests: list[Request], call: Call
    ) -> Iterator[list[Decoding]]:
        """Tokens as they come, until every row is finished, be it by its caller."""
        for items in self.engine.stream(requests):
            changed = {}
            for index, output in items:
                if not rows[index].finished:
                    take(rows[index], output, call.stop_ids)
                    changed[index] = rows[index]
            if changed:
                yield list(changed.values())
            if all(row.finished for row in rows):
                return


def _split(given: Mapping[str, Any]) -> tuple[PredictorOptions, dict[str, Any]]:
    """(our options, the engine's); a name that neither knows is refused."""
    aliases = {"resume_path": "peft_path"}
    own = {field.name for field in fields(PredictorOptions)} | set(aliases)
    known = own | engine_options() - SET_HERE
    raise_all(
        [
            f"'{name}' is neither an argument of vllm.Predictor() nor one of vLLM's engine."
            f"{nearest(name, known)}"
            for name in given
            if name not in known
        ]
    )
    mine = {name: value for name, value in given.items() if name in own}
    options = parse(PredictorOptions, mine, "vllm.Predictor()", aliases)
    return options, {name: value for name, value in given.items() if name not in own}


def _engine_arguments(
    options: PredictorOptions, config: Any, engine: Mapping[str, Any]
) -> dict[str, Any]:
    """What vLLM is told; the caller's word comes last."""
    return {
        "model": str(options.model_from_pretrained),
        "dtype": dtype_name(config, options.dtype),
        "trust_remote_code": options.trust_remote_code,
        **ALIKE,
        **lora_arguments(options.peft_path, engine),
        **engine,
    }
