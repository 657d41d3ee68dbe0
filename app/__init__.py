"""Ponder: a chat for reasoning models that one person can host on one GPU."""

__version__ = "0.1.0"
