"""Several rewards made one, with weights that move towards the reward that is lowest.

`compose` has the pure functions, `weights` the object that keeps weights over a training,
`trainers` puts it into TRL's trainers.
"""

from pyext.methods import Method

METHOD = Method(
    name="reward-composition",
    summary="Train on several rewards at once: the lowest of them gains weight after every batch.",
    paper="Li et al. 2024, Fair and Stable Reward Composition (Fast RL), EMNLP, 10122-10140",
    ops=(),
    extra="reward-composition",
    demo="pyext_plugins.reward_composition.demo:demo",
)
