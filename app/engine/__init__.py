"""Language models that write: the Protocol, the wire, and the process that they live in.

What lies here is what the app imports, and knows no torch. `host/`, `model/`, `local/` and `batched/` belong to the
engine's own process; the command line imports them lazily.
"""
