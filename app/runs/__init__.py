"""A run from accepted to done: the queue, the event log, its readers, and what is left after a crash."""
