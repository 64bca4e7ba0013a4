"""Replay policies: who enters a full buffer, who leaves it, who is replayed.

| `buffer.policy` | who stays | what it remembers |
| --- | --- | --- |
| `reservoir` | a uniform sample of everything offered | nothing |
| `fifo` | the newest | nothing |
| `two-tier` | the newest, and a uniform sample of what was before them | nothing |
| `minred` | those that have no near-repeat here | the nearest neighbour of every frame |
| `groups` | about as many of every group of similar frames | the groups, and the group of every frame |
"""

from cld_stream.config import BufferSettings
from cld_stream.learn.policies.fifo import Fifo
from cld_stream.learn.policies.groups import Groups
from cld_stream.learn.policies.minred import MinRed
from cld_stream.learn.policies.policy import EMPTY, Ids, Policy
from cld_stream.learn.policies.reservoir import Reservoir
from cld_stream.learn.policies.two_tier import TwoTier

__all__ = ["EMPTY", "POLICIES", "Ids", "Policy", "make_policy"]

POLICIES: dict[str, type[Policy]] = {
    "reservoir": Reservoir, "fifo": Fifo, "two-tier": TwoTier, "minred": MinRed, "groups": Groups,
}  # fmt: skip


def make_policy(name: str, capacity: int, settings: BufferSettings) -> Policy:
    """The policy of that name, for a buffer of so many slots."""
    return POLICIES[name](capacity, settings)
