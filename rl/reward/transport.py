"""JSON over HTTP with one server that nobody vouches for: whatever comes back is a parsed value or a typed failure.

What is held back: a reply has at most `LARGEST_REPLY` bytes, compressed or not; a redirect is followed within one
server only, since the key travels with the request; a loopback address is asked directly whatever proxy is set; and
the key is taken out of all that the server says before anything is made of it, since servers quote it.

The client is aiohttp's, which costs 0.5 ms of CPU for a small request and 1.9 ms for one with two images of 100 kB,
where the package `openai` on top of it costs 3.0 ms: that counts when judge, trainer and sampler share two cores.
"""

from __future__ import annotations

import base64
import html
import ipaddress
import json
import os
import re
import socket
import ssl
import zlib
from typing import Any
from urllib.parse import quote, urljoin, urlsplit
from urllib.request import proxy_bypass

import aiohttp
import certifi

from emu3.errors import UserError

LARGEST_REPLY = 2 * 2**20
"""Bytes. A reply of 1,400 tokens has about 10,000; what JSON makes of a hostile one is 30 times as large."""
MOST_REDIRECTS = 3
SHORTEST_SECRET = 8
"""A shorter key is no secret, and taking it out would take apart what the server says."""


class HttpError(Exception):
    """A status of 300 or more. message: the server's words. retry_after: its header, if there is one."""

    def __init__(self, status: int, message: str, retry_after: str | None = None) -> None:
        super().__init__(f"HTTP {status}: {message}")
        self.status = status
        self.retry_after = retry_after


class BrokenReply(Exception):
    """No connection, no HTTP, no JSON, or none of the expected form. The message says which."""


class Transport:
    """Requests to the server at `address`, such as http://127.0.0.1:4877/v1. For one event loop; close it there.

    Raises `UserError` for a key that no header can hold and for a proxy that cannot be used.
    """

    def __init__(self, address: str, api_key: str | None) -> None:
        self.address = address.rstrip("/")
        self._proxy, self._through = _proxy_of(address)
        if api_key is not None and not (api_key.isascii() and api_key.isprintable()):
            raise UserError("the judge's key (OPENAI_API_KEY) has characters that no header can hold: copy it again")
        self._secrets = None if api_key is None or len(api_key) < SHORTEST_SECRET else _spellings_of(api_key)
        self._headers = {"Accept-Encoding": "identity", "Content-Type": "application/json"}
        # A server of one's own needs no key; some want to see one.
        self._headers["Authorization"] = f"Bearer {api_key or 'none-needed'}"
        self._session: aiohttp.ClientSession | None = None

    async def get(self, path: str) -> Any:
        """What the server has under `path`, parsed. Raises `HttpError` or `BrokenReply`."""
        return await self._request("GET", path, None)

    async def post(self, path: str, body: dict[str, Any]) -> Any:
        """What the server replies to `body`, parsed. Raises `HttpError` or `BrokenReply`."""
        return await self._request("POST", path, json.dumps(body).encode())

    async def aclose(self) -> None:
        if self._session is not None:
            await self._session.close()

    def without_key(self, text: str) -> str:
        """`text` with the key taken out, however it is spelled."""
        return text if self._secrets is None else self._secrets.sub("[key]", text)

    async def _request(self, method: str, path: str, body: bytes | None) -> Any:
        url = self.address + path
        try:
            for _ in range(MOST_REDIRECTS + 1):
                status, headers, data = await self._exchange(method, url, body)
                if status not in (301, 302, 303, 307, 308):
                    break
                target = urljoin(url, headers.get("Location", ""))
                if urlsplit(target)[:2] != urlsplit(url)[:2]:
                    shown = self.without_key(re.sub("//[^/]*@", "//", target).partition("?")[0])
                    raise HttpError(status, f"a redirect to {shown} is not followed: name the judge's own address")
                url = target
        except (HttpError, BrokenReply):
            raise
        except Exception as error:  # whatever can happen between here and there; the list is open
            message = self.without_key(str(error) or type(error).__name__)
            raise BrokenReply(f"{self.address}{self._through}: {message}") from error
        text = self._decoded(data)
        if status >= 300:
            message = self.without_key(_message_of(text)) or "no reason given"
            by_the_proxy = status == 407 or status >= 500 or not text.lstrip().startswith(("{", "["))
            raise HttpError(status, message + (self._through if by_the_proxy else ""), headers.get("Retry-After"))
        try:
            value = json.loads(text)
            if "\\u" in text or "\\/" in text:  # the key may hide in escapes
                value = json.loads(self.without_key(json.dumps(value, ensure_ascii=False)))
        except (ValueError, RecursionError) as error:
            raise BrokenReply(f"the reply is not JSON: {error}; it begins {text[:60]!a}") from None
        return value

    async def _exchange(self, method: str, url: str, body: bytes | None) -> tuple[int, Any, bytes]:
        """Status, headers and body, bounded."""
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=0, ssl=_certificates() if url.startswith("https") else True),
                timeout=aiohttp.ClientTimeout(total=None),
                cookie_jar=aiohttp.DummyCookieJar(),
                auto_decompress=False,
            )
        async with self._session.request(
            method, url, data=body, headers=self._headers, allow_redirects=False, proxy=self._proxy
        ) as response:
            data = bytearray()
            async for chunk in response.content.iter_chunked(2**16):
                data += chunk
                if len(data) > LARGEST_REPLY:
                    raise BrokenReply(f"the reply has more than {LARGEST_REPLY} bytes")
            encoding = response.headers.get("Content-Encoding", "identity").lower()
            return response.status, response.headers, _unpacked(bytes(data), encoding)

    def _decoded(self, data: bytes) -> str:
        return self.without_key(data.decode("utf-8-sig", "replace"))


def _unpacked(data: bytes, encoding: str) -> bytes:
    """`data` without its compression, which nobody asked for. Raises `BrokenReply`."""
    if encoding == "identity":
        return data
    if encoding not in ("gzip", "x-gzip", "deflate"):
        raise BrokenReply(f"the reply is packed as {encoding[:40]!r}, which was not asked for")
    try:
        text = zlib.decompressobj(47).decompress(data, LARGEST_REPLY + 1)
    except zlib.error as error:
        raise BrokenReply(f"the reply cannot be unpacked: {error}") from None
    if len(text) > LARGEST_REPLY:
        raise BrokenReply(f"the reply has more than {LARGEST_REPLY} bytes")
    return text


def _message_of(text: str) -> str:
    """What an error's body says, whatever form it has."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return text[:2000]
    return (said_in(value) or text)[:2000]


def said_in(value: Any) -> str:
    """The words of an error in a parsed body, "" where there are none."""
    for _ in range(2):
        for name in ("error", "message", "detail"):
            if isinstance(value, dict) and isinstance(value.get(name), dict | str):
                value = value[name]
    return value if isinstance(value, str) else ""


def _spellings_of(key: str) -> re.Pattern[str]:
    """A key as a header, an address, a page or the HTTP basic scheme would spell it."""
    packed = base64.b64encode(f":{key}".encode()).decode().rstrip("=")
    spellings = {
        key,
        quote(key, safe=""),
        quote(key),
        html.escape(key),
        base64.b64encode(key.encode()).decode(),
        packed,
    }
    return re.compile("|".join(map(re.escape, sorted(spellings, key=len, reverse=True))), re.IGNORECASE)


def _certificates() -> ssl.SSLContext:
    return ssl.create_default_context(
        cafile=os.environ.get("SSL_CERT_FILE") or certifi.where(), capath=os.environ.get("SSL_CERT_DIR")
    )


def _proxy_of(address: str) -> tuple[str | None, str]:
    """The proxy for an address, and how a message names it: that of the environment, none for loopback."""
    parts = urlsplit(address)
    host = parts.hostname or ""
    if _is_loopback(host) or proxy_bypass(parts.netloc) or _in_a_bypassed_network(host):
        return None, ""
    for name in (f"{parts.scheme}_proxy", f"{parts.scheme}_proxy".upper(), "all_proxy", "ALL_PROXY"):
        if proxy := os.environ.get(name):
            proxy = proxy if "://" in proxy else f"http://{proxy}"
            shown = re.sub("//[^/]*@", "//", proxy)
            if urlsplit(proxy).scheme not in ("http", "https"):
                raise UserError(f"the judge would be asked through {shown} ({name}), which is no HTTP proxy: unset it")
            return proxy, f" (through the proxy {shown}, set by {name})"
    return None, ""


def _is_loopback(host: str) -> bool:
    name = host.rstrip(".")
    if name in ("localhost", "ip6-localhost", socket.gethostname().lower()) or name.endswith(".localhost"):
        return True
    address = _ip_address(name)
    return address is not None and (address.is_loopback or address.is_unspecified)


def _ip_address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """An address in any of the spellings that a socket takes, such as 127.1; None for a name."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        try:
            return ipaddress.IPv4Address(socket.inet_aton(host))
        except OSError:
            return None
    return getattr(address, "ipv4_mapped", None) or address


def _in_a_bypassed_network(host: str) -> bool:
    """Whether `NO_PROXY` names a network (10.0.0.0/8) that holds the address; the library knows names and suffixes."""
    address = _ip_address(host)
    for entry in (os.environ.get("no_proxy") or os.environ.get("NO_PROXY") or "").split(","):
        try:
            if address is not None and "/" in entry and address in ipaddress.ip_network(entry.strip(), strict=False):
                return True
        except ValueError:
            continue
    return False
