"""Which tokens of a draw are forks: those whose distribution has the most entropy.

Wang et al., "Beyond the 80/20 Rule", arXiv 2506.01939, section 5: a policy learns from them alone.
The bound is taken over the whole draw and all processes, before the first update, so that how a
step is cut into micro-batches changes nothing.
"""

from collections.abc import Sequence

import numpy as np

from main.system.processes import gather_shares
from main.trainer.online.sample import Sample


def note_forks(samples: Sequence[Sample], counted: Sequence[Sample], share: float) -> None:
    """Set `forks` of the samples: the `share` of the counted tokens with the most entropy.

    Args:
        counted: those of this process that the loss counts. All processes must call it.
    """
    mine = [sample.entropy[sample.mask].float().numpy() for sample in counted]
    parts = gather_shares(np.concatenate([np.empty(0, np.float32), *mine]))
    everything = np.concatenate(parts)
    bound = float(np.quantile(everything, 1 - share)) if len(everything) else np.inf
    for sample in samples:
        sample.forks = sample.mask & (sample.entropy >= bound)
