"""Who answers the policy in GRPO and PPO, and how an error there ends all processes alike."""

from collections.abc import Callable, Collection

from main.dialogue.episodes import between_turns
from main.dialogue.outside import Environments, Nobody, Outside, Reader, tools_of
from main.dialogue.plain import PlainText
from main.dialogue.template import ChatTemplate
from main.dialogue.toolbox import Toolbox
from main.errors import ConfigError, ModelError, RewardError
from main.system.processes import gather_shares
from main.trainer.online.options import EpisodeOptions


def outside_of(
    options: EpisodeOptions,
    toolbox: Toolbox | None,
    template: ChatTemplate | PlainText,
    stop_ids: Collection[int],
) -> Outside:
    """Who answers the policy.

    Raises:
        ConfigError: a template that cannot write an answer, or whose calls cannot be read.
    """
    if not options.has_turns:
        return Nobody()
    if isinstance(template, PlainText):
        name = "environment_factory" if toolbox is None else "tools"
        raise ConfigError(f"{name} needs a chat template, which writes the turns; there is none.")
    renderer = template.renderer
    if toolbox is not None:
        return tools_of(renderer, stop_ids, toolbox)
    try:
        between = between_turns(renderer, stop_ids)
    except ModelError as error:
        path = template.tokenizer.name_or_path
        raise ConfigError(
            f"environment_factory: with the chat template of {path!r}: {error}"
        ) from error
    reader = Reader(template.tokenizer, frozenset(stop_ids))
    return Environments(options.environment_factory, between, reader, options.tool_timeout)


def attempt(work: Callable[[], None]) -> RewardError | None:
    """The error of an environment that failed, for `raise_for_all`."""
    try:
        work()
    except RewardError as error:
        return error
    return None


def raise_for_all(error: RewardError | None) -> None:
    """All processes stop for one reason; all must call it.

    Raises:
        RewardError: on every process, if one came with it.
    """
    told = next((text for text in gather_shares(str(error or "")) if text), "")
    if told:
        raise error or RewardError(told)
