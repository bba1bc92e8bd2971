"""Between our rows and vLLM's requests: sampling parameters there, tokens back."""

from collections.abc import Collection, Mapping
from typing import Any

from main.predictor.decoding import Decoding
from main.predictor.sampling import GenerationOptions


def sampling_params(
    row: Decoding,
    settings: GenerationOptions,
    stop_ids: Collection[int],
    logprobs: bool,
    stepwise: bool = False,
    structure: Mapping[str, Any] | None = None,
) -> Any:
    """vLLM's `SamplingParams` for one request.

    Args:
        row: its limit and, when sampling, its generator's seed.
        logprobs: return that of each token.
        stepwise: return each token as it comes, not all at the end.
        structure: arguments of vLLM's `StructuredOutputsParams`.
    """
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind, StructuredOutputsParams

    temperature = 1.0 if settings.temperature is None else settings.temperature
    return SamplingParams(
        max_tokens=row.limit,
        temperature=temperature if settings.samples else 0.0,
        top_p=1.0 if settings.top_p is None else max(settings.top_p, 1e-9),
        top_k=max(settings.top_k or 0, 0),
        min_p=settings.min_p or 0.0,
        repetition_penalty=settings.repetition_penalty,
        seed=None if row.generator is None else row.generator.initial_seed(),
        stop_token_ids=sorted(stop_ids),
        ignore_eos=True,  # end tokens are those of `stop_ids` and no others
        logprobs=0 if logprobs else None,
        detokenize=False,
        output_kind=RequestOutputKind.DELTA if stepwise else RequestOutputKind.FINAL_ONLY,
        structured_outputs=StructuredOutputsParams(**structure) if structure else None,
    )


def take(row: Decoding, output: Any, stop_ids: Collection[int]) -> None:
    """Add the tokens of a vLLM output to its row, and their log-probabilities if asked for."""
    completion = output.outputs[0]
    for position, token in enumerate(completion.token_ids):
        row.add(token, stop_ids)
        if completion.logprobs is not None:
            row.logprobs.append(completion.logprobs[position][token].logprob)
    row.finished = row.finished or output.finished
