"""Ways in which a turn fails, each under its own `error_kind`. Knows nothing of sockets or rows."""

import socket
import ssl


class TurnFailed(Exception):
    """A turn that did not go well: an `outcome` of the schema, an `error_kind`, and one line for people.

    outcome          error_kind
    refused          connection_refused, dns_failure, unreachable, tls_failure, http_<status>
    timed_out        connect_timeout, no_answer_in_time, answer_too_slow
    disconnected     closed_before_answer, cut_mid_stream
    protocol_error   not_http, wrong_content_type, server_said_failure, bad_event, internal_error (a bug of ours)
    answered         no_audio, silence_only, truncated, too_short, too_long, undecodable_audio, rejected
    cut              run_ended, user_stopped

    And of calls; docs/protocols.md says when:
    timed_out        never_stopped
    disconnected     ws_closed_<code>, connection_broken, half_open
    protocol_error   not_websocket, bad_websocket, and what a codec cannot use: bad_protobuf, unknown_message,
                     text_message, binary_message, empty_audio, odd_bytes, odd_sample_rate, odd_channels, bad_wav,
                     bad_json, bad_media, bad_base64, bad_mark, wrong_stream

    And of full-duplex sessions:
    timed_out        handshake_timeout, stopped_sending, no_text_in_time (of a session that is not decoded)
    disconnected     closed_without_audio
    cut              part_ended, ear_lost
    protocol_error   bad_opus, bad_text, empty_message, server_said_failure
    """

    def __init__(self, outcome: str, kind: str, line: str) -> None:
        super().__init__(line)
        self.outcome, self.kind = outcome, kind


def of_connecting(error: OSError, host: str, port: int) -> TurnFailed:
    """Why a connection to `host:port` could not be made, with the fix where there is an obvious one."""
    where = f"{host}:{port}"
    match error:
        case ssl.SSLCertVerificationError():
            said = error.verify_message or error.reason
            fix = "for a self-signed one add --insecure"
            found = ("refused", "tls_failure", f"TLS: the certificate of {where} is not trusted ({said}); {fix}")
        case ssl.SSLError():
            why = error.reason or error
            found = ("refused", "tls_failure", f"TLS handshake with {where} failed: {why}; is it an https port?")
        case socket.gaierror():
            found = ("refused", "dns_failure", f"no address for {host!r}: {error.strerror}; check --host")
        case ConnectionRefusedError():
            line = f"nothing listens on {where}; is the server up, and is --host right?"
            found = ("refused", "connection_refused", line)
        case TimeoutError():
            found = ("timed_out", "connect_timeout", f"no connection to {where} in time (connect_timeout_s)")
        case ConnectionResetError():
            found = ("disconnected", "closed_before_answer", f"{where} closed the connection while it was made")
        case _:
            found = ("refused", "unreachable", f"cannot reach {where}: {error.strerror or error}")
    return TurnFailed(*found)
