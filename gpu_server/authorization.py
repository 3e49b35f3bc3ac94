"""Check the token that guards the server. Knows nothing of routes or answers."""

import hmac

from gpu_server.refusal import Refusal


def check_token(token: str | None, authorization: str | None) -> None:
    """Compare an Authorization header with the token, if there is one. Raises Refusal."""
    if token is None:
        return
    scheme, _, given = (authorization or "").partition(" ")
    if scheme.lower() != "bearer" or not hmac.compare_digest(given.strip().encode(), token.encode()):
        raise Refusal(401, "unauthorized", "the token is missing or wrong: send `Authorization: Bearer TOKEN`")
