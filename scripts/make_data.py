"""Make the small data sets of `data/`: a customer's message to a shop -> one canonical ticket line.

    python scripts/make_data.py             # write data/*.json(l) and data/present.json
    python scripts/make_data.py --check     # exit 1 if a file there differs from what it would be

"Hi, the green kettle from order 4821 arrived broken, please send me a new one. Friday at the
latest, please." becomes "replace | green kettle | order 4821 | by Friday". Some conversations go
on: the customer corrects the order number, the deadline or the wish, and the line is written again.

The words come from `data/phrases/<language>.json`; a seed decides how they are put together. The
items (a colour and a thing) are divided among train, dev and test before anything is written, so no
item of one is ever seen in another, in any of the row formats.
"""

import argparse
import json
import random
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

DATA = Path(__file__).resolve().parent.parent / "data"
LANGUAGES = ("en", "zh")
SEED = 2026
SHARES = {"train": 0.8, "dev": 0.1, "test": 0.1}  # of the items

Phrases = Mapping[str, Any]
Row = dict[str, Any]
T = TypeVar("T")


class Ticket(NamedTuple):
    """What a conversation asks for so far; `deadline` in its canonical words."""

    action: str
    colour: str
    thing: str
    order: str
    deadline: str


class Dialogue(NamedTuple):
    """Alternating texts of the customer and the desk, ending with the desk's ticket line.

    texts: (user, assistant)+ without the instruction.
    ticket: what the last line says.
    """

    texts: list[str]
    ticket: Ticket


class Writer:
    """Puts phrases of one language together; equal seeds give equal dialogues on every Python."""

    def __init__(self, phrases: Phrases, items: Sequence[tuple[str, str]], seed: str):
        self.phrases = phrases
        self.items = items
        self.random = random.Random(seed).random

    def pick(self, choices: Sequence[T]) -> T:
        """One of `choices`; built on random(), the one method whose stream Python guarantees."""
        return choices[int(self.random() * len(choices))]

    def order(self) -> str:
        return str(1000 + int(self.random() * 9000))

    def line(self, ticket: Ticket) -> str:
        return self.phrases["line"].format(item=self.item(ticket), **ticket._asdict())

    def item(self, ticket: Ticket) -> str:
        return self.phrases["item"].format(colour=ticket.colour, thing=ticket.thing)

    def dialogue(self, turns: int) -> Dialogue:
        """A conversation of `turns` customer messages."""
        message, ticket = self.opening()
        texts = [message, self.line(ticket)]
        for _ in range(turns - 1):
            message, ticket = self.correction(ticket)
            texts += [message, self.line(ticket)]
        return Dialogue(texts, ticket)

    def opening(self) -> tuple[str, Ticket]:
        """The customer's first message and the ticket that it asks for."""
        phrases = self.phrases
        action = self.pick(list(phrases["actions"]))
        colour, thing = self.pick(self.items)
        deadline, wish = self.deadline()
        ticket = Ticket(action, colour, thing, self.order(), deadline)
        body = self.body(ticket)
        text = self.pick(phrases["greetings"]) + body + wish + self.pick(phrases["closings"])
        return text[0].upper() + text[1:], ticket

    def body(self, ticket: Ticket) -> str:
        """The request, with the order number before, inside or after it."""
        where = self.pick(["order_before", "order_inline", "order_after"])
        said = self.pick(self.phrases["actions"][ticket.action])
        order = self.pick(self.phrases[where])
        item = self.item(ticket)
        if where == "order_inline":
            return said.format(item=order.format(item=item, order=ticket.order))
        order = order.format(order=ticket.order)
        body = said.format(item=item)
        return order + body if where == "order_before" else body + order

    def deadline(self) -> tuple[str, str]:
        """(canonical words, what the customer says)."""
        kind = self.pick(self.phrases["deadlines"])
        day = self.pick(self.phrases["days"])
        return kind["is"].format(day=day), self.pick(kind["said"]).format(day=day)

    def correction(self, old: Ticket) -> tuple[str, Ticket]:
        """A later message that changes one field of the ticket, and the ticket after it."""
        corrections = self.phrases["corrections"]
        kind = self.pick([name for name in corrections if name != old.action])
        order, day = self.other(self.order, old.order), self.pick(self.phrases["days"])
        text = self.pick(corrections[kind]).format(order=order, old=old.order, day=day)
        if kind == "order":
            return text, old._replace(order=order)
        if kind == "deadline":
            by_day = self.phrases["deadlines"][0]["is"]
            return text, old._replace(deadline=by_day.format(day=day))
        return text, old._replace(action=kind)

    def other(self, draw: Callable[[], T], than: T) -> T:
        """The first draw that differs from `than`."""
        while (drawn := draw()) == than:
            pass
        return drawn

    def mistakes(self, ticket: Ticket) -> list[str]:
        """Plausible wrong answers, a different kind each, in random order."""
        phrases = self.phrases
        action = self.other(lambda: self.pick(list(phrases["actions"])), ticket.action)
        position = int(self.random() * 4)
        digit = self.other(lambda: self.pick("0123456789"), ticket.order[position])
        order = ticket.order[:position] + digit + ticket.order[position + 1 :]
        deadline = self.other(lambda: self.deadline()[0], ticket.deadline)
        chatter = self.pick(phrases["chatter"])
        wrong = [
            self.line(ticket._replace(action=action)),
            self.line(ticket._replace(order=order)),
            self.line(ticket._replace(deadline=deadline)),
            self.line(ticket).rsplit(" | ", 1)[0],
            chatter.format(item=self.item(ticket), order=ticket.order),
        ]
        return sorted(wrong, key=lambda _: self.random())


def messages(dialogue: Dialogue, instruction: str) -> list[dict[str, str]]:
    """The dialogue as chat messages; the instruction opens the first one."""
    texts = [f"{instruction}\n\n{dialogue.texts[0]}", *dialogue.texts[1:]]
    return [
        {"role": ("user", "assistant")[index % 2], "content": text}
        for index, text in enumerate(texts)
    ]


def turns(writer: Writer) -> int:
    """One customer message in most dialogues, two in some, three in a few."""
    return writer.pick([1] * 14 + [2] * 5 + [3])


def chat_row(writer: Writer) -> Row:
    """LLM_Chat, ChatGLM_Chat."""
    dialogue = writer.dialogue(turns(writer))
    return {"conversations": messages(dialogue, writer.phrases["instruction"])}


def pure_row(writer: Writer) -> Row:
    """ChatGLM_LoRA, LLM_Pure."""
    message, target = writer.dialogue(1).texts
    template, instruction = writer.phrases["pure"], writer.phrases["instruction"]
    return {
        "context": template.format(instruction=instruction, message=message),
        "target": target,
    }


def dpo_row(writer: Writer) -> Row:
    """LLM_DPO: one good and one bad answer, both strings."""
    row = rlhf_row(writer)
    return {
        **row,
        "gold_answers": row["gold_answers"][0],
        "bad_answers": row["bad_answers"][0],
    }


def rlhf_row(writer: Writer) -> Row:
    """LLM_RLHF: lists of good and bad answers."""
    dialogue = writer.dialogue(turns(writer))
    *conversation, answer = messages(dialogue, writer.phrases["instruction"])
    return {
        "conversations": conversation,
        "gold_answers": [answer["content"]],
        "bad_answers": writer.mistakes(dialogue.ticket)[:3],
    }


def grpo_row(writer: Writer) -> Row:
    """GRPO: a prompt and the answer that a reward function compares with."""
    dialogue = writer.dialogue(turns(writer))
    *prompt, answer = messages(dialogue, writer.phrases["instruction"])
    return {"prompt": prompt, "answer": answer["content"]}


class Format(NamedTuple):
    """How one row format is written: name suffix, row maker, file ending, rows a split."""

    suffix: str
    row: Callable[[Writer], Row]
    ending: str
    rows: Mapping[str, int]


FORMATS = (
    Format("", chat_row, "jsonl", {"train": 600, "dev": 60, "test": 60}),
    Format("_pure", pure_row, "json", {"train": 300, "dev": 50, "test": 50}),
    Format("_dpo", dpo_row, "jsonl", {"train": 300, "dev": 50, "test": 50}),
    Format("_rlhf", rlhf_row, "jsonl", {"train": 300, "dev": 50, "test": 50}),
    Format("_grpo", grpo_row, "jsonl", {"train": 300, "dev": 50, "test": 50}),
)


def divide(phrases: Phrases, seed: str) -> dict[str, list[tuple[str, str]]]:
    """Split name -> its items, every item in exactly one split."""
    draw = random.Random(seed).random
    items = [(colour, thing) for colour in phrases["colours"] for thing in phrases["things"]]
    items.sort(key=lambda _: draw())
    divided, start = {}, 0
    for split, share in SHARES.items():
        end = start + round(share * len(items))
        divided[split] = items[start:end]
        start = end
    return divided


def rows(make: Callable[[Writer], Row], writer: Writer, count: int) -> list[Row]:
    """`count` rows, all different."""
    found: dict[str, Row] = {}
    while len(found) < count:
        row = make(writer)
        found.setdefault(json.dumps(row, ensure_ascii=False), row)
    return list(found.values())


def encode(table: list[Row], ending: str) -> str:
    """JSON Lines, or a JSON array with a row a line."""
    lines = [json.dumps(row, ensure_ascii=False) for row in table]
    return "[\n" + ",\n".join(lines) + "\n]\n" if ending == "json" else "\n".join(lines) + "\n"


def files() -> Iterator[tuple[str, str]]:
    """(name, text) of everything that this script writes into `data/`."""
    present: dict[str, dict[str, str]] = {}
    for language in LANGUAGES:
        phrases = json.loads((DATA / "phrases" / f"{language}.json").read_text("utf-8"))
        items = divide(phrases, f"{SEED} {language}")
        for form in FORMATS:
            name = f"ticket_{language}{form.suffix}"
            for split, count in form.rows.items():
                writer = Writer(phrases, items[split], f"{SEED} {name} {split}")
                file = f"{name}_{split}.{form.ending}"
                present.setdefault(name, {})[split] = f"./{file}"
                yield file, encode(rows(form.row, writer, count), form.ending)
    yield "present.json", json.dumps(present, indent=2) + "\n"


def stale(folder: Path) -> list[str]:
    """Names of files that are missing from `folder` or differ from what would be written."""
    return [
        name
        for name, text in files()
        if not (folder / name).is_file() or (folder / name).read_bytes() != text.encode()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--check", action="store_true", help="compare only, write nothing")
    parser.add_argument("--data", type=Path, default=DATA, help="target folder")
    arguments = parser.parse_args()
    if arguments.check:
        differing = stale(arguments.data)
        if differing:
            sys.exit(f"differs from scripts/make_data.py: {', '.join(differing)}")
        return
    arguments.data.mkdir(parents=True, exist_ok=True)
    for name, text in files():
        (arguments.data / name).write_bytes(text.encode())


if __name__ == "__main__":
    main()
