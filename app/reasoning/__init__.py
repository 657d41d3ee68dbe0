"""What makes it a reasoning chat: telling reasoning from answer, and steering how long a model reasons."""
