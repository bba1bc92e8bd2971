"""Encoded evaluation rows -> what the policy is asked, and with what its answer is compared.

The prompt's ids are those of the row as training has it, which are the ones of inference: of a
dialogue all up to its last trained turn, of the other formats the prompt. References are

    chat and context/target rows    the last trained turn
    preference rows                 every gold (chosen) answer
    single answers with a label     the answer, where it is labelled as good
    rows with `answer`              the answer or answers: texts or numbers
"""

import json
import logging
import random
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Real
from typing import Any, NamedTuple

from main.errors import DataError
from main.trainer.loop.task import Row, Rows
from main.trainer.rewards.scoreable import columns_of
from main.vision import media

log = logging.getLogger(__name__)


@dataclass
class Asked:
    """A row that the policy answers.

    place: of its first record among the encoded rows; row: its number in the source.
    prompt_ids: what the model continues, ids.
    visuals: the pictures whose tokens stand in it.
    references: texts; empty where the row gives none.
    prompt: messages or text, where the encoded row has it.
    plain: the prompt is a text that no chat template has framed.
    columns: the row's further fields, for functions.
    """

    place: int
    row: int
    prompt_ids: list[int]
    references: list[str]
    visuals: Sequence[Any] = ()
    prompt: str | list[Any] | None = None
    plain: bool = False
    columns: Mapping[str, Any] = field(default_factory=dict)


class Reader(NamedTuple):
    """How records of a row become what is asked.

    text: ids of an answer -> what a predictor shows of it.
    stop_ids: tokens that end an answer.
    limit: most tokens of a row; a longer one had its answer cut.
    vision: how pictures become tokens; None for models of text.
    """

    text: Callable[[Sequence[int]], str]
    stop_ids: frozenset[int]
    limit: int
    vision: Any = None

    def read(self, place: int, records: Sequence[Row]) -> Asked | None:
        """What the row asks; None where it has no whole answer, or nothing stands before it."""
        first = records[0]
        if "loss_mask" in first:
            asked = self._dialogue(place, records)
        elif "columns" in first:
            asked = _with_columns(place, first)
        else:
            asked = self._answers(place, records)
        return asked if asked and asked.prompt_ids else None

    def _dialogue(self, place: int, records: Sequence[Row]) -> Asked | None:
        """The last trained turn, of the record that goes furthest."""
        row, begin, end = max(
            ((r, *_last_run(r["loss_mask"])) for r in records), key=lambda r: r[1]
        )
        ids = list(row["input_ids"])
        if end == len(ids) and self._is_cut(len(ids), ids[-1]):
            return None
        prompt, answer = ids[:begin], self.text(ids[begin:end])
        visuals = media.load(row.get("images") or "") if self.vision else ()
        shown = _within(prompt, visuals, self.vision)
        return Asked(place, row["row"], prompt, [answer], shown, columns={"answer": answer})

    def _answers(self, place: int, records: Sequence[Row]) -> Asked | None:
        """The good ones of a row's answers."""
        first = records[0]
        name = "chosen_ids" if "chosen_ids" in first else "answer_ids"
        prompt = list(first["prompt_ids"])
        good = dict.fromkeys(tuple(r[name]) for r in records if r.get("label", True))
        texts = [self.text(a) for a in good if not self._is_cut(len(prompt) + len(a), a[-1])]
        columns = {"answer": texts if len(texts) > 1 else texts[0] if texts else None}
        return Asked(place, first["row"], prompt, texts, columns=columns) if texts else None

    def _is_cut(self, length: int, last: int) -> bool:
        return length >= self.limit and last not in self.stop_ids


def choose(data: Rows, count: int, seed: int, reader: Reader) -> list[Asked]:
    """At most `count` rows in an order that the seed alone determines; then as they lie.

    More rows with the same seed are the same and further ones.

    Raises:
        DataError: no row can be asked.
    """
    order = list(range(len(data)))
    random.Random(f"{seed}-generated").shuffle(order)
    found: dict[int, Asked | None] = {}
    passed = 0
    for number in order:
        if len(found) - passed == count:
            break
        place, records = _all_of(data, number)
        if place not in found:
            found[place] = reader.read(place, records)
            passed += found[place] is None
    asked = sorted((a for a in found.values() if a), key=lambda a: a.place)
    if not asked:
        raise DataError(
            "eval_generate: no evaluation row can be asked: each has no answer, or one that "
            "max_length cut, or no prompt before it. Raise max_length, or leave eval_generate out."
        )
    if passed:
        log.info(
            "eval_generate passes over %d evaluation rows without a whole answer, or without a "
            "prompt before it.",
            passed,
        )
    return asked


def reference_problems(asked: Sequence[Asked], names: Sequence[str]) -> list[str]:
    """A sentence on rows that give nothing to compare an answer with."""
    without = [a.row for a in asked if not a.references]
    if not (names and without):
        return []
    return [
        f"eval_metrics={list(names)} compare answers with references, and evaluation rows "
        f"{without[:20]} ({len(without)} of {len(asked)}) have no 'answer' that is a text, a "
        "number or a list of these. Give them one, or judge answers by functions alone."
    ]


def _with_columns(place: int, row: Row) -> Asked:
    """A row whose prompt and columns are kept: of GRPO and PPO."""
    columns = columns_of(row)
    prompt = json.loads(row["prompt"])
    texts = row["gold"] if "gold" in row else _texts(columns.get("answer"))
    ids, plain = list(row["prompt_ids"]), isinstance(prompt, str)
    return Asked(place, row["row"], ids, texts, (), prompt, plain, columns)


def _texts(answer: Any) -> list[str]:
    """An answer or several; [] where one of them is neither a text nor a number."""
    listed = answer if isinstance(answer, list) else [answer]
    sound = all(isinstance(a, str | Real) and not isinstance(a, bool) for a in listed)
    return [str(a) for a in listed] if sound else []


def _all_of(data: Rows, number: int) -> tuple[int, list[Row]]:
    """Place and records of the row of which record `number` is one; they lie side by side."""
    record = data[number]
    before = list(_while(data, record["row"], range(number - 1, -1, -1)))
    after = _while(data, record["row"], range(number + 1, len(data)))
    return number - len(before), [*reversed(before), record, *after]


def _while(data: Rows, row: int, places: range) -> Iterator[Row]:
    for place in places:
        record = data[place]
        if record["row"] != row:
            return
        yield record


def _last_run(mask: Sequence[bool]) -> tuple[int, int]:
    """Where the last run of True begins and ends."""
    end = max(i for i, kept in enumerate(mask) if kept) + 1
    begin = next((i for i in range(end - 1, -1, -1) if not mask[i]), -1) + 1
    return begin, end


def _within(ids: Sequence[int], visuals: Sequence[Any], vision: Any) -> list[Any]:
    """The visuals whose tokens stand in `ids`."""
    left, found = Counter(ids), []
    for visual in visuals:
        token, needed = vision.token_id(visual), sum(vision.runs(visual))
        if left[token] >= needed:
            left[token] -= needed
            found.append(visual)
    return found
