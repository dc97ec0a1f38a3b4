import datetime
import email.utils
import errno
import ssl
import time
from pathlib import Path
from typing import Any

import httpx2
import pytest

from lorgnette.errors import LorgnetteError, SourceError
from lorgnette.hub.http import (
    HttpClient,
    RetryPolicy,
    TransientError,
    explain_disk_error,
    explain_status,
    explain_transport_error,
    parse_retry_after,
    redact_url,
)

QUICK = RetryPolicy(
    max_attempts=3, connect_timeout=2, read_timeout=1, initial_pause=0.01, max_pause=0.05, max_retry_after=3
)


def body(url: str, **headers: str) -> bytes:
    with HttpClient(retry_policy=QUICK) as client:
        return client.get_bytes(url, headers)


def test_transient_failures_are_retried(hub: Any, trick: Any) -> None:
    url = hub.put("/a", b"abc")
    hub.trick("/a", trick(status=503), trick(status=429))
    assert body(url) == b"abc"
    assert len(hub.log) == 3
    hub.trick("/a", *[trick(status=500)] * 9)
    with pytest.raises(SourceError, match=r"server error \(HTTP 500\)"):
        body(url)
    assert len(hub.log) == 6


def test_permanent_failures_are_not_retried(hub: Any, trick: Any) -> None:
    for status in (400, 401, 403, 404, 410, 416):
        hub.trick("/a", trick(status=status))
        with pytest.raises(SourceError, match=str(status)):
            body(hub.url + "/a")
    assert len(hub.log) == 6


def test_the_server_says_how_long_to_wait(hub: Any, trick: Any) -> None:
    url = hub.put("/a", b"abc")
    hub.trick("/a", trick(status=429, headers={"Retry-After": "1"}))
    start = time.monotonic()
    assert body(url) == b"abc"
    assert 1 <= time.monotonic() - start < 6
    hub.trick("/a", trick(status=429, headers={"Retry-After": "3600"}))
    with pytest.raises(SourceError, match=r"rate limited \(HTTP 429\); the server asks to wait 3600 s"):
        body(url)
    assert len(hub.log) == 3


def test_redirects_are_followed_and_the_token_stays_at_home(hub: Any, trick: Any) -> None:
    hub.put("/b", b"abc")
    elsewhere = hub.url.replace("127.0.0.1", "localhost") + "/b"
    hub.trick("/a", trick(status=302, headers={"Location": elsewhere}))
    assert body(hub.url + "/a", Authorization="Bearer s", Cookie="m_session_id=s") == b"abc"
    assert "Authorization" in hub.log[0].headers
    assert not {"Authorization", "Cookie"} & set(hub.log[1].headers)
    hub.trick("/c", *[trick(status=302, headers={"Location": hub.url + "/c"})] * 40)
    with pytest.raises(SourceError, match="too many redirects"):
        body(hub.url + "/c")


def test_a_web_page_instead_of_json_is_named(hub: Any) -> None:
    url = hub.put("/a", b"<html>log in</html>")
    with HttpClient(retry_policy=QUICK) as client, pytest.raises(SourceError, match="answered with a web page"):
        client.get_json(url, {})


def test_an_endless_response_is_refused(hub: Any) -> None:
    url = hub.put("/a", bytes(3 << 20))
    with HttpClient(retry_policy=QUICK) as client, pytest.raises(SourceError, match="longer than 1 MiB"):
        client.get_bytes(url, {}, max_bytes=1 << 20)


def test_no_network_and_no_url() -> None:
    with pytest.raises(SourceError, match=r"cannot reach no-such-host\.invalid: no network, or no such host"):
        body("http://no-such-host.invalid/x")
    with pytest.raises(SourceError, match="not a URL"):
        body("ftp://host/x")


def test_a_proxy_is_used_and_no_proxy_keeps_it_out(hub: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", hub.url)
    monkeypatch.setenv("no_proxy", "")
    hub.put("/through", b"proxied")
    assert body("http://a-host.invalid/through") == b"proxied"
    assert hub.log[0].headers["Host"] == "a-host.invalid"
    monkeypatch.setenv("no_proxy", "a-host.invalid")
    with pytest.raises(SourceError, match="cannot reach"):
        body("http://a-host.invalid/through")


def test_certificates_that_cannot_be_read_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "none.pem"))
    with pytest.raises(LorgnetteError, match="SSL_CERT_FILE names certificates that cannot be read"):
        HttpClient()
    (tmp_path / "bad.pem").write_text("no certificate")
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "bad.pem"))
    with pytest.raises(LorgnetteError, match="SSL_CERT_FILE"):
        HttpClient()


def test_a_certificate_that_is_not_trusted_is_named(hub: Any) -> None:
    error = ssl.SSLCertVerificationError(1, "certificate verify failed")
    error.verify_message = "self-signed certificate"
    outer = httpx2.ConnectError("[SSL] certificate verify failed")
    outer.__cause__ = error
    named = explain_transport_error(outer, "https://host/x")
    assert named.message == "the server's certificate is not trusted: self-signed certificate"
    assert "SSL_CERT_FILE" in str(named.hint)


def test_a_stopped_client_sends_no_request(hub: Any) -> None:
    with HttpClient(retry_policy=QUICK) as client:
        client.stopped.set()
        with pytest.raises(LorgnetteError, match="the download was stopped"):
            client.get_bytes(hub.put("/a", b"abc"), {})
    assert not hub.log


def test_urls_are_redacted() -> None:
    url = "https://user:pass@host:8/a/b.jpg?id=3&X-Amz-Signature=abc&token=t#x"
    assert redact_url(url) == "https://host:8/a/b.jpg?id=3&X-Amz-Signature=…&token=…"
    assert len(redact_url("http://h/" + "a" * 999)) == 240


@pytest.mark.parametrize("status", [401, 403, 404, 407, 408, 410, 416, 418, 425, 429, 451, 500, 502, 503, 504])
def test_every_status_has_a_message_and_a_hint(status: int) -> None:
    error = explain_status(httpx2.Response(status), "http://h/x")
    assert str(status) in error.message
    assert error.hint
    assert error.where == "http://h/x"
    assert isinstance(error, TransientError) == (status in (408, 425, 429) or status >= 500)


def test_retry_after_is_seconds_or_a_date() -> None:
    assert parse_retry_after("7") == 7
    assert parse_retry_after(None) is None
    assert parse_retry_after("soon") is None
    then = datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=30)
    assert 27 < (parse_retry_after(email.utils.format_datetime(then, usegmt=True)) or 0) <= 30
    assert parse_retry_after("Wed, 21 Oct 2015 07:28:00 GMT") == 0


def test_each_transport_error_has_a_message() -> None:
    for error, what in {
        httpx2.ConnectTimeout("x"): "cannot reach h: connection timed out",
        httpx2.ReadTimeout("x"): "read timed out",
        httpx2.RemoteProtocolError("peer closed"): "connection lost: peer closed",
        httpx2.ReadError(""): "connection lost: ReadError",
        httpx2.ProxyError("407 Proxy Authentication Required"): "the proxy refuses: 407 Proxy Auth",
        httpx2.ConnectError("[SSL: CERTIFICATE_VERIFY_FAILED] expired"): "the server's certificate is not trusted",
    }.items():
        told = explain_transport_error(error, "http://h/x")
        assert told.message.startswith(what)
        assert told.hint


def test_disk_errors() -> None:
    assert explain_disk_error(OSError(errno.ENOSPC, "No space left"), Path("/d/x")).message == "the disk is full"
    assert (
        explain_disk_error(OSError(errno.EACCES, "Permission denied"), Path("/d/x")).message
        == "cannot write: Permission denied"
    )
