"""Downloads that end in a whole, checked file or in a plain message, and that go on where they were cut."""

from __future__ import annotations

import random
import re
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from http import HTTPStatus
from itertools import chain
from pathlib import Path

from requests import Response

from ccreid_cli.core.errors import DataError, NetworkError, UsageError
from ccreid_cli.core.files import free_bytes
from ccreid_cli.core.locks import FileLock
from ccreid_cli.core.reporter import Reporter, SilentReporter
from ccreid_cli.transfer.checks import Expected, byte_text, looks_like_html
from ccreid_cli.transfer.http_get import (
    NameUnknown,
    SourceFailed,
    TryAgain,
    address_problem,
    chunks,
    get,
    retry_after,
    shown,
)
from ccreid_cli.transfer.partial import KEPT, Origin, Partial, disk_errors_explained

MAX_PAUSE = 60.0  # seconds
RETRIED_STATUS = frozenset({408, 425, 429, 500, 502, 503, 504})


def download(
    urls: Sequence[str],
    target: Path,
    *,
    expected_size: int | None = None,
    sha256_prefix: str | None = None,
    md5: str | None = None,
    check: Callable[[Path], None] | None = None,
    reporter: Reporter | None = None,
    retries: int = 5,
    timeout: float = 30.0,
    backoff: float = 1.0,
) -> Path:
    """Fetch `target` from the first of `urls` that gives it whole and right.

    What arrives goes to ``<target>.part`` (``<target>.part.json`` says where it is from), so that a later call goes on
    where this one was stopped, by whatever. A `target` that is there already and passes its checks is not fetched
    again. Of several processes that want the same `target`, one fetches and the others wait for it.

    Proxies, certificates and .netrc are found in the environment as requests does.

    Args:
        urls: Sources, http or https, in the order to try; the one that a part has come from goes first.
        target: The file to make. Its folder is made.
        expected_size: Published length in bytes.
        sha256_prefix: Published SHA-256, or its first digits.
        md5: Published MD5.
        check: Called with the path of the whole file (which still has its temporary name) before it gets its name;
            raises `DataError` when the content is no good.
        reporter: Where progress goes; the total of a bar is 0 where the server does not say the length.
        retries: Further tries at one source after one that failed without progress.
        timeout: Seconds without any data after which a try has failed.
        backoff: Seconds to wait before the second try; doubled for every further one, give or take half.

    Returns:
        `target`.

    Raises:
        UsageError: An address is not http or https.
        NetworkError: No source gave the file; the message has each source and what happened.
        DataError: The disk is full or not writable, or `target` is a folder.
    """
    expected, reporter = Expected(expected_size, sha256_prefix, md5, check), reporter or SilentReporter()
    for url in urls:
        if problem := address_problem(url):
            raise UsageError(
                f'cannot download from "{shown(url)}": it {problem}.',
                "Give an http:// or https:// address, or a file on this machine with `--archive FILE`.",
            )
    if target.is_dir():
        raise DataError(f"{target} is a folder, so {target.name} cannot be downloaded to it.", "Choose another place.")
    lock = target.with_name(f".{target.name}.lock")
    with FileLock(lock, what=f"the download of {target.name}", reporter=reporter):
        problem = expected.problem(target) if target.exists() else "is not there"
        if target.exists() and problem:
            reporter.warning(f"{target} {problem}: fetching it again.")
        if problem:
            _Download(Partial(target), expected, reporter, retries, timeout, backoff).run(urls)
    return target


@dataclass
class _Download:
    """One file on its way; arguments as of `download`."""

    partial: Partial
    expected: Expected
    reporter: Reporter
    retries: int
    timeout: float
    backoff: float

    def run(self, urls: Sequence[str]) -> None:
        """Try the sources one after another until the file is there."""
        self._need_room(self.expected.size)
        failures: list[str] = []
        origin = self.partial.origin
        for url in sorted(urls, key=lambda url: origin is None or shown(url) != origin.url):
            try:
                self._fetch_checked(url)
                return self.partial.publish()
            except SourceFailed as problem:
                failures.append(f"{shown(url)} {problem}")
                self.reporter.warning(f"{failures[-1]}.")
        tried = "\n".join(f"  {failure}" for failure in failures) or "  no source is known"
        raise NetworkError(
            f"could not download {self.partial.target.name}:\n{tried}",
            f"Try again later. {f'{KEPT} ' if self.partial.length else ''}Behind a proxy set HTTPS_PROXY and "
            f"REQUESTS_CA_BUNDLE. Or get the file in a browser and save it as {self.partial.target} or pass it with "
            "`--archive FILE`.",
        )

    def _fetch_checked(self, url: str) -> None:
        """Get the whole file from one source; a second time where the first one does not pass its checks."""
        for is_last in (False, True):
            self._fetch(url)
            problem = self.expected.problem(self.partial.path)
            if problem is None:
                return
            self.partial.discard()
            if is_last:
                raise SourceFailed(f"gave a file that {problem}")
            self.reporter.warning(f"what came from {shown(url)} {problem}: fetching it again from the start.")

    def _fetch(self, url: str) -> None:
        """Get all bytes from one source, in as many tries as it takes."""
        can_resume = self.partial.resume_headers(shown(url), self.expected.has_digest)
        failures, best = 0, self.partial.length if can_resume else 0
        while True:
            try:
                return self._receive(url)
            except TryAgain as problem:
                # A flaky line may take any number of tries, as long as each brings one per cent or one MB.
                size = self.partial.origin.size if self.partial.origin else None
                is_progress = self.partial.length - best >= min(2**20, max(1, (size or 2**30) // 100))
                failures, best = 1 if is_progress else failures + 1, max(best, self.partial.length)
                self._pause(url, problem, failures)

    def _pause(self, url: str, problem: TryAgain, failures: int) -> None:
        """Wait before the next try, or give the source up after too many."""
        # A name that gave bytes before is right: the network is away, as a flaky line is.
        is_wrong_name = isinstance(problem, NameUnknown) and not self.partial.length
        retries = min(self.retries, 1) if is_wrong_name else self.retries
        if failures > retries:
            raise SourceFailed(f"{problem} ({failures} times)" if failures > 1 else str(problem))
        seconds = min(self.backoff * 2 ** (failures - 1) * random.uniform(0.5, 1.5), MAX_PAUSE)
        seconds = max(seconds, problem.retry_after)
        again = f"trying again in {seconds:.0f} s (try {failures + 1} of {retries + 1})"
        self.reporter.warning(f"{shown(url)} {problem}; {again}.")
        time.sleep(seconds)

    def _receive(self, url: str) -> None:
        """Send one request and store what comes; returns when the file is whole."""
        headers, known = self.partial.resume_headers(shown(url), self.expected.has_digest), self.partial.origin
        if headers and known and known.size == self.partial.length:
            return
        with get(url, headers, self.timeout) as response:
            etag, last_modified = (response.headers.get(name, "") for name in ("ETag", "Last-Modified"))
            origin = Origin(shown(url), etag, last_modified)
            offset, size = self._judge(response, origin, self.partial.length if headers else 0)
            if self.expected.size not in (None, size or self.expected.size):
                raise SourceFailed(f"has a file of {size:,} bytes instead of {self.expected.size:,}")
            body = chunks(response, self.timeout)
            start = next(body, b"")
            # A log-in page or captive portal must not cost what has arrived: looked at before the part is touched.
            claims_html = "html" in response.headers.get("Content-Type", "") and start.lstrip().startswith(b"<")
            if offset == 0 and (claims_html or looks_like_html(start)):
                raise SourceFailed("sent a web page instead of the file")
            self._need_room(size)
            if offset == 0:
                self.partial.restart(replace(origin, size=size))
            self._store(chain([start], body), offset, size or self.expected.size)

    def _judge(self, response: Response, origin: Origin, asked: int) -> tuple[int, int | None]:
        """Return where in the file the body of an answer begins, and the size of the file if it is told.

        `asked` is the position from which the missing bytes were asked, 0 where the whole file was.
        """
        status = response.status_code
        answer = f"answered {status} {HTTPStatus(status).phrase if status in set(HTTPStatus) else ''}".rstrip()
        if status == 200:
            return 0, self._size_of_whole(response)
        if status == 206 and asked and (size := self._size_by_range(response, origin, asked)):
            return asked, size
        if status in (206, 416) and asked:
            self.partial.discard()
            raise TryAgain(f"{answer}, but not with the rest of this file: starting over")
        raise TryAgain(answer, retry_after(response)) if status in RETRIED_STATUS else SourceFailed(answer)

    def _size_by_range(self, response: Response, origin: Origin, asked: int) -> int | None:
        """Return the length of the file that an answer 206 tells, or None where its body is not the rest of ours."""
        field, known = response.headers.get("Content-Range", ""), self.partial.origin
        found = re.fullmatch(r"bytes (\d{1,18})-(\d{1,18})/(\d{1,18})", field.strip(), re.ASCII)
        if known is None or found is None or "Content-Encoding" in response.headers:
            return None
        first, last, size = map(int, found.groups())
        length_fits = response.raw.length_remaining in (None, last - first + 1) and known.size in (None, size)
        tags = (known.etag, origin.etag), (known.last_modified, origin.last_modified)
        is_changed = known.url == origin.url and any(old and new and old != new for old, new in tags)
        return size if first == asked and length_fits and not is_changed else None

    def _size_of_whole(self, response: Response) -> int | None:
        """Return the length of the file that an answer 200 tells, if it does."""
        encoding = response.headers.get("Content-Encoding", "identity").strip().lower()
        # Some servers say gzip of every gzip file that they hold: then the body is the file.
        is_gzip_file = self.partial.target.suffix.lower() in (".gz", ".tgz") and encoding in ("gzip", "x-gzip")
        if encoding != "identity" and not is_gzip_file:
            raise SourceFailed(f'sent the file as "Content-Encoding: {encoding[:40]}", which was not asked for')
        size: int | None = response.raw.length_remaining
        if size == 0:
            raise SourceFailed("sent an empty file")
        known = self.expected
        if not (size or response.raw.chunked or known.size or known.has_digest or known.check):
            raise SourceFailed("does not say how long the file is, so a cut one could not be told from a whole one")
        return size

    def _store(self, body: Iterator[bytes], offset: int, size: int | None) -> None:
        """Append a body to the part; unbuffered, so that a kill loses nothing that has arrived."""
        stored, end = offset, size or 2**63
        name = f"downloading {self.partial.target.name}"
        with disk_errors_explained(self.partial.path, KEPT):
            file = self.partial.path.open("ab", buffering=0)
        with file, self.reporter.task(name, size or 0, unit="B", done=offset) as task:
            for chunk in body:
                stored += len(chunk)
                if stored > end:
                    break
                task.advance(len(chunk))
                with disk_errors_explained(self.partial.path, KEPT):
                    while chunk:
                        chunk = chunk[file.write(chunk) :]
        if stored > end:
            self.partial.discard()
            raise TryAgain(f"sent more than the {end - offset:,} bytes that it should: starting over")
        if stored < (size or 1):
            raise TryAgain(f"the connection was cut after {stored - offset:,} bytes")

    def _need_room(self, size: int | None) -> None:
        """Refuse to begin what the disk cannot hold."""
        name, folder = self.partial.target.name, self.partial.target.parent
        missing, free = (size or 0) - self.partial.length, free_bytes(folder)
        if missing > free:
            raise DataError(
                f"{name} needs {byte_text(missing)}, and the disk of {folder} has only {byte_text(free)} free.",
                f"Free some space on that disk, or choose a folder on another one. {KEPT}",
            )
