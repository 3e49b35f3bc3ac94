"""Say no in JSON: whose fault, what is wrong, what would be right. Knows nothing of speech."""

import json

from starlette.types import Send


class Refusal(Exception):
    """An answer without audio. `retry_after_s` is for those who may come again."""

    def __init__(self, status: int, code: str, message: str, retry_after_s: int | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message
        self.retry_after_s = retry_after_s

    @property
    def kind(self) -> str:
        return "invalid_request_error" if self.status < 500 else "server_error"


def error_body(refusal: Refusal) -> bytes:
    error = {"message": refusal.message, "type": refusal.kind, "code": refusal.code}
    return json.dumps({"error": error}, ensure_ascii=False).encode()


async def send_refusal(send: Send, refusal: Refusal, headers: list[tuple[bytes, bytes]], last: bool = True) -> None:
    """Send the whole answer; with `last` False the connection is left for the caller to end."""
    body = error_body(refusal)
    fields = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode()), *headers]
    if refusal.retry_after_s is not None:
        fields.append((b"retry-after", str(refusal.retry_after_s).encode()))
    if refusal.status == 401:
        fields.append((b"www-authenticate", b"Bearer"))
    await send({"type": "http.response.start", "status": refusal.status, "headers": fields})
    await send({"type": "http.response.body", "body": body, "more_body": not last})
