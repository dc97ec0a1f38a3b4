import ssl
import time
from pathlib import Path
from typing import Any

import pytest

from lorgnette.errors import LorgnetteError
from lorgnette.hub.line import HttpClient, RetryPolicy
from lorgnette.hub.trouble import SourceError

QUICK = RetryPolicy(
    max_attempts=3, connect_timeout=2, read_timeout=1, initial_pause=0.01, max_pause=0.05, max_retry_after=3
)


def body(url: str, **headers: str) -> bytes:
    with HttpClient(retry_policy=QUICK) as line:
        return line.get_bytes(url, headers)


def test_what_may_pass_is_tried_again(hub: Any, trick: Any) -> None:
    url = hub.put("/a", b"abc")
    hub.trick("/a", trick(status=503), trick(status=429))
    assert body(url) == b"abc"
    assert len(hub.log) == 3
    hub.trick("/a", *[trick(status=500)] * 9)
    with pytest.raises(SourceError, match=r"the server failed \(500\)"):
        body(url)
    assert len(hub.log) == 6


def test_what_will_not_pass_is_asked_once(hub: Any, trick: Any) -> None:
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
    with pytest.raises(SourceError, match=r"a quota is used up \(429\); the server asks to wait 3600 s"):
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
    with pytest.raises(SourceError, match="leads in a circle"):
        body(hub.url + "/c")


def test_a_web_page_instead_of_json_is_named(hub: Any) -> None:
    url = hub.put("/a", b"<html>log in</html>")
    with HttpClient(retry_policy=QUICK) as line, pytest.raises(SourceError, match="answered with a web page"):
        line.get_json(url, {})


def test_an_endless_answer_is_cut(hub: Any) -> None:
    url = hub.put("/a", bytes(3 << 20))
    with HttpClient(retry_policy=QUICK) as line, pytest.raises(SourceError, match="longer than 1 MiB"):
        line.get_bytes(url, {}, max_bytes=1 << 20)


def test_no_network_a_wrong_name_and_no_address() -> None:
    with pytest.raises(SourceError, match=r"no-such-host\.invalid cannot be reached: no network, or no such host"):
        body("http://no-such-host.invalid/x")
    with pytest.raises(SourceError, match="not an address"):
        body("ftp://host/x")


def test_a_proxy_is_used_and_no_proxy_keeps_it_out(hub: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", hub.url)
    monkeypatch.setenv("no_proxy", "")
    hub.put("/through", b"proxied")
    assert body("http://a-host.invalid/through") == b"proxied"
    assert hub.log[0].headers["Host"] == "a-host.invalid"
    monkeypatch.setenv("no_proxy", "a-host.invalid")
    with pytest.raises(SourceError, match="cannot be reached"):
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
    from lorgnette.hub import trouble

    error = ssl.SSLCertVerificationError(1, "certificate verify failed")
    error.verify_message = "self-signed certificate"
    import httpx2

    outer = httpx2.ConnectError("[SSL] certificate verify failed")
    outer.__cause__ = error
    named = trouble.explain_transport_error(outer, "https://host/x")
    assert named.message == "the server's certificate is not trusted: self-signed certificate"
    assert "SSL_CERT_FILE" in str(named.hint)


def test_a_stopped_line_asks_no_more(hub: Any) -> None:
    with HttpClient(retry_policy=QUICK) as line:
        line.stopped.set()
        with pytest.raises(LorgnetteError, match="the download was stopped"):
            line.get_bytes(hub.put("/a", b"abc"), {})
    assert not hub.log
