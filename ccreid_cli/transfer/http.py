"""One HTTP GET that cannot hold its caller up, whatever the server does."""

from __future__ import annotations

import queue
import re
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from urllib.parse import urljoin, urlsplit

import requests
import urllib3.exceptions

from ccreid_cli.core.version import __version__

CHUNK_BYTES = 256 * 1024
MAX_REDIRECTS = 10
QUEUED_CHUNKS = 32
RETRIED_STATUS = frozenset({408, 425, 429, 500, 502, 503, 504})


class SourceFailed(Exception):
    """This source will not give the file, now or on another try."""


class TryAgain(Exception):
    """This try failed, another one may not.

    Args:
        reason: What happened, in plain words.
        retry_after: Seconds that the server asked to be left alone, if it did.
    """

    def __init__(self, reason: str, retry_after: float | None = None) -> None:
        super().__init__(reason)
        self.retry_after = retry_after


class NameUnknown(TryAgain):
    """The server's or the proxy's name has no address, which seconds later it seldom has."""


class RangeUnusable(TryAgain):
    """The server's idea of the rest of the file does not fit what has arrived: ask for the whole file."""


@dataclass(frozen=True)
class Answer:
    """The head of a server's final answer.

    Attributes:
        status: HTTP status, after redirects.
        headers: Header fields; look-up ignores case.
        url: Where the answer came from, after redirects.
    """

    status: int
    headers: Mapping[str, str]
    url: str

    @property
    def status_text(self) -> str:
        """The status with its name, such as "404 Not Found"."""
        try:
            return f"{self.status} {HTTPStatus(self.status).phrase}"
        except ValueError:
            return str(self.status)

    @property
    def body_bytes(self) -> int | None:
        """The declared length of the body, or None where none is declared."""
        declared = self.headers.get("Content-Length")
        if declared is None or self.is_chunked:
            return None
        if not re.fullmatch(r"\d{1,18}", declared, re.ASCII):
            raise SourceFailed(f'sent "Content-Length: {declared[:40]}", which is not a length')
        return int(declared)

    @property
    def is_chunked(self) -> bool:
        """Whether the body marks its own end, so that a cut shows."""
        return "chunked" in self.headers.get("Transfer-Encoding", "").lower()

    @property
    def content_range(self) -> tuple[int, int, int | None] | None:
        """First byte, last byte and total of ``Content-Range``; None where it is absent or malformed."""
        found = re.fullmatch(
            r"bytes (\d{1,18})-(\d{1,18})/(\d{1,18}|\*)", self.headers.get("Content-Range", "").strip(), re.ASCII
        )
        if not found:
            return None
        first, last, total = found.groups()
        return int(first), int(last), None if total == "*" else int(total)

    @property
    def retry_after(self) -> float | None:
        """Seconds to wait by ``Retry-After`` (a number or a date), or None."""
        value = self.headers.get("Retry-After", "").strip()
        if re.fullmatch(r"\d{1,9}", value, re.ASCII):
            return float(value)
        try:
            when = parsedate_to_datetime(value)
        except (ValueError, TypeError, OverflowError):
            return None
        now = datetime.now(UTC) if when.tzinfo else datetime.now(UTC).replace(tzinfo=None)
        return max(0.0, (when - now).total_seconds())


def shown(url: str) -> str:
    """Return `url` fit for a message or a file: without user name and password."""
    return re.sub(r"^([^/?#]*//)[^/?#]*@", r"\1", url)


def address_problem(url: str) -> str | None:
    """Say why `url` may not be fetched, or None: only http and https addresses with a host may."""
    try:
        parts = urlsplit(url)
        scheme, host = parts.scheme.lower(), parts.hostname
    except ValueError:
        return "is not a valid address"
    if scheme not in ("http", "https"):
        return f'starts with "{scheme}:"' if scheme else "has no http:// or https:// in front"
    return None if host else "names no host"


def next_hop(url: str, location: str) -> str:
    """Return the address that a redirect from `url` to `location` leads to.

    Raises:
        SourceFailed: It leads away from http and https, or from https down to http.
    """
    try:
        target = urljoin(url, location)
    except ValueError:
        target = location
    problem = address_problem(target)
    if problem:
        raise SourceFailed(f"redirects to {shown(target)[:200]!r}, which {problem}; only http and https are followed")
    if urlsplit(url).scheme.lower() == "https" and urlsplit(target).scheme.lower() == "http":
        raise SourceFailed(f"redirects from https down to plain http ({shown(target)[:200]}), which is not followed")
    return target


class _Session(requests.Session):
    """A session that leaves redirects alone: requests would read their bodies whole, however long."""

    def get_redirect_target(self, resp: requests.Response) -> None:
        """Say that there is nothing to follow."""


class Exchange:
    """One GET, with its redirects, run by a thread of its own.

    A socket time-out alone does not stop a server that sends one byte now and then, within the headers or the body.
    Here the caller only ever waits on a queue, so a server that stalls or drips loses its caller after `timeout`
    seconds; the thread is left to itself and ends with its socket.

    Args:
        url: Address, http or https.
        headers: Header fields to send beside the usual ones.
        timeout: Seconds without any data after which the try has failed; the head may take twice as long.
        min_rate: Bytes per second that must arrive, measured over waits of `timeout` seconds.
    """

    def __init__(self, url: str, headers: Mapping[str, str], timeout: float, min_rate: float) -> None:
        self._url, self._headers = url, dict(headers)
        self._timeout, self._min_rate = timeout, min_rate
        self._queue: queue.Queue[Answer | bytes | Exception | None] = queue.Queue(QUEUED_CHUNKS)
        self._stopped = threading.Event()

    def __enter__(self) -> Exchange:
        """Send the request."""
        threading.Thread(target=self._run, name="ccreid-download", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        """Let the thread go."""
        self._stopped.set()

    def answer(self) -> Answer:
        """Return the head of the answer.

        Raises:
            TryAgain: The server could not be reached, or did not answer in time.
            SourceFailed: The address, its certificate or its redirects are no good.
        """
        item = self._next(2 * self._timeout, "did not answer")
        assert isinstance(item, Answer), "the head comes first"
        return item

    def chunks(self) -> Iterator[bytes]:
        """Yield the body as it arrives, undecoded.

        Raises:
            TryAgain: The connection was cut, stalled, or is far too slow.
        """
        waited, arrived = 0.0, 0
        while True:
            start = time.monotonic()
            item = self._next(self._timeout, "sent nothing")
            if item is None:
                return
            assert isinstance(item, bytes), "the body comes after the head"
            waited, arrived = waited + time.monotonic() - start, arrived + len(item)
            yield item
            if waited > self._timeout:
                if arrived < self._min_rate * waited:
                    raise TryAgain(f"sent only {arrived} bytes in {waited:.0f} s")
                waited, arrived = 0.0, 0

    def _next(self, seconds: float, silence: str) -> Answer | bytes | None:
        try:
            item = self._queue.get(timeout=seconds)
        except queue.Empty:
            raise TryAgain(f"{silence} for {seconds:g} s") from None
        if isinstance(item, Exception):
            raise explained(item)
        return item

    def _run(self) -> None:
        try:
            with _Session() as session, closing(self._follow(session)) as response:
                self._put(Answer(response.status_code, response.headers, response.url))
                while not self._stopped.is_set() and (chunk := response.raw.read1(CHUNK_BYTES, decode_content=False)):
                    self._put(chunk)
            self._put(None)
        except Exception as error:  # carried over to the caller's thread, which raises it
            self._put(error)

    def _follow(self, session: requests.Session) -> requests.Response:
        """Send the request and go where redirects lead, one checked hop at a time."""
        url = self._url
        # identity: a length or a range of an encoded body says nothing about the file
        headers = {"User-Agent": f"ccreid/{__version__}", "Accept-Encoding": "identity", **self._headers}
        for _ in range(MAX_REDIRECTS + 1):
            response = session.get(url, headers=headers, stream=True, allow_redirects=False, timeout=self._timeout)
            location = requests.Session.get_redirect_target(session, response)
            if location is None or self._stopped.is_set():
                return response
            response.close()
            url = next_hop(url, location)
        raise SourceFailed(f"redirects more than {MAX_REDIRECTS} times")

    def _put(self, item: Answer | bytes | Exception | None) -> None:
        while not self._stopped.is_set():
            try:
                return self._queue.put(item, timeout=0.2)
            except queue.Full:
                continue


def explained(error: Exception) -> Exception:
    """Return what a failure of the HTTP library means for the download, in plain words."""
    if isinstance(error, SourceFailed | TryAgain):
        return error
    if unknown := re.search(r"Failed to resolve '([^']*)'", str(error)):  # within what urllib3 says, and only there
        whose = "the proxy's name" if isinstance(error, requests.exceptions.ProxyError) else "the name"
        return NameUnknown(
            f"could not be reached: {whose} {unknown[1]} cannot be resolved; the network is down, or the name mistyped"
        )
    if isinstance(error, requests.exceptions.ProxyError):
        return TryAgain(f"the proxy did not let it through ({_cause(error)}); see HTTP_PROXY, HTTPS_PROXY, NO_PROXY")
    if isinstance(error, requests.exceptions.SSLError):
        return SourceFailed(
            f"its certificate is not trusted ({_cause(error)}); "
            "behind a company's proxy set REQUESTS_CA_BUNDLE to the company's certificates"
        )
    if isinstance(error, requests.exceptions.Timeout | urllib3.exceptions.TimeoutError):
        return TryAgain("did not answer in time")
    if isinstance(error, requests.exceptions.ConnectionError):
        return TryAgain(f"could not be reached ({_cause(error)})")
    if isinstance(error, urllib3.exceptions.HTTPError | requests.exceptions.ChunkedEncodingError):
        return TryAgain("the connection was cut")
    if isinstance(error, requests.exceptions.RequestException | ValueError | UnicodeError):
        return SourceFailed(f"is not a usable address ({_cause(error)})")
    return TryAgain(f"failed with {_cause(error)}")


def _cause(error: BaseException) -> str:
    """Return the innermost words of an exception chain: the outer ones repeat addresses and object names."""
    seen = 0
    while seen < 8:
        inner = getattr(error, "reason", None) or (error.args[0] if error.args else None)
        if not isinstance(inner, BaseException):
            break
        error, seen = inner, seen + 1
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return re.sub(r"^<?[\w.]+\(.*?\)>?: ", "", str(text))[:200]
