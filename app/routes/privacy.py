"""The privacy page, from the operator's settings. It has no script."""

from pathlib import Path

from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse
from fastapi.templating import Jinja2Templates

from app.routes.access import Serving
from app.static_files import address

router = APIRouter()
_pages = Jinja2Templates(Path(__file__).parent / "pages")


@router.get("/privacy", response_class=HTMLResponse)
async def privacy(request: Request, serving: Serving) -> HTMLResponse:
    """Who runs this, where prompts go, what is kept how long, who can read it."""
    settings, profile = serving.settings, serving.engine.profile
    shown = {
        "address": address,
        "operator": settings.operator,
        "contact": settings.contact,
        "model": profile.title if profile else "",
        "guests": settings.guests,
        "guest_days": settings.guest_days,
        "providers": [provider.label for provider in settings.providers],
        "minimum_age": settings.minimum_age,
        "note": settings.privacy_note.splitlines(),
    }
    return _pages.TemplateResponse(request, "privacy.html", shown)
