"""Reading checkpoints safely and renaming their entries for a model."""

from rednet.checkpoint import reading

__all__ = ["reading"]
