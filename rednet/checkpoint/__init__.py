"""Checkpoints: reading them safely, and giving their entries the names that a model expects."""

from rednet.checkpoint import reading

__all__ = ["reading"]
