"""JSON over HTTP with one server that nobody vouches for: whatever comes back is a parsed value or a typed failure.

What is held back: a reply has at most `LARGEST_REPLY` bytes, compressed or not; a redirect is followed within one
server only, since the key travels with the request; a loopback address is asked directly whatever proxy is set; and
the key is taken out of all that the server says before anything is made of it, since servers quote it.

The client is aiohttp's, which costs 0.5 ms of CPU for a small request and 1.9 ms for one with two images of 100 kB,
where the package `openai` on top of it costs 3.0 ms: that counts when judge, trainer and sampler share two cores.
"""

from __future__ import annotations

import ipaddress
import json
import os
import re
import ssl
import zlib
from typing import Any
from urllib.parse import urljoin, urlsplit
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
        self._key = api_key
        if api_key is not None and not (api_key.isascii() and api_key.isprintable()):
            raise UserError("the judge's key (OPENAI_API_KEY) has characters that no header can hold: copy it again")
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
        """`text` with the key taken out."""
        return text if self._key is None or len(self._key) < SHORTEST_SECRET else text.replace(self._key, "[key]")

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
            by_the_proxy = status == 407 or status >= 500
            raise HttpError(status, message + (self._through if by_the_proxy else ""), headers.get("Retry-After"))
        try:
            value = json.loads(text)
            if "\\u" in text or "\\/" in text:  # the key may hide in escapes
                value = json.loads(self.without_key(json.dumps(value, ensure_ascii=False)))
        except (ValueError, RecursionError) as error:
            raise BrokenReply(f"the reply is not JSON: {error}") from None
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
    for _ in range(2):
        for name in ("error", "message", "detail"):
            if isinstance(value, dict) and isinstance(value.get(name), dict | str):
                value = value[name]
    return (value if isinstance(value, str) else text)[:2000]


def _certificates() -> ssl.SSLContext:
    return ssl.create_default_context(
        cafile=os.environ.get("SSL_CERT_FILE") or certifi.where(), capath=os.environ.get("SSL_CERT_DIR")
    )


def _proxy_of(address: str) -> tuple[str | None, str]:
    """The proxy for an address, and how a message names it: that of the environment, none for loopback."""
    parts = urlsplit(address)
    host = parts.hostname or ""
    if _is_loopback(host) or proxy_bypass(parts.netloc):
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
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")
    return address.is_loopback or address.is_unspecified
