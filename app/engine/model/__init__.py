"""A model on disk and in memory: folders, weights, tokenizer and chat template, and what they take of a card."""
