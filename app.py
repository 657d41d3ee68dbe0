"""Serve Ponder: `python app.py [--host HOST] [--port PORT] [--model MODEL]`."""

import sys

if __name__ == "__main__":
    from app.server import main

    sys.exit(main())
