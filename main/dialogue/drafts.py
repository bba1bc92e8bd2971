"""What is trained of a dialogue: texts with the spans of trained turns, each behind the prompt
that inference gives it.

One rendering serves all turns whose prefix in it is that prompt. A turn of which that is not true
(its thoughts are removed once others follow) has a text of its own: the dialogue up to there, or,
where the template writes it nowhere, the prompt with the turn's text.
"""

from collections.abc import Iterable, Sequence
from typing import Literal, NamedTuple

from main.dialogue.accounts import Account, Accountant, Dialogue
from main.dialogue.marks import trimmed
from main.dialogue.messages import weight_of
from main.dialogue.normal import AROUND, CLOSE, OPEN
from main.dialogue.tokens import Spans
from main.dialogue.turns import Turn
from main.errors import DataError

# all: every turn, as the whole rendering has it. shared: the turns that it can serve.
# last: the last turn alone, behind its prompt.
Which = Literal["all", "shared", "last"]


class Draft(NamedTuple):
    """A text to encode.

    spans: of the trained turns. cuts: further places before which ids are those of a prompt.
    weights: what each span counts in the loss.
    dialogue, which: what it was made of.
    trimmed: whether the template took blanks off a trained turn.
    """

    text: str
    spans: Spans
    weights: Sequence[float]
    cuts: Sequence[int]
    dialogue: Dialogue
    which: Which
    trimmed: bool = False


def drafts_of(
    accountant: Accountant, dialogue: Dialogue, train_turns: Literal["all", "last"] = "all"
) -> list[Draft]:
    """The texts to train of a dialogue; turns of weight 0 are in none.

    Raises:
        DataError: a string that the template does not write, or a turn that it cannot.
    """
    if train_turns == "last":
        last = last_draft(accountant, dialogue)
        return [last] if all(last.weights) else []
    account = accountant.account(dialogue)
    _refuse(account, account.lost)
    wanted = _wanted(account)
    shared = [turn for turn in wanted if _serves(turn)]
    found = [_draft(account, shared, dialogue, "shared")] if shared else []
    alone = [turn.place for turn in wanted if not _serves(turn)]
    return found + [last_draft(accountant, dialogue.until(place + 1)) for place in alone]


def whole_draft(accountant: Accountant, dialogue: Dialogue, shared: bool = False) -> Draft:
    """The dialogue in one text: all its turns, or those that are behind their prompts in it.

    Raises:
        DataError: a string that the template does not write; thoughts may be left out.
    """
    account = accountant.account(dialogue)
    _refuse(account, account.lost)
    turns = [turn for turn in _wanted(account) if not shared or _serves(turn)]
    for turn in turns:
        _refuse(account, [n for n in turn.missing if account.texts[n].part != "thoughts"])
        _refuse_endless(account, turn)
    return _draft(account, turns, dialogue, "shared" if shared else "all")


def last_draft(accountant: Accountant, dialogue: Dialogue) -> Draft:
    """The last turn behind the prompt of inference.

    Raises:
        DataError: a string that the template does not write, or thoughts behind a prompt that
            closes them.
    """
    account = accountant.account(dialogue)
    _refuse(account, account.lost)
    turn = account.turns[-1]
    _refuse_endless(account, turn)
    if turn.asked and not turn.missing:
        return _draft(account, [turn], dialogue, "last")
    prompt = accountant.account(dialogue.until(turn.place), asks=True)
    lead = _lead(account, turn, prompt.text)
    begin = len(prompt.text)
    text = prompt.text + lead + account.text[turn.start : turn.end]
    spans = [(begin, len(text))]
    weights, trims = _weights(account, [turn]), _is_trimmed(account, [turn])
    return Draft(text, spans, weights, prompt.borders, dialogue, "last", trims)


def _wanted(account: Account) -> list[Turn]:
    return [turn for turn in account.turns if weight_of(account.messages[turn.place])]


def _weights(account: Account, turns: Sequence[Turn]) -> list[float]:
    return [weight_of(account.messages[turn.place]) for turn in turns]


def _serves(turn: Turn) -> bool:
    return turn.asked and turn.ended and not turn.missing


def _draft(account: Account, turns: list[Turn], dialogue: Dialogue, which: Which) -> Draft:
    spans = [(turn.start, turn.end) for turn in turns]
    weights, trims = _weights(account, turns), _is_trimmed(account, turns)
    return Draft(account.text, spans, weights, account.borders, dialogue, which, trims)


def _is_trimmed(account: Account, turns: list[Turn]) -> bool:
    places = {turn.place for turn in turns}
    return any(
        account.texts[piece.number].turn in places and trimmed(piece, account.texts)
        for piece in account.pieces
    )


def _lead(account: Account, turn: Turn, prompt: str) -> str:
    """What a model writes between its prompt and the turn as the template has it.

    The template writes the turn without what its prompt has opened: the thoughts, or their end.
    """
    thought = "".join(
        account.texts[n].value for n in turn.missing if account.texts[n].part == "thoughts"
    )
    _refuse(account, [n for n in turn.missing if account.texts[n].part != "thoughts"])
    opened = turn.open.rstrip()
    if opened.endswith(OPEN) and prompt.endswith(turn.open):
        line = "" if turn.open.endswith("\n") else "\n"
        return line + thought.strip("\n") + AROUND[1]
    written = account.messages[turn.place].get("reasoning_content") and not turn.missing
    if written and CLOSE in opened:
        raise DataError(
            f"turn {turn.place + 1} has thoughts, and the prompt of this template closes them "
            f"({turn.open!r}). Leave thinking on (enable_thinking), or the thoughts out."
        )
    _refuse(account, turn.missing)
    if turn.open and not prompt.endswith(turn.open):
        raise DataError(
            f"turn {turn.place + 1}: the template asks for it in another way than it writes it."
        )
    return ""


def _refuse(account: Account, numbers: Iterable[int]) -> None:
    problem = account.problem(list(numbers))
    if problem:
        raise DataError(problem)


def _refuse_endless(account: Account, turn: Turn) -> None:
    if account.messages[turn.place].get("tool_calls") and not turn.ended:
        raise DataError(
            f"turn {turn.place + 1}: this template does not end a tool call, so the tool's result "
            "would be trained with it."
        )
