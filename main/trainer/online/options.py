"""What GRPO and PPO accept about turns: tools, an environment, and how far an episode may go."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from main.options import Options, below, not_positive

if TYPE_CHECKING:
    from main.dialogue.playing import Limits
    from main.dialogue.toolbox import Toolbox


@dataclass(kw_only=True)
class EpisodeOptions(Options):
    """What answers the policy, so that a completion is an episode of several turns.

    tools: Python functions that the policy may call, with type hints and a docstring that describes
        every argument; `async def` ones run on one event loop, others in threads. What a call
        returns, or how it failed, is told to the policy as the tool's turn.
    environment_factory: a function without arguments, called for each completion, that makes what
        answers every turn instead: an object with `reset(row)` and `step(text) -> (messages,
        reward, done)`. PPO credits the reward of a step to its turn, GRPO adds them up;
        `reward_func` may then be left out.
    max_tool_calling_iterations: how often tools, or the environment, may answer in an episode; None
        is no limit. An episode that would need one more is cut.
    tool_timeout: seconds for a call of a tool, or a step; None is no limit. A function given up may
        still go on in its thread.
    episode_timeout: seconds since the first turn of a draw after which no further turn begins. What
        is cut then depends on the machine, and so does the run.
    """

    tools: list | tuple | None = None
    environment_factory: Any = None
    max_tool_calling_iterations: int | None = None
    tool_timeout: float | None = None
    episode_timeout: float | None = None

    def problems(self) -> list[str]:
        found = below(self, {"max_tool_calling_iterations": 1})
        found += not_positive(self, ("tool_timeout", "episode_timeout"))
        if self.tools is not None and self.environment_factory is not None:
            found.append(
                "tools and environment_factory both answer a turn: give one of them. An "
                "environment may read the calls in the text of a step itself."
            )
        factory = self.environment_factory
        if factory is not None and not callable(factory):
            found.append(
                f"environment_factory={factory!r} must be a function or class that makes one."
            )
        return found

    def without_effect(self) -> dict[str, str]:
        names = ("max_tool_calling_iterations", "tool_timeout", "episode_timeout")
        alone = self.tools is None and self.environment_factory is None
        cause = "neither tools nor environment_factory"
        return super().without_effect() | (dict.fromkeys(names, cause) if alone else {})

    @property
    def has_turns(self) -> bool:
        """Whether anything answers the policy."""
        return self.tools is not None or self.environment_factory is not None

    def toolbox(self) -> "Toolbox | None":
        """The functions of `tools`.

        Raises:
            ConfigError: see `Toolbox`.
        """
        from main.dialogue.toolbox import Toolbox

        return None if self.tools is None else Toolbox(self.tools, self.tool_timeout)

    def episode_limits(self, completion: int, context: int | None) -> "Limits":
        """How far an episode of at most so many tokens after its prompt may go."""
        from main.dialogue.playing import Limits

        rounds, seconds = self.max_tool_calling_iterations, self.episode_timeout
        return Limits(completion, None, context, rounds, seconds)
