"""What outlives a process: files, checkpoints of what runs, objects as plain data, and what a computation is told apart by."""

from itergp.persistence.checkpoint import Checkpointer, CheckpointFile, CheckpointSection
from itergp.persistence.codec import DERIVED, StateDict, from_state, to_state
from itergp.persistence.identity import Identity
from itergp.persistence.sharded_checkpoint import ShardedCheckpoint

__all__ = [
    "DERIVED",
    "CheckpointFile",
    "CheckpointSection",
    "Checkpointer",
    "Identity",
    "ShardedCheckpoint",
    "StateDict",
    "from_state",
    "to_state",
]
