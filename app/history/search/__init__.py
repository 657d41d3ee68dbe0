"""Search in what a person has: the words of a text, the index of them, finding, the line around a hit."""

from app.history.search.find import Found, Hit, Search
from app.history.search.forgetting import forget_deleted
from app.history.search.index import (
    SEARCH_VERSION,
    index_message,
    index_title,
    is_outdated,
    move_entries,
)
from app.history.search.indexer import Indexer
from app.history.search.terms import terms

__all__ = [
    "SEARCH_VERSION",
    "Found",
    "Hit",
    "Indexer",
    "Search",
    "forget_deleted",
    "index_message",
    "index_title",
    "is_outdated",
    "move_entries",
    "terms",
]
