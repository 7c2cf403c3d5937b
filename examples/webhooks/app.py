"""The endpoint: takes what GitHub signed, and answers once it is stored."""

from __future__ import annotations

import hmac
import os
from hashlib import sha256
from uuid import UUID

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from examples.webhooks.payloads import printable, recognize
from examples.webhooks.service import counts, webhooks
from tidings import ConfigurationError, WorldError, event_id

MAX_BODY = 700 * 1024
"""Bytes of a payload. Whatever is taken can also be kept whole: in base64 it still fits into an event of 1 MiB."""


def signature(secret: str, body: bytes) -> str:
    """What GitHub writes into ``X-Hub-Signature-256``."""
    return "sha256=" + hmac.new(secret.encode(), body, sha256).hexdigest()


async def read_body(request: Request) -> bytes | None:
    """The body, or None as soon as it is too large."""
    parts, size = [], 0
    async for part in request.stream():
        size += len(part)
        if size > MAX_BODY:
            return None
        parts.append(part)
    return b"".join(parts)


def answer(code: int, /, **content: str) -> JSONResponse:
    return JSONResponse(content, status_code=code)


async def receive(request: Request) -> JSONResponse:
    """Check size and signature before looking at anything else; publish; say that it is stored."""
    body = await read_body(request)
    if body is None:
        return answer(413, error=f"more than {MAX_BODY} bytes")
    given = request.headers.get("X-Hub-Signature-256", "")
    if not hmac.compare_digest(given.encode(), signature(request.app.state.secret, body).encode()):
        return answer(401, error="the signature is missing or is not that of this body and our secret")
    name = printable(request.headers.get("X-GitHub-Event", ""))[:100]
    try:
        delivery = UUID(request.headers.get("X-GitHub-Delivery", ""))
    except ValueError:
        return answer(400, error="X-GitHub-Delivery is no UUID")
    if not name:
        return answer(400, error="X-GitHub-Event is missing")
    if name == "ping":
        return answer(200, status="pong")
    event = recognize(name, delivery, body)
    try:
        await webhooks.publish(event)
    except WorldError as error:
        return answer(503, error=f"not stored, deliver it again: {error}")
    return answer(202, status=type(event).__tidings__.type, id=event_id(event))


async def show(request: Request) -> JSONResponse:
    """What was counted so far."""
    return JSONResponse(await counts())


def create(secret: str | None = None) -> Starlette:
    """The application; the service runs as long as it does. The secret stands in ``GITHUB_WEBHOOK_SECRET``."""
    secret = secret if secret is not None else os.environ.get("GITHUB_WEBHOOK_SECRET", "")
    if not secret:
        raise ConfigurationError(
            "without a secret anybody could send anything. Set GITHUB_WEBHOOK_SECRET to the secret of the webhook"
        )
    routes = [Route("/webhooks/github", receive, methods=["POST"]), Route("/", show)]
    app = Starlette(routes=routes, lifespan=webhooks.lifespan)
    app.state.secret = secret
    return app
