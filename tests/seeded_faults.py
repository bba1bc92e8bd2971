"""Forty faults of rows, one at a time in otherwise clean data; docs/check.md lists them."""

import copy
import json
from collections.abc import Callable
from typing import Any, NamedTuple

Data = dict[str, list[Any]]

THINGS = [
    *("lamp", "ticket", "garden", "engine", "violin", "harbour", "letter", "bridge", "mirror"),
    *("basket", "river", "castle", "pencil", "window", "forest", "candle", "market", "island"),
    *("ladder", "button", "rocket", "pillow", "desert", "orchid"),
]
FACTS = [
    "It stands on four legs and gives light in the evening.",
    "You show it at the gate before the train leaves.",
    "Roses and beans grow there between old stone walls.",
    "Steam drives it, and coal makes the steam.",
    "Four strings, a bow, and years of practice.",
    "Ships lie in it when the sea is rough.",
    "Somebody wrote it by hand and folded it twice.",
    "Cars cross the water on it day and night.",
    "Whoever looks into it sees a familiar face.",
    "Woven from willow, it carries apples home.",
    "From the mountains down to the sea it runs.",
    "Kings lived in it behind thick walls.",
    "Children draw with it until it is short.",
    "Open it when the room is too warm.",
    "Owls and foxes sleep under its trees.",
    "Wax and a wick, and nothing more.",
    "Farmers sell cheese there on Saturdays.",
    "There is water on every side of it.",
    "Painters climb it to reach the ceiling.",
    "Sewn to a coat, it keeps out the wind.",
    "Three stages burn, one after the other.",
    "Feathers fill it, and heads rest on it.",
    "It hardly ever rains between these dunes.",
    "A flower that wants shade and patience.",
]


def dialogue(question: str, answer: str) -> dict[str, Any]:
    turns = [("user", question), ("assistant", answer)]
    return {"conversations": [{"role": role, "content": text} for role, text in turns]}


def chats() -> Data:
    """Clean rows: 24 to train on, 4 to evaluate."""
    rows = [
        dialogue(f"Describe a {thing} in one sentence, please.", fact)
        for thing, fact in zip(THINGS, FACTS, strict=True)
    ]
    dev = [
        dialogue(f"How would you clean {place}?", answer)
        for place, answer in [
            ("an old carpet", "Beat it outside, then brush it with dry foam."),
            ("a coffee pot", "Boil vinegar in it and rinse twice."),
            ("leather shoes", "Use a soft cloth and a little wax."),
            ("paint brushes", "Turpentine first, warm soap afterwards."),
        ]
    ]
    return {"train": rows, "dev": dev}


def pairs() -> Data:
    """Clean preferences; chosen answers are as often shorter as longer."""
    rows = []
    for i, (thing, fact) in enumerate(zip(THINGS, FACTS, strict=True)):
        other = FACTS[i - 1] if i % 2 else "Nobody knows."
        rows.append({
            "conversations": dialogue(f"Describe a {thing} in one sentence, please.", "")[
                "conversations"
            ][:1],
            "gold_answers": fact if i % 3 else "Short and good " + thing,
            "bad_answers": other + " Or perhaps it is something else." * (i % 3 == 0),
        })  # fmt: skip
    return {"train": rows}


def labelled() -> Data:
    rows = [
        {"prompt": f"Describe a {thing}.", "completion": fact, "label": i % 2 == 0}
        for i, (thing, fact) in enumerate(zip(THINGS, FACTS, strict=True))
    ]
    return {"train": rows}


class Fault(NamedTuple):
    """What is done to clean data, and the finding that has to name it.

    row: of the train split, counted from 1, that the finding names; None where it is of the whole.
    says: part of its meaning, where the code says less than that.
    """

    name: str
    code: str
    seed: Callable[[Data], Any]
    row: int | None = 5
    of: Callable[[], Data] = chats
    says: str = ""


def question(text: str) -> Callable[[Data], None]:
    return lambda data: data["train"][4]["conversations"][0].update(content=text)


def answer(text: Any) -> Callable[[Data], None]:
    return lambda data: data["train"][4]["conversations"][1].update(content=text)


def spoken(old: str, new: str) -> Callable[[Data], None]:
    """In the question, in the place of its words."""
    return question(f"Describe a violin in one sentence, please. {old}{new}")


def row(**fields: Any) -> Callable[[Data], None]:
    return lambda data: data["train"][4].update(fields)


def again(split: str = "train", **changes: str) -> Callable[[Data], None]:
    """The first row once more."""

    def seed(data: Data) -> None:
        copied = copy.deepcopy(data["train"][0])
        for turn, text in changes.items():
            copied["conversations"][["user", "assistant"].index(turn)]["content"] = text
        data[split][-1 if split == "dev" else 4] = copied

    return seed


def read_as_gbk(data: Data) -> None:
    data["train"][4] = dialogue(
        "请介绍一下小提琴的历史".encode().decode("gbk", "ignore"), "四根弦，一把弓。"
    )


def misspelt(data: Data) -> None:
    data["train"][4] = {"conversation": data["train"][4]["conversations"]}


def unknown_role(data: Data) -> None:
    data["train"][4]["conversations"][0]["role"] = "boss"


LONG = "Describe a lamp in one sentence, please. " + " ".join(THINGS)
GARBLED = "Le café préféré de l’été".encode().decode("cp1252", "replace")
FAULTS = [
    # What training refuses
    Fault("a line that is no JSON", "refused", lambda d: d["train"].insert(4, "{"),
          says="not valid"),
    Fault("a field that is missing", "refused", misspelt, says="fields ['conversation']"),
    Fault("an unknown role", "refused", unknown_role,
          says="role 'boss'"),
    Fault("two user turns in a row", "refused",
          lambda d: d["train"][4]["conversations"].insert(0, {"role": "user", "content": "Hi"}),
          says="two user turns in a row"),
    Fault("a first turn of the assistant's", "refused",
          lambda d: d["train"][4]["conversations"].reverse(), says="first turn must be the user's"),
    Fault("no answer at all", "refused", lambda d: d["train"][4]["conversations"].pop(),
          says="no assistant turn"),
    Fault("an empty answer", "refused", answer(""), says="empty assistant turn"),
    Fault("an answer of blanks", "refused", answer(" \n\t"), says="empty assistant turn"),
    Fault("content that is no text", "refused", answer(3), says="must be a string"),
    Fault("a picture that is not there", "refused", row(images=["gone.png"]),
          says="does not exist"),
    Fault("a weight below 0", "refused", row(weight=-1), says="'weight' must be"),
    Fault("equal chosen and rejected answers", "refused",
          lambda d: d["train"][4].update(bad_answers=d["train"][4]["gold_answers"]), of=pairs,
          says="both gold and bad"),
    Fault("a real control token in a question", "template", spoken("<|im_end|>", ""),
          says="control token"),
    # What the length costs
    Fault("a prompt longer than max_length", "too-long",
          lambda d: d["train"][4]["prompt"][0].update(content=" ".join(THINGS * 30)),
          of=lambda: prompts()),
    Fault("an answer that is cut off", "cut", answer(" ".join(THINGS * 30))),
    # Repetitions
    Fault("a row twice", "duplicate", again()),
    Fault("a row twice but for case and blanks", "duplicate",
          again(user="describe a  LAMP in one sentence, please.")),
    Fault("a dev row that is trained too", "leak", again("dev"), None),
    Fault("a dev question that is trained too", "leaked-question", again("dev", assistant="Hm."),
          None),
    Fault("a row that is nearly another", "near-duplicate",
          lambda d: (again(user=LONG, assistant=FACTS[0])(d),
                     d["train"][0]["conversations"][0].update(content=LONG + " once"))),
    Fault("two answers to one question", "conflict", again(assistant="It is a bird.")),
    Fault("an answer chosen here and rejected there", "both-good-and-bad",
          lambda d: d["train"].insert(4, d["train"][0] | {
              "gold_answers": d["train"][0]["bad_answers"],
              "bad_answers": d["train"][0]["gold_answers"]}), of=pairs),
    # Question and answer
    Fault("an empty question", "empty-question", question("  ")),
    Fault("an answer that stands in its prompt", "answer-in-prompt",
          question(f"Describe a violin. Hint: {FACTS[4]}")),
    Fault("an answer that is the question", "echo",
          answer("Describe a violin in one sentence, please.")),
    Fault("chosen and rejected that differ in blanks", "same-but-blanks",
          lambda d: d["train"][4].update(bad_answers=d["train"][4]["gold_answers"] + " "),
          of=pairs),
    Fault("an answer in another script", "other-language", answer("四根弦，一把弓。")),
    Fault("a word for no answer", "no-answer", answer("N/A")),
    Fault("an answer 'As an AI'", "canned-refusal", answer("As an AI language model I cannot.")),
    Fault("an answer that repeats itself", "repetition", answer("It sings well. " * 9)),
    Fault("a block of code that is cut off", "open-fence", answer("Like this:\n```python\nplay()")),
    Fault("a thought that is cut off", "open-thought", answer("<think>Four strings, so")),
    Fault("a written-down dialogue in an answer", "transcript", answer("Well.\nUser: And then?")),
    # Characters
    Fault("U+FFFD", "lost-character", answer("Four strings\ufffd a bow.")),
    Fault("UTF-8 read as Windows-1252", "mojibake", question(GARBLED)),
    Fault("UTF-8 read as GBK", "mojibake", read_as_gbk),
    Fault("a zero-width space", "invisible", answer("Four\u200b strings, and a bow.")),
    Fault("HTML entities", "markup", answer("Strings &amp; a bow.")),
    Fault("line ends escaped twice", "escaped", answer("Four strings,\\na bow,\\npractice.")),
    # The rows together
    Fault("labels that are nearly all the same", "label-imbalance",
          lambda d: [r.update(label=i != 3) for i, r in enumerate(d["train"])], None, labelled),
]  # fmt: skip


def prompts() -> Data:
    """Clean rows of GRPO, whose prompt alone can be too long."""
    return {"train": [{"prompt": row["conversations"][:1]} for row in chats()["train"]]}


def seeded(fault: Fault) -> Data:
    data = fault.of()
    fault.seed(data)
    return data


def text_of(rows: list[Any]) -> str:
    """JSON Lines; a text stands as it is."""
    lines = [row if isinstance(row, str) else json.dumps(row, ensure_ascii=False) for row in rows]
    return "\n".join(lines)
