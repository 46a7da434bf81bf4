"""The bound on request bodies, where it must be: before anything buffers them."""

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from starlette.responses import Response

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[MutableMapping[str, Any], Receive, Send], Awaitable[None]]


class BodyLimit:
    """ASGI layer that answers with ``refusal`` as soon as a request announces, or sends, more than ``max_bytes``."""

    def __init__(self, app: App, max_bytes: int, refusal: Callable[[], Response]) -> None:
        self.app, self.max_bytes, self.refusal = app, max_bytes, refusal

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        announced = next((value for name, value in scope["headers"] if name.lower() == b"content-length"), b"")
        if announced.isdigit() and int(announced) > self.max_bytes:
            await self.refusal()(scope, receive, send)
            return
        seen, begun = 0, False

        async def counted() -> Message:
            nonlocal seen
            message = await receive()
            seen += len(message.get("body", b""))
            if seen > self.max_bytes:
                raise _TooLarge
            return message

        async def noticed(message: Message) -> None:
            nonlocal begun
            begun = True
            await send(message)

        try:
            await self.app(scope, counted, noticed)
        except _TooLarge:
            if not begun:
                await self.refusal()(scope, receive, send)


class _TooLarge(Exception):
    """Passes through the framework's layers; none of them knows it."""
