"""The page: Gradio Blocks lays out the parts, `static/ponder.js` fills and binds them by their `elem_id`.

There is not one Python handler behind it: Gradio's handlers are a public RPC surface, and the page speaks the HTTP API.
"""

import gradio as gr
from fastapi import FastAPI

from app.static_files import address, modules_of
from app.ui.head import Appearance, EarlyHead
from app.ui.theme import theme

_STYLES = ("math.css", "code.css", "ponder.css", "conversations.css", "account.css")
_ABOUT = "A chat for reasoning models: watch the model think, then read its answer."
# On Android the keyboard then shortens the page, and the composer stays above it
_VIEWPORT = "width=device-width, initial-scale=1, viewport-fit=cover, interactive-widget=resizes-content"
EFFORTS = (("Quick", "quick"), ("Normal", "normal"), ("Deep", "deep"))


def build_page() -> gr.Blocks:
    """The empty page: sidebar, chat with its composer, reasoning panel."""
    page = gr.Blocks(title="Ponder", analytics_enabled=False)
    with page, gr.Row(elem_id="shell"):
        with gr.Column(elem_id="sidebar"):
            gr.Button("New chat", elem_id="new-chat")
            gr.Column(elem_id="conversations")
            gr.Column(elem_id="model-card")
        with gr.Column(elem_id="chat"):
            gr.Column(elem_id="thread")
            with gr.Column(elem_id="composer"):
                gr.Textbox(
                    elem_id="question",
                    placeholder="Ask something hard",
                    label="Your question",
                    show_label=False,
                    container=False,
                    interactive=True,
                    lines=1,
                    max_lines=8,
                )
                with gr.Row(elem_id="composer-row"):
                    gr.Radio(
                        list(EFFORTS),
                        value="normal",
                        elem_id="effort",
                        label="How long to think",
                        interactive=True,
                        container=False,
                    )
                    gr.Button("Send", variant="primary", elem_id="send")
        gr.Column(elem_id="reasoning")
    return page


def mount_page(app: FastAPI, appearance: Appearance) -> None:
    """Put the page at the root of the app; `appearance` says in which language and theme a request gets it."""
    gr.mount_gradio_app(
        app,
        build_page(),
        path="/",
        theme=theme(),
        footer_links=[],
        run_history=False,
        ssr_mode=False,
        show_error=False,
        pwa=False,
        enable_monitoring=False,
    )
    app.add_middleware(EarlyHead, head=_head(), appearance=appearance)


def _head() -> str:
    styles = "".join(f'<link rel="stylesheet" href="{address(name)}">' for name in _STYLES)
    # All at once, where a browser would meet them one import after the other
    modules = "".join(f'<link rel="modulepreload" href="{address(name)}">' for name in modules_of("ponder.js"))
    return (
        f'<title>Ponder</title><meta name="viewport" content="{_VIEWPORT}"><meta name="description" content="{_ABOUT}">'
        f'{styles}<link rel="icon" type="image/svg+xml" href="{address("favicon.svg")}">'
        f'{modules}<script type="module" src="{address("ponder.js")}"></script>'
    )
