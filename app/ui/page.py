"""Placeholder until the page lands."""

from fastapi import FastAPI


def mount_page(app: FastAPI) -> None:
    """Nothing yet."""
