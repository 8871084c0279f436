"""One GET on requests: checked redirects, time-outs that a dripping server cannot stretch, failures in plain words."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import Future
from typing import Any
from urllib.parse import urljoin, urlsplit

import requests
import urllib3
from requests.exceptions import ChunkedEncodingError, ProxyError, SSLError

from ccreid_cli.core.version import __version__

CHUNK_BYTES = 256 * 1024
MAX_REDIRECTS = 10
MIN_RATE = 256.0  # bytes per second: below it a connection is as good as dead
MAX_RETRY_AFTER = 120.0  # seconds


class SourceFailed(Exception):
    """This source will not give the file, now or on another try."""


class TryAgain(Exception):
    """This try failed, another one may not; the server asked to wait for `retry_after` seconds."""

    def __init__(self, reason: str, retry_after: float = 0.0) -> None:
        super().__init__(reason)
        self.retry_after = retry_after


class NameUnknown(TryAgain):
    """The server's or the proxy's name has no address, which seconds later it seldom has."""


def shown(url: str) -> str:
    """Return `url` fit for a message or a file: without user name and password."""
    return re.sub(r"^([^/?#]*//)[^/?#]*@", r"\1", url)


def address_problem(url: str) -> str | None:
    """Say why `url` may not be fetched, or None: only http and https addresses with a host may."""
    try:
        scheme, host = urlsplit(url).scheme, urlsplit(url).hostname
    except ValueError:
        return "is not a valid address"
    if scheme not in ("http", "https"):
        return f'starts with "{scheme}:"' if scheme else "has no http:// or https:// in front"
    return None if host else "names no host"


class _Session(requests.Session):
    """Checks where redirects lead, and does not read the body of one, which may have no end."""

    def get_redirect_target(self, resp: requests.Response) -> str | None:
        location = super().get_redirect_target(resp)
        if location is None:
            return None
        resp.close()
        try:
            target = urljoin(resp.url, location)
        except ValueError:
            target = location
        problem = address_problem(target)
        if urlsplit(resp.url).scheme == "https" and not problem and urlsplit(target).scheme != "https":
            problem = "leads from https down to plain http"
        if problem:
            raise SourceFailed(f'redirects to "{shown(target)[:200]}", which {problem}: not followed')
        return location


def get(url: str, headers: Mapping[str, str], timeout: float) -> requests.Response:
    """Send a GET and return the answer, its body still to be read.

    A thread waits for the head: a socket's time-out ends neither the look-up of a name nor a head that drips.

    Args:
        url: Address, http or https.
        headers: Header fields to send beside the usual ones.
        timeout: Seconds without any data after which the try has failed; the head may take twice as long.

    Raises:
        TryAgain: The server could not be reached, or did not answer in time.
        SourceFailed: The address, its certificate or its redirects are no good.
    """
    session, answer = _Session(), Future[requests.Response]()
    session.max_redirects = MAX_REDIRECTS
    # identity: a length or a range of an encoded body says nothing about the file
    session.headers.update({"User-Agent": f"ccreid/{__version__}", "Accept-Encoding": "identity", **headers})

    def send() -> None:
        try:
            answer.set_result(session.get(url, stream=True, timeout=timeout))
        except Exception as error:
            answer.set_exception(_explained(error))

    threading.Thread(target=send, daemon=True).start()
    try:
        return answer.result(2 * timeout)
    except TimeoutError:
        raise TryAgain(f"did not answer for {2 * timeout:g} s") from None


def chunks(response: requests.Response, timeout: float) -> Iterator[bytes]:
    """Yield the body as it arrives, undecoded.

    Raises:
        TryAgain: The connection was cut, or brought nothing or less than `MIN_RATE` for `timeout` seconds.
    """
    waited, arrived = 0.0, 0
    while True:
        start = time.monotonic()
        try:
            chunk = _read(response.raw, 2 * timeout)
        except Exception as error:
            raise _explained(error) from error
        if not chunk:
            return
        waited, arrived = waited + time.monotonic() - start, arrived + len(chunk)
        yield chunk
        if waited > timeout:
            if arrived < MIN_RATE * waited:
                raise TryAgain(f"sent only {arrived} bytes in {waited:.0f} s")
            waited, arrived = 0.0, 0


def _read(raw: Any, seconds: float) -> bytes:
    """Return the next bytes of urllib3's response `raw`, b"" at its end."""
    if not raw.chunked:
        return bytes(raw.read1(CHUNK_BYTES, decode_content=False))
    # The length of a chunk is read up to the end of its line: no socket's time-out ends one that drips.
    guard = threading.Timer(seconds, raw.shutdown)
    guard.daemon = True
    guard.start()
    try:
        return bytes(raw.read1(CHUNK_BYTES, decode_content=False))
    finally:
        guard.cancel()


def retry_after(response: requests.Response) -> float:
    """Return the seconds to wait by ``Retry-After`` (a number or a date), at most `MAX_RETRY_AFTER`; 0 without it."""
    try:
        return min(urllib3.Retry().parse_retry_after(response.headers.get("Retry-After", "0")), MAX_RETRY_AFTER)
    except (urllib3.exceptions.InvalidHeader, ValueError, OverflowError):
        return 0.0


def _explained(error: Exception) -> SourceFailed | TryAgain:
    """Return what a failure of requests or urllib3 means for the download; the order matters, the classes overlap."""
    if isinstance(error, SourceFailed | TryAgain):
        return error
    cause = _cause(error)
    if unknown := re.search(r"Failed to resolve '([^']*)'", str(error)):  # within what urllib3 says, and only there
        name = f"the {'proxy' if isinstance(error, ProxyError) else 'server'}'s name {unknown[1]} cannot be resolved"
        return NameUnknown(f"could not be reached: {name}; the network is down, or the name mistyped")
    if isinstance(error, ProxyError):
        return TryAgain(f"the proxy did not let it through ({cause}); see HTTP_PROXY, HTTPS_PROXY, NO_PROXY")
    if isinstance(error, SSLError):
        return SourceFailed(
            f"its certificate is not trusted ({cause}); "
            "behind a company's proxy set REQUESTS_CA_BUNDLE to the company's certificates"
        )
    if isinstance(error, requests.TooManyRedirects):
        return SourceFailed(f"redirects more than {MAX_REDIRECTS} times")
    if isinstance(error, requests.Timeout | urllib3.exceptions.TimeoutError):
        return TryAgain("did not answer in time")
    if isinstance(error, requests.ConnectionError):
        return TryAgain(f"could not be reached ({cause})")
    if isinstance(error, urllib3.exceptions.HTTPError | ChunkedEncodingError):
        return TryAgain("the connection was cut")
    if isinstance(error, requests.RequestException | ValueError):
        return SourceFailed(f"is not a usable address ({cause})")
    return TryAgain(f"failed with {cause}")


def _cause(error: BaseException) -> str:
    """Return the innermost words of an exception chain: the outer ones repeat addresses and object names."""
    inner = getattr(error, "reason", None) or next(iter(error.args), None)
    if isinstance(inner, BaseException):
        return _cause(inner)
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return re.sub(r"^<?[\w.]+\(.*?\)>?: ", "", str(text))[:200]
