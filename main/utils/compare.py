"""Two backends' answers to the same requests, compared; and what most likely sets them apart."""

from collections.abc import Callable, Sequence
from statistics import fmean
from typing import NamedTuple

from main.types import ScoredAnswer

# Mean difference of a log-probability, nats. Float32 kernels that add in another order stay far
# below the first; weights rounded to bfloat16 stay below the second, other weights do not.
SAME_WEIGHTS = 1e-3
SAME_ROUNDED = 0.1
TIE = 1e-3  # nats between two tokens that the smallest difference of arithmetic can swap


class Side(NamedTuple):
    """What one backend was asked and answered.

    dtype: of the stored weights, or of the computation where that is coarser.
    prompts: as the backend's own template renders them.
    """

    name: str
    dtype: str
    prompts: list[str]
    stop_ids: frozenset[int]
    answers: list[ScoredAnswer]


class Split(NamedTuple):
    """Where two answers part.

    row: of the data, from 0; token: how many tokens are equal before.
    tokens: the two ids; None where one answer has ended.
    gap: nats by which the first backend prefers its own token; None where one has ended.
    """

    row: int
    token: int
    tokens: tuple[int | None, int | None]
    gap: float | None


class Comparison(NamedTuple):
    """A backend against the first one.

    same: share of identical answers (tokens and stop reason); same_prompts: of identical prompts.
    mean, largest: difference of log-probabilities over the tokens before the answers part.
    """

    name: str
    same: float
    same_prompts: float
    splits: list[Split]
    mean: float
    largest: float
    stop_reasons: str
    equal: bool
    cause: str


def compare(
    first: Side, other: Side, gap: Callable[[int, Sequence[int], int, int], float]
) -> Comparison:
    """Compare answer by answer.

    gap: (row, ids before, its token, other token) -> nats between the two in the first backend.
    """
    pairs = list(zip(first.answers, other.answers, strict=True))
    splits, differences = [], []
    for row, (one, two) in enumerate(pairs):
        common = _common(one.token_ids, two.token_ids)
        differences += [
            abs(p - q) for p, q in zip(one.logprobs[:common], two.logprobs[:common], strict=True)
        ]
        if one.token_ids != two.token_ids or one.finish_reason != two.finish_reason:
            splits.append(_split(row, common, one.token_ids, two.token_ids, gap))
    mean = fmean(differences) if differences else 0.0
    same_prompts = [p == q for p, q in zip(first.prompts, other.prompts, strict=True)]
    equal, cause = _verdict(first, other, splits, mean, same_prompts)
    return Comparison(
        other.name,
        1 - len(splits) / len(pairs),
        fmean(same_prompts),
        splits,
        mean,
        max(differences, default=0.0),
        stop_reasons(other),
        equal,
        cause,
    )


def stop_reasons(side: Side) -> str:
    """E.g. '48 stop, 2 length'."""
    reasons = [answer.finish_reason for answer in side.answers]
    return ", ".join(f"{reasons.count(name)} {name}" for name in ("stop", "length"))


def _common(one: Sequence[int], two: Sequence[int]) -> int:
    """Length of the common beginning."""
    for i, (a, b) in enumerate(zip(one, two, strict=False)):
        if a != b:
            return i
    return min(len(one), len(two))


def _split(
    row: int,
    common: int,
    one: Sequence[int],
    two: Sequence[int],
    gap: Callable[[int, Sequence[int], int, int], float],
) -> Split:
    a = one[common] if common < len(one) else None
    b = two[common] if common < len(two) else None
    known = a is not None and b is not None
    return Split(row, common, (a, b), gap(row, one[:common], a, b) if known else None)  # type: ignore[arg-type]


def _verdict(
    first: Side, other: Side, splits: list[Split], mean: float, same_prompts: list[bool]
) -> tuple[bool, str]:
    """Whether both serve the same model, and in words why (not); the surest cause first."""
    if not all(same_prompts):
        return False, _template_cause(first, other, same_prompts.index(False))
    if first.stop_ids != other.stop_ids and any(
        _only_stopped_apart(s, first, other) for s in splits
    ):
        return False, (
            f"other stop tokens: {sorted(first.stop_ids)} against {sorted(other.stop_ids)}. "
            "Put them into generation_config.json (eos_token_id)."
        )
    if mean <= SAME_WEIGHTS:
        if not splits:
            return True, "equal"
        if all(split.gap is not None and split.gap <= TIE for split in splits):
            return True, f"equal but for {len(splits)} ties (gap <= {TIE:g} nats)"
    shift = max([mean, *_least_shifts(splits)])
    if shift <= SAME_WEIGHTS:
        return False, "small numeric differences: other kernels, attention or cache dtype"
    if shift <= SAME_ROUNDED and {first.dtype, other.dtype} != {"float32"}:
        return False, (
            f"rounding: {first.dtype} against {other.dtype}. Merge and serve in float32 if the "
            "answers have to be the same."
        )
    return False, (
        "other weights: another base or a quantised one, an adapter that is missing or stale, or "
        "a wrong scale"
    )


def _least_shifts(splits: list[Split]) -> list[float]:
    """Mean, if any, of what the other backend must have moved a log-probability by.

    To reverse a preference of g nats, one of the two tokens has to move by g / 2.
    """
    gaps = [split.gap for split in splits if split.gap is not None]
    return [fmean(gaps) / 2] if gaps else []


def _only_stopped_apart(split: Split, first: Side, other: Side) -> bool:
    """The answers part where a token ends one of them and not the other."""
    apart = first.stop_ids ^ other.stop_ids
    before = first.answers[split.row].token_ids[: split.token]
    return None in split.tokens and bool(before) and before[-1] in apart


def _template_cause(first: Side, other: Side, row: int) -> str:
    one, two = first.prompts[row], other.prompts[row]
    at = _common(list(map(ord, one)), list(map(ord, two)))
    return (
        f"other chat template: prompt {row} differs from character {at} on, "
        f"{one[at : at + 30]!r} against {two[at : at + 30]!r}. Save the tokenizer with the model."
    )
