"""How the app's process and the engine's write their logs: to standard error, and never what people write."""

import logging


def set_up_logs(level: str) -> None:
    """Log from this level on; libraries only as far as they write no secrets and no texts."""
    logging.basicConfig(level=level, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    least = logging.getLogger().level
    # At INFO sqlalchemy writes the values of every query, httpx the addresses with their parameters
    for chatty in ("alembic", "httpx", "httpx2", "sqlalchemy", "uvicorn.error"):
        logging.getLogger(chatty).setLevel(max(logging.WARNING, least))
    # At DEBUG these write PKCE verifiers, tokens, headers and queries
    for talkative in ("authlib", "httpcore", "httpcore2", "hpack", "huggingface_hub", "multipart", "urllib3"):
        logging.getLogger(talkative).setLevel(max(logging.INFO, least))
