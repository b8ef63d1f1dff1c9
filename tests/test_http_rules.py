"""The rules of HTTP requests that need no network: URLs, redirects, proxies, cookies, authorities."""

from __future__ import annotations

import os
import ssl
from pathlib import Path

import pytest
import trustme
from hypothesis import given
from hypothesis import strategies as st

from tsupervise._http_cookies import MAX_COOKIE_BYTES, MAX_COOKIES, AffinityCookies
from tsupervise._http_failure import HttpFailure
from tsupervise._http_message import Field, OutgoingRequest
from tsupervise._http_proxies import proxy_for
from tsupervise._http_redirect import next_request
from tsupervise._http_tls import CA_VARIABLES, Trust
from tsupervise._http_url import MAX_CHARACTERS, BadUrl, HttpUrl, UnsupportedScheme, parse_url

# --- URLs --------------------------------------------------------------------------------------------


@pytest.mark.case(324)
@pytest.mark.ours_only("no server is asked")
@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("http://Example.COM", "http://example.com/"),
        (" HTTPS:\\\\example.com:443\\a\\..\\b\t ", "https://example.com/b"),
        ("http:example.com", "http://example.com/"),
        ("http:////example.com:080/", "http://example.com/"),
        ("http://example.com:8080?q#f", "http://example.com:8080/?q"),
        ("http://h/a/./b/%2E%2e/c/.", "http://h/a/c/"),
        ("http://h/../../a/..", "http://h/"),
        (
            'http://h/a b"<>`{}|\\^é?é\'"<>`{}|\\^',
            "http://h/a%20b%22%3C%3E%60%7B%7D|/^%C3%A9?%C3%A9%27%22%3C%3E`{}|\\^",
        ),
        ("http://h/%zz%41", "http://h/%zz%41"),
        ("http://127.1/", "http://127.0.0.1/"),
        ("http://0x7f.1./", "http://127.0.0.1/"),
        ("http://[::0001]:81/", "http://[::1]:81/"),
        ("http://bücher.example/", "http://xn--bcher-kva.example/"),
        ("http://b%C3%BCcher.example/", "http://xn--bcher-kva.example/"),
        ("http://faß.de/", "http://xn--fa-hia.de/"),
        ("http://under_score.example/", "http://under_score.example/"),
        ("http://☃.example/", "http://xn--n3h.example/"),
        ("http://u:p@h@host/", "http://host/"),
    ],
)
def test_urls_are_read_as_browsers_do(text: str, expected: str) -> None:
    """Leniently, into one spelling."""
    assert str(parse_url(text)) == expected


@pytest.mark.case(324)
@pytest.mark.ours_only("no server is asked")
@pytest.mark.parametrize(
    "text",
    [
        *("", "/a", "example.com", "http://", "http:///", "http://:80/", "http://a b/", "http://a%00b/"),
        *("http://h:99999/", "http://h:x/", "http://h:-1/", "http://h:0/", "http://h:" + "9" * 5000),
        *("http://[::1", "http://[::1]x/", "http://[fe80::1%25eth0]/", "http://[]/", "http://1.2.3.4.5/"),
        *("http://h/" + "a" * MAX_CHARACTERS, "http://" + "a." * MAX_CHARACTERS),
        *("http://256.1/", "http://0xfffffffff/", "http://a%zz/", "http://%ff/", "http://\u00ad/"),
    ],
)
def test_what_is_no_url_is_refused_without_a_word_of_it(text: str) -> None:
    """The text says what is wrong, and may be shown to anybody."""
    with pytest.raises(BadUrl) as caught:
        parse_url(text)
    assert len(text) < 4 or text not in str(caught.value)


@pytest.mark.case(324)
@pytest.mark.ours_only("no server is asked")
def test_user_and_password_are_kept_apart_and_are_never_shown() -> None:
    """Decoded; what has them in it has them not in its text."""
    url = parse_url("http://us%20er:pa%3Ass@h/?token=x")
    assert url.user_info == (b"us er", b"pa:ss")
    assert str(url) == "http://h/?token=x"
    assert repr(url) == "HttpUrl(http://h)"


@pytest.mark.case(324)
@pytest.mark.ours_only("no server is asked")
@pytest.mark.parametrize(
    ("location", "expected"),
    [
        *(
            ("", "http://h:81/a/b?q"),
            ("?x", "http://h:81/a/b?x"),
            ("c", "http://h:81/a/c"),
            ("#f", "http://h:81/a/b?q"),
        ),
        *(
            ("/c", "http://h:81/c"),
            ("../c", "http://h:81/c"),
            ("//o/c", "http://o/c"),
            ("\\\\o\\c", "http://o/c"),
        ),
        *(("https://o", "https://o/"), ("http:c", "http://h:81/a/c"), ("./", "http://h:81/a/")),
    ],
)
def test_locations_are_relative_to_where_they_come_from(location: str, expected: str) -> None:
    """Every form of them."""
    assert str(parse_url(location, parse_url("http://h:81/a/b?q"))) == expected


@pytest.mark.case(324)
@pytest.mark.ours_only("no server is asked")
@given(text=st.text(), rest=st.text(alphabet="/\\?#@:[]%.a0 é\t", max_size=30))
def test_any_text_is_a_url_or_an_error(text: str, rest: str) -> None:
    """And a URL that was read is read again as the same, and fits into one line of ASCII."""
    for candidate in (text, f"http://{text}", f"https://h{rest}", f"http:{rest}"):
        try:
            url = parse_url(candidate)
        except (BadUrl, UnsupportedScheme):
            continue
        assert str(url).isascii()
        assert not any(char <= " " for char in str(url))
        assert str(parse_url(str(url))) == str(url)


# --- redirects ---------------------------------------------------------------------------------------


def outgoing(url: str, *names: bytes) -> OutgoingRequest:
    return OutgoingRequest("GET", parse_url(url), tuple(Field(name, b"v") for name in names), b"")


@pytest.mark.case(267)
@pytest.mark.ours_only("no server is asked")
@pytest.mark.parametrize(
    ("location", "referer"),
    [
        ("https://h/b", b"https://h/a?q"),
        ("https://h:444/b", b"https://h/"),
        ("https://o/b", b"https://h/"),
        ("http://h/b", None),
        ("http://h:443/b", None),
    ],
)
def test_a_redirect_to_another_origin_tells_no_more_than_the_origin(
    location: str, referer: bytes | None
) -> None:
    """Scheme, host and port make an origin; the clear learns nothing of what is encrypted."""
    request = outgoing("https://u:p@h/a?q", b"authorization", b"host", b"referer", b"x-k")
    following = next_request(request, 302, [(b"Location", location.encode())])
    assert following is not None
    assert [field.value for field in following.fields if field.name == b"referer"] == (
        [referer] if referer else []
    )
    same = parse_url(location).origin == request.url.origin
    assert following.has_field(b"authorization") == same
    assert following.has_field(b"host") == same
    assert following.has_field(b"x-k")
    assert following.url.user_info is None


@pytest.mark.case(268)
@pytest.mark.ours_only("no server is asked")
def test_a_location_that_is_no_text_leads_nowhere() -> None:
    """The response itself is then the answer; so it is without a location, and with other codes."""
    request = outgoing("http://h/")
    assert next_request(request, 302, [(b"location", b"/\xff")]) is None
    assert next_request(request, 302, []) is None
    assert next_request(request, 304, [(b"location", b"/a")]) is None


# --- proxies -----------------------------------------------------------------------------------------


@pytest.mark.case(322)
@pytest.mark.ours_only("no server is asked")
@pytest.mark.parametrize(
    ("url", "environ", "expected"),
    [
        ("http://h/", {}, None),
        ("http://h/", {"HTTP_PROXY": "p:1"}, "http://p:1/"),
        ("http://h/", {"http_proxy": "http://p:1"}, "http://p:1/"),
        ("http://h/", {"HTTPS_PROXY": "http://p:1"}, None),
        ("http://h/", {"HTTP_PROXY": "", "ALL_PROXY": "https://p:1"}, "https://p:1/"),
        ("https://h/", {"https_proxy": "http://p:1", "ALL_PROXY": "http://q:1"}, "http://p:1/"),
        ("http://h/", {"HTTP_PROXY": "http://p:1", "REQUEST_METHOD": "GET"}, None),
        ("http://h/", {"HTTP_PROXY": "http://p:1", "NO_PROXY": "*"}, None),
        ("http://a.h.example/", {"HTTP_PROXY": "p:1", "no_proxy": "x, H.example"}, None),
        ("http://a.h.example/", {"HTTP_PROXY": "p:1", "NO_PROXY": ".h.example"}, None),
        ("http://ah.example/", {"HTTP_PROXY": "p:1", "NO_PROXY": "h.example,,"}, "http://p:1/"),
        ("http://10.1.2.3/", {"HTTP_PROXY": "p:1", "NO_PROXY": "10.0.0.0/8"}, None),
        ("http://11.1.2.3/", {"HTTP_PROXY": "p:1", "NO_PROXY": "10.0.0.0/8,3"}, "http://p:1/"),
        ("http://[::1]/", {"HTTP_PROXY": "p:1", "NO_PROXY": "[::1]"}, None),
    ],
)
def test_the_proxy_is_the_one_that_the_environment_names(
    url: str, environ: dict[str, str], expected: str | None
) -> None:
    """By scheme, with a variable for all, and with exceptions."""
    proxy = proxy_for(parse_url(url), environ)
    assert (None if proxy is None else str(proxy)) == expected


@pytest.mark.case(322)
@pytest.mark.ours_only("no server is asked")
@pytest.mark.parametrize("value", ["socks5://p:1", "http://", "http://p:99999"])
def test_a_proxy_that_cannot_be_used_fails_the_request(value: str) -> None:
    """It is not gone around; the text names the variable and not its value."""
    with pytest.raises(HttpFailure, match="HTTPS_PROXY") as caught:
        proxy_for(parse_url("https://h/"), {"HTTPS_PROXY": value})
    assert value not in str(caught.value)


# --- cookies -----------------------------------------------------------------------------------------

CHATGPT = parse_url("https://chatgpt.com/")


def kept(url: HttpUrl, *lines: str) -> AffinityCookies:
    cookies = AffinityCookies()
    cookies.remember(url, [(b"Set-Cookie", line.encode()) for line in lines])
    return cookies


@pytest.mark.case(280)
@pytest.mark.ours_only("no server is asked")
@pytest.mark.parametrize(
    ("url", "is_kept"),
    [
        *(
            ("https://chatgpt.com/", True),
            ("https://CHATGPT.com:8443/", True),
            ("https://a.b.chatgpt.com/", True),
        ),
        *(("https://chat.openai.com/", True), ("https://chatgpt-staging.com/", True)),
        *(("https://a.chatgpt-staging.com/", True), ("https://foo.chat.openai.com/", False)),
        *(("https://evilchatgpt.com/", False), ("https://chatgpt.com.evil.example/", False)),
        *(("http://chatgpt.com/", False), ("https://openai.com/", False), ("https://chatgpt.com./", False)),
    ],
)
def test_cookies_are_kept_for_listed_hosts_and_https(url: str, is_kept: bool) -> None:
    """By whole labels of a name."""
    address = parse_url(url)
    cookies = kept(address, "__cf_bm=1; Path=/")
    assert (len(cookies) == 1) == is_kept
    assert cookies.cookie_for(address) == (b"__cf_bm=1" if is_kept else None)


@pytest.mark.case(280)
@pytest.mark.ours_only("no server is asked")
@pytest.mark.parametrize(
    "line",
    [
        *("session=x", "__Host-session=x", "cf_ch=x", "__cf_bm", "__CF_BM=x", "=__cf_bm", ""),
        *("__cf_bm=x; Domain=com", "__cf_bm=x; Domain=other.example", "__cf_bm=x; Max-Age=0"),
        "__cf_bm=" + "x" * MAX_COOKIE_BYTES,
    ],
)
def test_nothing_else_is_kept(line: str) -> None:
    """Neither other names, nor for others, nor what is too long or over already."""
    assert len(kept(CHATGPT, line)) == 0


@pytest.mark.case(280)
@pytest.mark.ours_only("no server is asked")
def test_the_store_is_bounded() -> None:
    """A host that sets ever more names makes it begin anew."""
    cookies = kept(CHATGPT, *(f"cf_chl_{number}=x" for number in range(MAX_COOKIES)))
    assert len(cookies) == MAX_COOKIES
    cookies.remember(CHATGPT, [(b"set-cookie", b"cf_chl_x=x")])
    assert len(cookies) == 0


@pytest.mark.case(280)
@pytest.mark.ours_only("no server is asked")
def test_values_are_sent_back_byte_by_byte() -> None:
    """Whatever encoding they have."""
    cookies = kept(
        CHATGPT, '__cf_bm="a b=é"; path=/; expires=Fri, 01 Jan 2100 00:00:00 GMT; secure; httponly'
    )
    assert cookies.cookie_for(CHATGPT) == '__cf_bm="a b=é"'.encode()


# --- authorities -------------------------------------------------------------------------------------


@pytest.mark.case(323)
@pytest.mark.ours_only("no server is asked")
def test_the_first_variable_that_is_set_names_the_bundle(tmp_path: Path) -> None:
    """It is read again when it has changed, and its errors name it."""
    path = tmp_path / "ca.pem"
    environ = {name: str(tmp_path / "none") for name in CA_VARIABLES[1:]} | {CA_VARIABLES[0]: str(path)}
    trust = Trust(environ)
    with pytest.raises(HttpFailure, match=r"TSUPERVISE_CA_CERTIFICATE .* cannot be read: No such file"):
        trust.context()
    path.write_text("no certificate")
    with pytest.raises(HttpFailure, match=r"TSUPERVISE_CA_CERTIFICATE .* no certificate in PEM"):
        trust.context()
    authority = trustme.CA()
    path.write_bytes(authority.cert_pem.bytes())
    first = trust.context()
    assert authorities(first) == authorities(Trust({}).context()) + 1
    assert trust.context() is first
    path.write_bytes(authority.cert_pem.bytes() + trustme.CA().cert_pem.bytes())
    assert authorities(trust.context()) == authorities(first) + 1
    with pytest.raises(HttpFailure, match=r"SSL_CERT_FILE .* cannot be read: Is a directory"):
        Trust({"SSL_CERT_FILE": os.fspath(tmp_path), "CODEX_CA_CERTIFICATE": ""}).context()


def authorities(context: ssl.SSLContext) -> int:
    return context.cert_store_stats()["x509_ca"]
