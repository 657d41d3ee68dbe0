"""Ponder: a chat for reasoning models that one person can host on one GPU."""
