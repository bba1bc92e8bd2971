"""What functions that judge are called with: completions, and the columns of their rows."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from main.errors import RewardError
from main.trainer.loop.task import Row
from main.trainer.online.sample import Sample

# Names that no column may have.
OURS = ("prompts", "completions", "completion_ids", "trainer_state", "log_metric", "log_extra")


@dataclass
class Scoreable:
    """Completions to score, one entry each in every list.

    prompts: strings or lists of messages; completions likewise.
    completion_ids: their tokens, special ones among them.
    columns: the rows' other fields.
    rows: source row numbers, for messages.
    names: columns of the whole data set; a row that lacks one has None there.
    judge: what is called with these, in messages.
    """

    prompts: list[Any]
    completions: list[Any]
    completion_ids: list[list[int]]
    columns: list[Mapping[str, Any]]
    rows: list[int]
    names: Sequence[str] = ()
    judge: str = "reward function"

    def arguments(self) -> dict[str, list[Any]]:
        """The data that functions are called with; a field that a row lacks is None there."""
        found = (name for columns in self.columns for name in columns)
        names = dict.fromkeys((*self.names, *found))
        if taken := [name for name in names if name in OURS]:
            raise RewardError(
                f"row {self.rows[0]}: the fields {taken} have names that a {self.judge} needs for "
                "something else. Rename them in the data."
            )
        listed = {name: [columns.get(name) for columns in self.columns] for name in names}
        return {
            "prompts": self.prompts,
            "completions": self.completions,
            "completion_ids": self.completion_ids,
            **listed,
        }


def scoreable(samples: Sequence[Sample], names: Sequence[str] = ()) -> Scoreable:
    """What reward functions are given of samples of a data set with the columns `names`."""
    prompts = [json.loads(sample.row["prompt"]) for sample in samples]
    return Scoreable(
        prompts,
        [_completion(prompt, sample) for prompt, sample in zip(prompts, samples, strict=True)],
        [list(sample.ids) for sample in samples],
        [columns_of(sample.row) for sample in samples],
        [sample.row["row"] for sample in samples],
        names,
    )


def _completion(prompt: str | list, sample: Sample) -> str | list[Any]:
    """All messages of an episode of several turns; of one turn its text."""
    if len(sample.messages) > 1:
        return [dict(message) for message in sample.messages]
    return as_completion(prompt, sample.text)


def column_names(rows: Iterable[Row]) -> list[str]:
    """Every column that one of the rows has, under the names of `columns_of`."""
    return list(dict.fromkeys(name for row in rows for name in columns_of(row)))


def columns_of(row: Row) -> Mapping[str, Any]:
    """A row's columns by the names under which reward functions ask for them.

    Rows with gold and bad answers have both as `gold_answers` and `bad_answers`; `answer`, which
    the functions of main/utils/reward_func.py read, is the gold ones unless there is such a field.
    """
    columns = json.loads(row["columns"])
    if "gold" not in row:
        return columns
    answers = {"gold_answers": row["gold"], "bad_answers": row["bad"]}
    return {"answer": row["gold"], **columns, **answers}


def completion_texts(tokenizer: Any, completion_ids: Sequence[Sequence[int]]) -> list[str]:
    """Text of completions without special tokens: what a reader of the answer would see."""
    return [tokenizer.decode(list(ids), skip_special_tokens=True) for ids in completion_ids]


def as_completion(prompt: str | list, text: str) -> str | list[dict[str, str]]:
    """The completion in the form of its prompt: a string, or a list of one message."""
    return text if isinstance(prompt, str) else [{"role": "assistant", "content": text}]
