"""The policy answers evaluation rows: before it is trained, and at each evaluation.

Rows are shared out over the copies of the model; the answers are judged once, on the main process,
so that scores of a corpus are the same however many processes there are.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import groupby
from typing import Any

from main.dialogue.ends import stop_token_ids
from main.dialogue.plain import PlainText
from main.dialogue.prompts import answer_lead
from main.errors import MainError, RewardError
from main.models import context_length
from main.predictor.decoding import Decoding, batches
from main.predictor.sampling import GenerationOptions
from main.predictor.text import Answer
from main.system.processes import decide, gather_shares, this_copy, together
from main.trainer.generated.asked import Asked, Reader, choose
from main.trainer.generated.options import GeneratedOptions
from main.trainer.generated.scores import Judged, Judges, Written, metrics_of
from main.trainer.loop.task import Answered, Run
from main.trainer.rewards.notes import TrainerState, noted_columns
from main.trainer.rollout.sampler import grow

log = logging.getLogger(__name__)

_BATCH_TOKENS = 65_536  # most tokens of a batch, prompts and answers together
_SHOWN = 2_000  # characters of a prompt, its last, in the table
_GREEDY = GenerationOptions(temperature=0)


class Generated:
    """Answers of a trainer's policy, and what they were before its first step.

    Args:
        trainer: what was loaded.
        options: of the call.
        batch_size: most answers that grow at once in a process.

    Raises:
        ConfigError, DataError: rows that cannot be asked, or judged as they are to be.
    """

    def __init__(self, trainer: Any, options: GeneratedOptions, batch_size: int):
        self.policy, self.tokenizer, self.vision = trainer.policy, trainer.tokenizer, trainer.vision
        self.limit, self.batch_size = options.eval_max_new_tokens, batch_size
        self.stop_ids = frozenset(stop_token_ids(trainer.causal_lm, self.tokenizer))
        self.context = context_length(trainer.causal_lm.config)
        self.lead = "" if isinstance(trainer.template, PlainText) else answer_lead(self.tokenizer)
        longest = min(trainer.setup.max_length, self.context or trainer.setup.max_length)
        reader = Reader(partial(self._text, self.lead), self.stop_ids, longest, self.vision)
        seed, count = trainer.setup.seed, options.eval_generate
        self.asked = choose(trainer.eval_data, count, seed, reader)
        for asked in self.asked:
            asked.prompt = self._read(asked) if asked.prompt is None else asked.prompt
        self.judges = Judges(options, self.asked)
        self.before: dict[int, str] = {}  # place -> the answer before the first step

    def answered(self, run: Run) -> Answered:
        """Answers by the policy as it is, with their scores. All processes must call it."""
        written = self._written(run)
        if run.step == 0:
            self.before = {a.place: w.text for a, w in zip(self.asked, written, strict=True)}
        table: list[dict[str, Any]] = []

        def judge() -> dict[str, float]:
            judged = self.judges.judge(written, TrainerState(run.step, run.total_steps))
            table.extend(self._table(written, judged))
            return metrics_of(judged)

        return Answered(_by_one(judge), table)

    # -- prompts -> answers

    def _written(self, run: Run) -> list[Written]:
        """An answer to every row, those of all copies of the model."""
        rank, world = this_copy()
        longest_first = sorted(range(len(self.asked)), key=lambda i: -len(self.asked[i].prompt_ids))
        mine = longest_first[rank::world]
        with run.at_hand():
            drawn = together(lambda: self._drawn([self.asked[i] for i in mine]))
        shares = gather_shares(list(zip(mine, drawn, strict=True)))
        found: dict[int, Written] = {}
        for share in shares:
            found |= share
        return [found[i] for i in range(len(self.asked))]

    def _drawn(self, asked: Sequence[Asked]) -> list[Written]:
        rows = [self._row(i, one) for i, one in enumerate(asked)]
        pad_id = self.tokenizer.pad_token_id or 0
        for batch in batches(rows, self.batch_size, _BATCH_TOKENS):
            grow(self.policy, batch, _GREEDY, self.stop_ids, pad_id, vision=self.vision)
        return [self._answer(one, row) for one, row in zip(asked, rows, strict=True)]

    def _row(self, index: int, asked: Asked) -> Decoding:
        room = self.limit if self.context is None else self.context - len(asked.prompt_ids)
        row = Decoding(index, asked.prompt_ids, min(self.limit, room))
        row.visuals = asked.visuals
        return row

    def _answer(self, asked: Asked, row: Decoding) -> Written:
        text = self._text("" if asked.plain else self.lead, row.completion_ids)
        end = [] if row.stop_id is None else [row.stop_id]
        return Written(text, [*row.completion_ids, *end], bool(end))

    def _text(self, lead: str, ids: Sequence[int]) -> str:
        """What a predictor shows of these ids."""
        kept = list(ids)
        while kept and kept[-1] in self.stop_ids:
            kept.pop()
        answer = Answer(self.tokenizer, [], lead)
        answer.update(kept, finished=True)
        return answer.text

    # -- records and checkpoints

    def _table(self, written: Sequence[Written], judged: Judged) -> list[dict[str, Any]]:
        titles, noted = noted_columns([judged.notes.of(i) for i in range(len(written))])
        scores = {name: scored.rows for name, scored in judged.scores.items() if scored.rows}
        return [
            {
                "row": asked.row,
                "prompt": self._read(asked)[-_SHOWN:],
                "reference": " | ".join(asked.references),
                "before": self.before.get(asked.place, ""),
                "after": answer.text,
                **{name: rows[i] for name, rows in scores.items()},
                **{f"logged/{t}": cell for t, cell in zip(titles, noted[i], strict=True)},
            }
            for i, (asked, answer) in enumerate(zip(self.asked, written, strict=True))
        ]

    def _read(self, asked: Asked) -> str:
        """The prompt as the model reads it; of a picture's tokens one."""
        ids = asked.prompt_ids
        if asked.visuals:
            ids = [token for token, _ in groupby(ids)]
        return str(self.tokenizer.decode(ids, clean_up_tokenization_spaces=False))

    def state(self) -> dict[str, str]:
        return {str(place): text for place, text in self.before.items()}

    def load_state(self, state: Mapping[str, str]) -> None:
        self.before = {int(place): text for place, text in state.items()}
        unknown = [asked.row for asked in self.asked if asked.place not in self.before]
        if unknown:
            log.warning(
                "eval_generate: of %d of %d rows nobody knows the answer before training; this run "
                "began without them.",
                *(len(unknown), len(self.asked)),
            )


def _by_one(judge: Callable[[], dict[str, float]]) -> dict[str, float]:
    """What the main process finds; a function that fails there ends all, for one reason."""
    try:
        return decide(judge)
    except RewardError:
        raise
    except MainError as error:  # what is told of another process
        raise RewardError(str(error)) from error
