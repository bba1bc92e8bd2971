"""Encoded preference rows of any loader -> pairs, or single answers with their labels.

Every record is {"prompt_ids", "answers": [two lists of ids], "length", "row"}: `Pairs` puts the
chosen answer before the rejected one, `Unpaired` the answer before one made for another prompt.
"""

import hashlib
import logging
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import torch

from main.errors import DataError
from main.loaders.shares import of_records
from main.trainer.loop.task import Row, Rows, shares_of

log = logging.getLogger(__name__)


class Pairs:
    """Each good answer of a prompt with each bad one, the chosen answer first.

    Pairs whose answers `max_length` made equal are left out, with a warning.

    digest: changes with any id of any record.
    """

    def __init__(self, rows: Rows):
        self._rows = rows
        self._entries: list[tuple[int, int, int]] = []  # (number in rows, good, bad)
        self.lengths: list[int] = []
        digest, equal = hashlib.sha256(b"pairs"), 0
        for number in range(len(rows)):
            answers = _answers(rows[number])
            for entry, chosen, rejected in answers.pairs(number):
                if chosen == rejected:
                    equal += 1
                    continue
                self._entries.append(entry)
                self.lengths.append(len(answers.prompt) + max(len(chosen), len(rejected)))
                _add(digest, answers.prompt, chosen, rejected)
        self.digest = digest.hexdigest()
        self.shares = of_records(shares_of(rows), [entry[0] for entry in self._entries])
        self._report(equal)

    def _report(self, equal: int) -> None:
        if not self._entries:
            raise DataError(
                f"none of the {equal} pairs has answers that differ within max_length; raise it."
            )
        if equal:
            log.warning("%d pairs are left out: max_length made their answers equal.", equal)

    def __len__(self) -> int:
        return len(self._entries)

    def __getitem__(self, index: int) -> dict[str, Any]:
        number, good, bad = self._entries[index]
        answers = _answers(self._rows[number])
        return {
            "prompt_ids": answers.prompt,
            "answers": [answers.good[good], answers.bad[bad]],
            "length": self.lengths[index],
            "row": answers.row,
        }


class Unpaired:
    """Every answer once, with its label, and an answer to another prompt for KTO's KL term.

    The mismatched answers are those of all records, moved on to another prompt, always the same:
    what the reference says of them is known beforehand, and a step's KL does not depend on how the
    step is cut. arXiv 2402.01306, section 4.1, pairs within a batch.

    Args:
        max_length: the mismatched answer is cut to what the prompt leaves of it.
    """

    def __init__(self, rows: Rows, max_length: int):
        self._rows, self._max_length = rows, max_length
        self._entries: list[tuple[int, bool, int]] = []  # (number in rows, label, answer)
        self.lengths: list[int] = []
        self._prompts: list[int] = []  # a hash each
        digest = hashlib.sha256(f"unpaired {max_length}".encode())
        seen = set()
        for number in range(len(rows)):
            answers = _answers(rows[number])
            for label, index, ids in answers.single():
                # LLM_DPO repeats an answer in every pair of its row.
                record = hash((answers.row, label, *ids))
                if record in seen:
                    continue
                seen.add(record)
                self._entries.append((number, label, index))
                self.lengths.append(len(answers.prompt) + len(ids))
                self._prompts.append(hash(tuple(answers.prompt)))
                _add(digest, answers.prompt, ids, [int(label)])
        self.digest = digest.hexdigest()
        if len(set(self._prompts)) < 2:
            raise DataError("KTO compares answers across prompts: give rows of 2 prompts or more.")
        self._shift = _longest_run(self._prompts)
        self.shares = of_records(shares_of(rows), [entry[0] for entry in self._entries])

    def __len__(self) -> int:
        return len(self._entries)

    def __getitem__(self, index: int) -> dict[str, Any]:
        answers, label, own = self._entry(index)
        other = self._entry(self._mismatch(index))[2]
        return {
            "prompt_ids": answers.prompt,
            "answers": [own, other[: max(1, self._max_length - len(answers.prompt))]],
            "label": label,
            "length": self.lengths[index],
            "row": answers.row,
        }

    def _entry(self, index: int) -> tuple["_Answers", bool, list[int]]:
        number, label, answer = self._entries[index]
        answers = _answers(self._rows[number])
        return answers, label, (answers.good if label else answers.bad)[answer]

    def _mismatch(self, index: int) -> int:
        """An entry of another prompt, so far on that good answers meet good ones."""
        other = (index + self._shift) % len(self)
        while self._prompts[other] == self._prompts[index]:
            other = (other + 1) % len(self)
        return other


class Referenced:
    """Records with the reference's log-probabilities of their answers as row["reference"]."""

    def __init__(self, rows: Rows, logprobs: torch.Tensor):
        self._rows, self._logprobs = rows, logprobs
        self.lengths, self.digest = rows.lengths, rows.digest
        self.shares = shares_of(rows)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Row:
        return {**self._rows[index], "reference": self._logprobs[index].tolist()}


class _Answers(NamedTuple):
    """A row of any preference loader."""

    prompt: list[int]
    good: list[list[int]]
    bad: list[list[int]]
    row: int

    def pairs(self, number: int) -> Iterator[tuple[tuple[int, int, int], list[int], list[int]]]:
        for i, chosen in enumerate(self.good):
            for j, rejected in enumerate(self.bad):
                yield (number, i, j), chosen, rejected

    def single(self) -> Iterator[tuple[bool, int, list[int]]]:
        for label, answers in ((True, self.good), (False, self.bad)):
            for index, ids in enumerate(answers):
                yield label, index, ids


def _answers(row: Mapping[str, Any]) -> _Answers:
    """LLM_DPO, LLM_RLHF and LLM_KTO rows in one form."""
    if "chosen_ids" in row:
        good, bad = [row["chosen_ids"]], [row["rejected_ids"]]
    elif "gold_ids" in row:
        good, bad = row["gold_ids"], row["bad_ids"]
    else:
        good = [row["answer_ids"]] if row["label"] else []
        bad = [] if row["label"] else [row["answer_ids"]]
    return _Answers(row["prompt_ids"], good, bad, row["row"])


def _add(digest: Any, *sequences: Sequence[int]) -> None:
    for ids in sequences:
        digest.update(len(ids).to_bytes(8, "little"))
        digest.update(np.asarray(ids, dtype=np.int64).tobytes())


def _longest_run(values: Sequence[int]) -> int:
    longest = run = 1
    for before, value in pairwise(values):
        run = run + 1 if value == before else 1
        longest = max(longest, run)
    return longest
