"""The engine's own process: its end of the socket, and which engine it runs on this machine."""
