"""Gradio's theme, with the system's own fonts: the page asks no other machine for anything."""

from gradio.themes import Base

_SANS = ["ui-sans-serif", "system-ui", "-apple-system", "Segoe UI", "Roboto", "Noto Sans", "sans-serif"]
_MONO = ["ui-monospace", "SFMono-Regular", "Menlo", "Consolas", "DejaVu Sans Mono", "monospace"]


def theme() -> Base:
    """The theme; colours and shapes of our own parts are in `static/ponder.css`."""
    # What is seen before our parts are drawn has their colour
    return Base(primary_hue="indigo", neutral_hue="slate", font=_SANS, font_mono=_MONO).set(
        body_background_fill="#ffffff", body_background_fill_dark="#111318"
    )
