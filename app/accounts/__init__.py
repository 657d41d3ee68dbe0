"""People: who is asking."""
