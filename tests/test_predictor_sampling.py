"""The choice of the next token, worked out by hand."""

import math

import pytest
import torch

from main.errors import ConfigError
from main.options import parse
from main.predictor.sampling import GenerationOptions, choose, filter_logits, penalize_repetition

PROBABILITIES = [0.5, 0.3, 0.15, 0.05]
LOGITS = torch.tensor([PROBABILITIES]).log()


def kept(**options) -> list[int]:
    filtered = filter_logits(LOGITS, GenerationOptions(temperature=1.0, **options))
    return filtered.isfinite()[0].nonzero().flatten().tolist()


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, [0, 1, 2, 3]),
        ({"top_k": 2}, [0, 1]),
        ({"top_k": 0}, [0, 1, 2, 3]),
        ({"top_k": -1}, [0, 1, 2, 3]),
        ({"top_k": 99}, [0, 1, 2, 3]),
        ({"top_p": 0.4}, [0]),  # 0.5 alone reaches it
        ({"top_p": 0.7}, [0, 1]),  # 0.5 + 0.3 reaches it
        ({"top_p": 0.9}, [0, 1, 2]),
        ({"top_p": 0.0}, [0]),  # the likeliest always stays
        ({"min_p": 0.4}, [0, 1]),  # 0.4 x 0.5 = 0.2: 0.15 is below
        ({"top_k": 3, "top_p": 0.6}, [0, 1]),  # 0.5 / 0.95 = 0.526 < 0.6
        ({"top_k": 3, "top_p": 0.52}, [0]),  # 0.526 reaches it; of all four 0.5 would not
    ],
)
def test_filters_keep_the_likeliest_tokens(options, expected):
    assert kept(**options) == expected


def test_a_repeated_token_is_made_less_likely_whatever_its_sign():
    logits = torch.tensor([[2.0, -2.0, 2.0, -2.0]])
    seen = torch.tensor([[True, True, False, False]])
    # 2 / 4 = 0.5 and -2 x 4 = -8; tokens not seen stay
    assert penalize_repetition(logits, seen, 4.0).tolist() == [[0.5, -8.0, 2.0, -2.0]]


def test_sampling_follows_the_distribution():
    options = GenerationOptions(temperature=0.5)
    generator = torch.Generator().manual_seed(0)
    count = 4000
    tokens = choose(LOGITS.expand(count, -1), options, [generator] * count)
    squares = [p * p for p in PROBABILITIES]  # temperature 0.5 squares the probabilities
    expected = [square / sum(squares) for square in squares]
    shares = tokens.bincount(minlength=4) / count
    for share, p in zip(shares.tolist(), expected, strict=True):
        assert abs(share - p) < 4 * math.sqrt(p * (1 - p) / count)


def test_a_row_draws_from_its_own_generator_only():
    options = GenerationOptions(temperature=1.0)

    def seeded(n):
        return torch.Generator().manual_seed(n)

    together = choose(LOGITS.expand(3, -1), options, [seeded(1), seeded(2), seeded(3)]).tolist()
    alone = [choose(LOGITS, options, [seeded(n)]).item() for n in (1, 2, 3)]
    assert together == alone


def test_a_token_of_probability_zero_is_never_drawn():
    logits = torch.tensor([[-torch.inf, 0.0, -torch.inf]]).expand(500, -1)
    generator = torch.Generator().manual_seed(0)
    tokens = choose(logits, GenerationOptions(temperature=1.0), [generator] * 500)
    assert set(tokens.tolist()) == {1}


@pytest.mark.parametrize(
    ("options", "samples"),
    [
        ({}, False),
        ({"temperature": 0}, False),
        ({"temperature": 0, "do_sample": True}, False),
        ({"temperature": 0.7}, True),
        ({"temperature": 0.7, "do_sample": False}, False),
        ({"do_sample": True}, True),
    ],
)
def test_greedy_unless_a_temperature_or_do_sample_asks_for_more(options, samples):
    assert GenerationOptions(**options).samples is samples


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens=0 must be >= 1"),
        ({"temperature": -1}, "temperature=-1 must be >= 0"),
        ({"temperature": 1.0, "top_p": 1.5}, r"top_p=1\.5 must be between 0 and 1"),
        ({"temperature": 1.0, "top_k": -2}, "top_k=-2 must be >= 1"),
        ({"repetition_penalty": 0}, "repetition_penalty=0 must be > 0"),
        ({"stop": ""}, "stop='' must be text that is not empty"),
        ({"top_p": 0.9}, r"top_p=0\.9 changes nothing in greedy decoding"),
        ({"num_return_sequences": 2}, "2 equal answers would come of greedy decoding"),
        ({"max_new_tokens": "9"}, "max_new_tokens='9' must be an integer, not str"),
    ],
)
def test_values_that_cannot_work_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        parse(GenerationOptions, options, "call")
