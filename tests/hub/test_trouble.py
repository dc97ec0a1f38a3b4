import datetime
import email.utils
import errno
from pathlib import Path

import httpx2
import pytest

from lorgnette.hub.trouble import (
    TransientError,
    explain_disk_error,
    explain_status,
    explain_transport_error,
    parse_retry_after,
    redact_url,
)


def test_addresses_are_shown_without_secrets() -> None:
    url = "https://user:pass@host:8/a/b.jpg?id=3&X-Amz-Signature=abc&token=t#x"
    assert redact_url(url) == "https://host:8/a/b.jpg?id=3&X-Amz-Signature=…&token=…"
    assert len(redact_url("http://h/" + "a" * 999)) == 240


@pytest.mark.parametrize("status", [401, 403, 404, 407, 408, 410, 416, 418, 425, 429, 451, 500, 502, 503, 504])
def test_every_status_has_a_sentence_and_a_remedy(status: int) -> None:
    error = explain_status(httpx2.Response(status), "http://h/x")
    assert str(status) in error.message
    assert error.hint
    assert error.where == "http://h/x"
    assert isinstance(error, TransientError) == (status in (408, 425, 429) or status >= 500)


def test_waits_are_read_in_both_forms() -> None:
    assert parse_retry_after("7") == 7
    assert parse_retry_after(None) is None
    assert parse_retry_after("soon") is None
    then = datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=30)
    assert 27 < (parse_retry_after(email.utils.format_datetime(then, usegmt=True)) or 0) <= 30
    assert parse_retry_after("Wed, 21 Oct 2015 07:28:00 GMT") == 0


def test_what_the_client_raises_has_a_sentence() -> None:
    for error, what in {
        httpx2.ConnectTimeout("x"): "h cannot be reached: no answer in time",
        httpx2.ReadTimeout("x"): "the server went silent",
        httpx2.RemoteProtocolError("peer closed"): "the connection was cut: peer closed",
        httpx2.ReadError(""): "the connection was cut: ReadError",
        httpx2.ProxyError("407 Proxy Authentication Required"): "the proxy does not let it through: 407 Proxy Auth",
        httpx2.ConnectError("[SSL: CERTIFICATE_VERIFY_FAILED] expired"): "the server's certificate is not trusted",
    }.items():
        told = explain_transport_error(error, "http://h/x")
        assert told.message.startswith(what)
        assert told.hint


def test_disks() -> None:
    assert explain_disk_error(OSError(errno.ENOSPC, "No space left"), Path("/d/x")).message == "the disk is full"
    assert (
        explain_disk_error(OSError(errno.EACCES, "Permission denied"), Path("/d/x")).message
        == "cannot write: Permission denied"
    )
