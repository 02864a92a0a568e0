"""Download files from the Hugging Face hub and verify them.

huggingface_hub downloads into its shared cache, so ``HF_HOME``, ``HF_TOKEN``,
``HF_ENDPOINT`` and ``HF_HUB_OFFLINE`` have their usual meaning. Weights are used only if
their sha256 matches.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from huggingface_hub import (
    _CACHED_NO_EXIST,
    constants,
    get_hf_file_metadata,
    hf_hub_download,
    hf_hub_url,
    try_to_load_from_cache,
)
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
)

from .atomic import written_aside

WEIGHTS_NAME = "model.safetensors"

# An entry of the zoo whose weights are a BundledFile
_BUNDLED = "hiera-nano-photos"

# huggingface_hub lets the errors of its HTTP client through when a connection
# breaks, and the client has changed over its releases: requests, httpx, httpx2, ...
_ERRORS: tuple[type[Exception], ...] = (HfHubHTTPError.__mro__[1], OSError)

_SHA256 = re.compile(r"[0-9a-f]{64}")


class DownloadError(RuntimeError):
    """Weights could not be downloaded or verified."""


@dataclass(frozen=True)
class HubFile:
    """A file on the hub, pinned by its revision, its sha256 or both.

    Args:
        repo_id: the repository
        revision (None): the full commit hash; None is the head of ``main``, which
            requires a ``sha256``
        sha256 (None): the hash of the file; None is the hash that the hub states for the
            revision
        filename ("model.safetensors"): the path inside the repository
    """

    repo_id: str
    revision: str | None = None
    sha256: str | None = None
    filename: str = WEIGHTS_NAME

    def __post_init__(self) -> None:
        if self.revision is None and self.sha256 is None:
            raise ValueError(f"{self.repo_id} is pinned by neither revision nor sha256")

    def __str__(self) -> str:
        return f"{self.filename} of {self.repo_id} at revision {self.revision or 'main'}"

    @property
    def origin(self) -> str:
        """The name of the weights, which entries of the zoo may share."""
        return self.repo_id

    def cached(self) -> Path | None:
        """Return the path in the hub's cache, if the file is there; it is not verified."""
        cached = self._look_up()
        return Path(cached) if isinstance(cached, str) else None

    def fetch(self, destination: Path | None = None) -> Path:
        """Download the file into the hub's cache, unless it is there.

        Args:
            destination (None): the path that the user may place the file at by
                hand, for the error message

        Returns:
            the path of the file in the cache, not verified

        Raises:
            DownloadError: if the hub refuses or cannot be reached
        """
        # The client sends requests to the hub even for a cached file
        cached = self.cached() if self.revision else None
        if cached is not None:
            return cached

        try:
            return Path(
                hf_hub_download(self.repo_id, self.filename, revision=self.revision)
            )
        except _ERRORS as error:
            raise DownloadError(_explain(self, destination, error)) from None

    def fetch_optional(self) -> Path | None:
        """Download the file, which has a revision, unless the repository has none.

        Returns:
            the path of the file in the cache, or None if the repository has none

        Raises:
            DownloadError: if the hub refuses or cannot be reached
        """
        if self._look_up() is _CACHED_NO_EXIST:
            return None

        try:
            return self.fetch()
        except DownloadError as error:
            cause = error.__context__
            is_missing = isinstance(cause, EntryNotFoundError)
            if is_missing and not isinstance(cause, LocalEntryNotFoundError):
                return None

            raise

    def verify(self, cached: Path, actual: str) -> None:
        """Verify the sha256 of the downloaded file, and remove it if it is damaged.

        Args:
            cached: the path of the file in the cache
            actual: the sha256 of its bytes

        Raises:
            DownloadError: if it is not the expected one
        """
        expected = self.sha256 or self._stated_sha256(cached)
        if actual == expected:
            return

        if _blob(cached).name != actual:
            # The bytes differ even from the ETag that the hub stated: remove them
            _remove(cached)

        raise DownloadError(
            f"{self}: expected sha256 {expected}, received {actual}. The file is refused; "
            "download it again, and report it if this persists"
        )

    def verify_copy(self, path: Path, actual: str) -> None:
        """Accept a copy: FiftyOne's is a link to a verified file, others are the user's."""

    def _look_up(self) -> object:
        return try_to_load_from_cache(self.repo_id, self.filename, revision=self.revision)

    def _stated_sha256(self, cached: Path) -> str:
        # The cache names a blob by its ETag, which for an LFS file is its sha256.
        # A cache without symbolic links has no blobs: ask the hub
        etag = _blob(cached).name
        if not _SHA256.fullmatch(etag):
            url = hf_hub_url(self.repo_id, self.filename, revision=self.revision)
            try:
                etag = get_hf_file_metadata(url).etag or ""
            except _ERRORS as error:
                raise DownloadError(_explain(self, None, error)) from None

        if not _SHA256.fullmatch(etag):
            raise DownloadError(f"{self}: the hub states no sha256 for it (ETag {etag!r})")

        return etag


@dataclass(frozen=True)
class BundledFile:
    """A file that comes with this source; its methods are those of :class:`HubFile`.

    Args:
        path: the path of the file
        sha256: the file's hash
    """

    path: Path
    sha256: str
    revision: ClassVar[None] = None

    @property
    def origin(self) -> str:
        """The name of the weights."""
        return self.path.stem

    def cached(self) -> Path:
        """Return the path of the file."""
        return self.path

    def fetch(self, destination: Path | None = None) -> Path:
        """Return the path of the file."""
        return self.path

    def verify(self, path: Path, actual: str) -> None:
        """Verify the sha256 of the file or a copy."""
        if actual != self.sha256:
            raise DownloadError(
                f"{path}: expected sha256 {self.sha256}, found {actual}. Register this "
                "source again, with overwrite=True"
            )

    verify_copy = verify


def sha256(path: Path) -> str:
    """Return the sha256 of a file as 64 hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def link(source: Path, destination: Path) -> None:
    """Link a file to a destination, which is replaced atomically.

    A hard link where the file system allows it, else a symbolic link, else a copy.
    """
    with written_aside(destination) as staged:
        for make in (os.link, os.symlink, shutil.copyfile):
            try:
                make(source, staged)
                break
            except OSError:
                if make is shutil.copyfile:
                    raise


def _blob(cached: Path) -> Path:
    # One step only: a blob may be a link into a store shared by repositories
    return cached.readlink() if cached.is_symlink() else cached


def _remove(cached: Path) -> None:
    blob = cached.parent / _blob(cached)
    for path in {cached, blob, blob.resolve()}:
        with contextlib.suppress(FileNotFoundError):
            path.unlink()


def _explain(file: HubFile, destination: Path | None, error: Exception) -> str:
    # If nothing is cached, the client wraps the original error
    wrapped = isinstance(error, LocalEntryNotFoundError) and error.__cause__
    cause = wrapped or error
    response = getattr(cause, "response", None)  # None if the hub was not reached
    status = None if response is None else response.status_code

    if destination is not None:
        by_hand = f"It may also be placed by hand at {destination}"
    else:
        revision = f" --revision {file.revision}" if file.revision else ""
        by_hand = (
            f"Where there is a network, `hf download {file.repo_id} {file.filename}"
            f"{revision}` puts it into the hub's cache; copy that to "
            f"{constants.HF_HUB_CACHE}"
        )

    if isinstance(cause, GatedRepoError):
        reason = "request access on the repository's page, with the account of HF_TOKEN"
    elif status in (401, 403) or isinstance(cause, RepositoryNotFoundError):
        reason = f"the hub answered {status}; check the name, and that HF_TOKEN opens it"
    elif status is not None:
        reason = f"the hub answered {status}"
    else:
        # The other lines explain how to debug the hub
        reason = f"{type(cause).__name__}: {str(cause).partition(chr(10))[0]}"
        by_hand = f"{by_hand}. To try without a network: {_BUNDLED}"

    return f"Cannot download {file}: {reason.rstrip('.')}. {by_hand}"
