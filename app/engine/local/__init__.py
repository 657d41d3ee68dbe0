"""One request at a time, through transformers' `generate`."""
