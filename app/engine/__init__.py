"""Language models that write: the Protocol, the process they live in, and the engines behind it."""
