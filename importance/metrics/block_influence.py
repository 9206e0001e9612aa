"""Block Influence: how far a block turns the residual stream, over all tokens.

    BI_i = 1 - mean_t cos(x_t, y_t),   x, y: the stream before and behind block i

0..2, in practice 0..1; high = the block changes much = keep it. Men et al., ShortGPT, arXiv:2403.03853. Made for
language models; on vision-language models it ranks poorly, and the weight of vision tokens matters.
"""

from torch import Tensor

from importance.engine import Step
from importance.metrics._stream import Stream, cosine


class BlockInfluence(Stream):
    """A watcher: 1 - cosine of each token."""

    def per_token(self, step: Step) -> Tensor:
        """[B, S]."""
        return 1 - cosine(step.state.hidden, step.after)


watcher = BlockInfluence
