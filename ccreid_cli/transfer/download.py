"""Downloads that end in a whole, checked file or in a plain message, and that go on where they were cut."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from ccreid_cli.core.errors import DataError, NetworkError, UsageError
from ccreid_cli.core.files import free_bytes
from ccreid_cli.core.locks import FileLock
from ccreid_cli.core.reporter import Reporter, SilentReporter
from ccreid_cli.transfer.answers import Body, body_of
from ccreid_cli.transfer.checks import Expected, byte_text, looks_like_html
from ccreid_cli.transfer.http import (
    Exchange,
    NameUnknown,
    RangeUnusable,
    SourceFailed,
    TryAgain,
    address_problem,
    shown,
)
from ccreid_cli.transfer.partial import KEPT, Partial

MIN_RATE = 256.0  # bytes per second: below it a connection is as good as dead
LONGEST_PAUSE = 60.0
LONGEST_RETRY_AFTER = 120.0
# A try that brought this much is progress: a flaky line may need any number of them.
PROGRESS_BYTES = 1024 * 1024
PROGRESS_SHARE = 0.01


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
    min_rate: float = MIN_RATE,
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
        sha256_prefix: Published SHA-256, or its first digits (6 or more).
        md5: Published MD5.
        check: Called with the path of the whole file (which still has its temporary name) before it gets its name;
            raises `DataError` when the content is no good.
        reporter: Where progress goes; the total of a bar is 0 where the server does not say the length.
        retries: Further tries at one source after one that failed without progress.
        timeout: Seconds without any data after which a try has failed.
        backoff: Seconds to wait before the second try; doubled for every further one, give or take half.
        min_rate: Bytes per second below which a connection counts as stalled.

    Returns:
        `target`.

    Raises:
        UsageError: An address is not http or https.
        NetworkError: No source gave the file; the message has each source and what happened.
        DataError: The disk is full or not writable, or `target` is a folder.
    """
    expected = Expected(expected_size, sha256_prefix, md5, check)
    reporter = reporter or SilentReporter()
    _refuse_bad_addresses(urls)
    if target.is_dir():
        raise DataError(f"{target} is a folder, so {target.name} cannot be downloaded to it.", "Choose another place.")
    lock = target.with_name(f".{target.name}.lock")
    with FileLock(lock, what=f"the download of {target.name}", reporter=reporter):
        if _is_there(target, expected, reporter):
            return target
        job = _Download(Partial(target), expected, reporter, retries, timeout, backoff, min_rate)
        job.run(urls)
    return target


def _refuse_bad_addresses(urls: Sequence[str]) -> None:
    for url in urls:
        problem = address_problem(url)
        if problem:
            raise UsageError(
                f'cannot download from "{shown(url)}": it {problem}.',
                "Give an http:// or https:// address, or a file on this machine with `--archive FILE`.",
            )


def _is_there(target: Path, expected: Expected, reporter: Reporter) -> bool:
    if not target.exists():
        return False
    problem = expected.problem(target, reporter)
    if problem:
        reporter.warning(f"{target} {problem}: fetching it again.")
    return problem is None


@dataclass
class _Download:
    """One file on its way; arguments as of `download`."""

    partial: Partial
    expected: Expected
    reporter: Reporter
    retries: int
    timeout: float
    backoff: float
    min_rate: float

    @property
    def name(self) -> str:
        return self.partial.target.name

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
        raise self._no_source_left(failures)

    def _fetch_checked(self, url: str) -> None:
        """Get the whole file from one source; a second time where the first one does not pass its checks."""
        for is_last in (False, True):
            self._fetch(url)
            problem = self.expected.problem(self.partial.path, self.reporter)
            if problem is None:
                return
            self.partial.discard()
            if is_last:
                raise SourceFailed(f"gave a file that {problem}")
            self.reporter.warning(f"what came from {shown(url)} {problem}: fetching it again from the start.")

    def _fetch(self, url: str) -> None:
        """Get all bytes from one source, in as many tries as it takes."""
        failures, best, whole = 0, self._usable_length(url), False
        while not self._is_complete(url):
            try:
                self._receive(url, whole)
                reason = TryAgain("sent less than the rest of the file")
            except RangeUnusable as problem:  # asking for the whole file cannot end here again
                self.reporter.warning(f"{shown(url)} {problem}: starting over.")
                whole = True
                continue
            except TryAgain as problem:
                reason = problem
            if self._is_complete(url):
                return
            whole, length = False, self._usable_length(url)
            failures = 1 if self._is_progress(length - best) else failures + 1
            best = max(best, length)
            # A name that gave bytes before is right: the network is away, as a flaky line is.
            retries = min(self.retries, 1) if isinstance(reason, NameUnknown) and not best else self.retries
            if failures > retries:
                raise SourceFailed(f"{reason} ({failures} times)" if failures > 1 else str(reason))
            self._pause(url, reason, failures, retries)

    def _receive(self, url: str, whole: bool) -> None:
        """Send one request and store what comes."""
        headers = {} if whole else self.partial.resume_headers(url, self.expected.has_digest)
        offset = self.partial.length if headers else 0
        with Exchange(url, headers, self.timeout, self.min_rate) as exchange:
            answer = exchange.answer()
            body = body_of(answer, url, self.partial, offset, self.expected)
            chunks = exchange.chunks() if body.length != 0 else iter(())
            start = next(chunks, b"")
            # A log-in page or captive portal must not cost what has arrived: looked at before the part is touched.
            claims_html = "html" in answer.headers.get("Content-Type", "") and start.lstrip().startswith(b"<")
            if body.offset == 0 and (claims_html or looks_like_html(start)):
                raise SourceFailed("sent a web page instead of the file")
            self._need_room(body.origin.size)
            if body.offset == 0:
                self.partial.restart(body.origin)
            elif body.origin != self.partial.origin:
                self.partial.describe(body.origin)
            self._store(chain([start], chunks), body)

    def _store(self, chunks: Iterator[bytes], body: Body) -> None:
        stored = 0
        percent = f" (from {100 * body.offset // body.origin.size} %)" if body.offset and body.origin.size else ""
        with (
            self.partial.writer() as writer,
            self.reporter.task(f"downloading {self.name}{percent}", body.length or 0, unit="B") as task,
        ):
            for chunk in chunks:
                stored += len(chunk)
                if body.length is not None and stored > body.length:
                    break
                writer.write(chunk)
                task.advance(len(chunk))
        if body.length is None and stored:
            self.partial.settle_size()
        elif body.length is not None and stored > body.length:
            self.partial.discard()
            problem = f"sent more than the {body.length:,} bytes that it should"
            raise RangeUnusable(problem) if body.offset else SourceFailed(problem)
        elif body.length is None or stored < body.length:
            raise TryAgain(f"the connection was cut after {stored:,} bytes")

    def _is_complete(self, url: str) -> bool:
        return self.partial.is_complete(url, self.expected.has_digest)

    def _usable_length(self, url: str) -> int:
        return self.partial.length if self.partial.fits(url, self.expected.has_digest) else 0

    def _is_progress(self, gained: int) -> bool:
        size = self.partial.origin.size if self.partial.origin else None
        return gained >= min(PROGRESS_BYTES, PROGRESS_SHARE * size if size else PROGRESS_BYTES)

    def _pause(self, url: str, reason: TryAgain, failures: int, retries: int) -> None:
        seconds = min(self.backoff * 2 ** (failures - 1) * random.uniform(0.5, 1.5), LONGEST_PAUSE)
        seconds = max(seconds, min(reason.retry_after or 0.0, LONGEST_RETRY_AFTER))
        self.reporter.warning(
            f"{shown(url)} {reason}; trying again in {seconds:.0f} s (try {failures + 1} of {retries + 1})."
        )
        time.sleep(seconds)

    def _need_room(self, size: int | None) -> None:
        """Refuse to begin what the disk cannot hold."""
        folder = self.partial.target.parent
        missing, free = (size or 0) - self.partial.length, free_bytes(folder)
        if missing > free:
            raise DataError(
                f"{self.name} needs {byte_text(missing)}, and the disk of {folder} has only {byte_text(free)} free.",
                f"Free some space on that disk, or choose a folder on another one. {KEPT}",
            )

    def _no_source_left(self, failures: list[str]) -> NetworkError:
        tried = "\n".join(f"  {failure}" for failure in failures) or "  no source is known"
        kept = f" {KEPT}" if self.partial.length else ""
        return NetworkError(
            f"could not download {self.name}:\n{tried}",
            f"Try again later.{kept} Behind a proxy set HTTPS_PROXY and REQUESTS_CA_BUNDLE. Or get the file in a "
            f"browser and save it as {self.partial.target} or pass it with `--archive FILE`.",
        )
