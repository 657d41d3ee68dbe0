"""Whether this process lives, whether it can answer, and which model answers."""

import asyncio
from typing import Any

from fastapi import APIRouter
from fastapi.responses import JSONResponse

from app.routes.access import Serving

router = APIRouter()


@router.get("/healthz")
async def healthz() -> dict[str, bool]:
    """The process lives."""
    return {"alive": True}


@router.get("/readyz")
async def readyz(serving: Serving) -> JSONResponse:
    """Ready to answer; 503 with the reason otherwise."""
    has_database = await asyncio.to_thread(serving.store.database.is_answering)
    status = serving.engine.status
    problem = serving.runs.problem()
    is_ready = has_database and status.state == "ready" and not problem
    model = {
        "state": status.state,
        "stage": status.stage,
        "problem": status.problem,
        "remedy": status.remedy,
        "way": status.way,
    }
    return JSONResponse(
        {"ready": is_ready, "database": has_database, "model": model, "problem": problem},
        status_code=200 if is_ready else 503,
    )


@router.get("/api/model")
async def model(serving: Serving) -> dict[str, Any]:
    """Which model answers here, and how far it is."""
    status, profile = serving.engine.status, serving.engine.profile
    return {
        "state": status.state,
        "stage": status.stage,
        "progress": status.progress,
        "problem": status.problem,
        "remedy": status.remedy,
        "name": profile.name if profile else "",
        "title": profile.title if profile else "",
        "about": profile.about if profile else "",
        "is_demo": profile.is_demo if profile else False,
        "context_window": profile.context_window if profile else 0,
        "efforts": [
            {"name": effort, "thinking_tokens": thinking_tokens}
            for effort, thinking_tokens in (profile.budgets.items() if profile else ())
        ],
    }
