"""Conversations as files: exported as Markdown or JSON, imported from our JSON, from ChatGPT and from Open WebUI.

Knows no HTTP. A file's conversations come through `shape`, whatever the format; one at a time is in memory.
"""
