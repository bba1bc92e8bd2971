"""`main-peft plan METHOD`: what memory and time the run of these arguments will need."""

import logging

from main.cli.arguments import Arguments, Part, tell
from main.cli.train import METHODS, check_method, method_of
from main.cli.train import arguments as of_train
from main.utils.plan import PlanOptions, plan

log = logging.getLogger(__name__)

USAGE = """usage: main-peft plan METHOD --from_pretrained MODEL ...
       main-peft plan --config FILE

Say what memory and time a run will need, by trying it with few layers. METHOD
is one of lora, dpo, ppo and grpo; the arguments are those of main-peft train
METHOD, so that the run.yaml of a run serves, too. main-peft plan METHOD --help
lists all."""
UNREAD = ("data_path", "reward_func")  # rows are made up, and rewards cost what the user's cost


def run(words: list[str]) -> None:
    if not words or words in (["-h"], ["--help"]):
        tell(USAGE)
        return
    method = method_of(words, "plan")
    given = arguments(method).parse(words[1:] if words[0] == method else words)
    check_method(method, given)
    own, setup, call = given.parts
    unread = [name for name in UNREAD if setup.pop(name, None) or call.pop(name, None)]
    if unread:
        log.info("%s: not looked at; a plan makes up its rows.", " and ".join(unread))
    model = setup.pop("from_pretrained", None)
    tell(str(plan(model, method, **own, **setup, **call)))  # type: ignore[arg-type]


def arguments(method: str) -> Arguments:
    """Those of `train METHOD`, and the plan's own."""
    without = {"model": "it is from_pretrained here", "method": "it is the word behind plan"}
    known = of_train(method)
    return Arguments(
        f"main-peft plan {method}",
        METHODS[method].about,
        [Part(PlanOptions, without=without), *known.parts],
        method=method,
    )
