"""Downloads with the real hub client from a loopback server, in new processes."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from hub_server import HubServer
from huggingface_hub import constants

from fiftyone_hiera.checkpoints import CHECKPOINTS
from fiftyone_hiera.hiera import hub as hub_module
from fiftyone_hiera.hiera.hub import BundledFile, HubFile, link

CONTENT = os.urandom(300_000)
SHA256 = hashlib.sha256(CONTENT).hexdigest()
REVISION = "c" * 40
TOKEN = "hf_secretsecretsecret"

_SCRIPT = """
import sys, time, traceback
from pathlib import Path
from fiftyone_hiera.hiera.hub import DownloadError, HubFile, link, sha256

# The hub's client waits longer before each of its attempts, 23 seconds in all
sleep = time.sleep
time.sleep = lambda seconds: sleep(seconds / 100)

revision, pinned, destination = sys.argv[1:]
file = HubFile("owner/name", revision or None, pinned or None)
try:
    cached = file.fetch(Path(destination))
    file.verify(cached, sha256(cached))
    link(cached.resolve(), Path(destination))
except DownloadError as error:
    sys.exit("".join(traceback.format_exception(error)))
"""


@dataclass
class Client:
    """Downloads in a new process, into its own cache and to its own path."""

    folder: Path
    url: str

    @property
    def destination(self) -> Path:
        return self.folder / "source" / "weights.safetensors"

    @property
    def blobs(self) -> list[Path]:
        return list((self.folder / "hub").rglob("blobs/*"))

    def start(
        self, revision: str | None = REVISION, sha256: str | None = SHA256, **env: str
    ) -> subprocess.Popen[str]:
        environment = {
            **os.environ,
            "HF_ENDPOINT": self.url,
            "HF_HOME": str(self.folder),
            "HF_HUB_OFFLINE": "0",
            "HF_HUB_DOWNLOAD_TIMEOUT": "2",
            "PYTHONPATH": os.pathsep.join(sys.path),
            **env,
        }
        arguments = [revision or "", sha256 or "", str(self.destination)]
        return subprocess.Popen(
            [sys.executable, "-c", _SCRIPT, *arguments],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def run(
        self, revision: str | None = REVISION, sha256: str | None = SHA256, **env: str
    ) -> tuple[int, str]:
        process = self.start(revision, sha256, **env)
        output, _ = process.communicate(timeout=600)
        return process.returncode, output

    def succeeds(self, *args: str | None, **env: str) -> None:
        code, output = self.run(*args, **env)
        assert code == 0, output
        assert self.destination.read_bytes() == CONTENT

    def fails(self, *args: str | None, **env: str) -> str:
        code, output = self.run(*args, **env)
        assert code == 1, output
        assert "DownloadError" in output
        assert output.count("Traceback") == 1, "the cause is in the message already"
        assert "model.safetensors of owner/name" in output
        assert not self.destination.exists()
        return output


@pytest.fixture
def hub() -> Iterator[HubServer]:
    with HubServer(commit=REVISION, files={"model.safetensors": CONTENT}) as server:
        yield server


@pytest.fixture
def client(hub: HubServer, tmp_path: Path) -> Client:
    return Client(tmp_path, hub.url)


def test_complete_download(hub: HubServer, client: Client) -> None:
    client.succeeds()
    assert hub.downloads == 1
    assert [path.name for path in client.destination.parent.iterdir()] == [
        client.destination.name
    ]


def test_is_stored_once(client: Client) -> None:
    client.succeeds()
    (blob,) = client.blobs
    assert client.destination.samefile(blob)


def test_second_download_touches_no_network(hub: HubServer, client: Client) -> None:
    client.succeeds()
    client.destination.unlink()
    hub.requests.clear()
    client.succeeds()
    assert hub.requests == []


def test_unpinned_revision_needs_its_sha256(hub: HubServer, client: Client) -> None:
    client.succeeds(None, SHA256)
    client.destination.unlink()
    client.succeeds(None, SHA256)
    assert hub.downloads == 1


def test_unknown_sha256_is_taken_from_the_hub(client: Client) -> None:
    client.succeeds(REVISION, None)


@pytest.mark.skipif(
    not hasattr(constants, "HF_HUB_DISABLE_SYMLINKS"),
    reason="this huggingface_hub cannot be told to do without",
)
def test_unknown_sha256_without_symbolic_links(hub: HubServer, client: Client) -> None:
    hub.corrupt = True
    client.fails(REVISION, None, HF_HUB_DISABLE_SYMLINKS="1")

    hub.corrupt = False
    client.succeeds(REVISION, None, HF_HUB_DISABLE_SYMLINKS="1")
    assert client.blobs == []

    # Nothing on this disk says what its hash should be
    client.destination.unlink()
    hub.status = 404
    client.fails(REVISION, None, HF_HUB_DISABLE_SYMLINKS="1")


def test_cached_file_is_verified_against_what_the_hub_stated(client: Client) -> None:
    client.succeeds(REVISION, None)
    (blob,) = client.blobs
    client.destination.unlink()
    blob.write_bytes(CONTENT[:-1] + b"x")
    client.fails(REVISION, None)
    client.succeeds(REVISION, None)


def test_wrong_bytes_of_the_right_size_are_removed(hub: HubServer, client: Client) -> None:
    hub.corrupt = True
    output = client.fails()
    assert SHA256 in output
    assert client.blobs == []

    hub.corrupt = False
    client.succeeds()


def test_another_file_than_the_pinned_one_is_refused(client: Client) -> None:
    assert "0" * 64 in client.fails(REVISION, "0" * 64)
    (blob,) = client.blobs
    assert blob.read_bytes() == CONTENT, "an intact file of the shared cache was removed"


def test_cut_connection_leaves_nothing_and_is_resumed(
    hub: HubServer, client: Client
) -> None:
    hub.cut = 1000
    client.fails()

    hub.cut = None
    client.succeeds()


def test_two_first_downloads_at_once(hub: HubServer, client: Client) -> None:
    processes = [client.start() for _ in range(2)]
    for process in processes:
        output, _ = process.communicate(timeout=600)
        assert process.returncode == 0, output

    assert client.destination.read_bytes() == CONTENT


def test_offline_without_cache_says_what_to_place_where(client: Client) -> None:
    output = client.fails(HF_HUB_OFFLINE="1")
    assert REVISION in output
    assert str(client.destination) in output
    assert "HF_HUB_OFFLINE" in output
    assert output.rstrip().endswith(f"To try without a network: {hub_module._BUNDLED}")
    assert isinstance(CHECKPOINTS[hub_module._BUNDLED].file, BundledFile)


def test_offline_with_cache(hub: HubServer, client: Client) -> None:
    client.succeeds()
    client.destination.unlink()
    hub.requests.clear()
    client.succeeds(HF_HUB_OFFLINE="1")
    assert hub.requests == []


@contextlib.contextmanager
def _read_only(folder: Path) -> Iterator[None]:
    """Allow no writing below a folder, not even to root."""
    if os.geteuid() != 0:
        folders = [folder, *(path for path in folder.rglob("*") if path.is_dir())]
        for path in folders:
            path.chmod(0o555)

        yield
        for path in folders:
            path.chmod(0o755)

        return

    bind = ["mount", "--bind", str(folder), str(folder)]
    if (
        shutil.which("mount") is None
        or subprocess.run(bind, capture_output=True).returncode
    ):
        pytest.skip("root writes anywhere, and may not mount here")

    subprocess.run(["mount", "-o", "remount,ro,bind", str(folder)], check=True)
    yield
    subprocess.run(["umount", str(folder)], check=True)


def test_read_only_cache(hub: HubServer, client: Client) -> None:
    client.succeeds()
    client.destination.unlink()
    cache = client.folder / "hub"
    with _read_only(cache):
        with pytest.raises(OSError, match=r"Read-only|Permission"):
            (cache / "new").touch()

        client.succeeds()

    assert hub.downloads == 1


def test_token_opens_and_is_never_printed(hub: HubServer, client: Client) -> None:
    hub.token = TOKEN
    output = client.fails(HF_TOKEN="hf_wrongwrongwrong")
    assert "HF_TOKEN" in output
    assert "wrongwrong" not in output
    client.succeeds(HF_TOKEN=TOKEN)


@pytest.mark.parametrize(
    ("status", "code", "expected"),
    [
        (401, None, "HF_TOKEN"),
        (403, "GatedRepo", "request access"),
        (403, None, "HF_TOKEN"),
        (404, "RepoNotFound", "404"),
        (404, "RevisionNotFound", "404"),
        (500, None, "500"),
    ],
)
def test_refusals_are_explained(
    hub: HubServer, client: Client, status: int, code: str | None, expected: str
) -> None:
    hub.status, hub.error_code = status, code
    assert expected in client.fails(HF_TOKEN=TOKEN)


def test_refusals_leave_the_cached_file_usable(hub: HubServer, client: Client) -> None:
    client.succeeds(None, SHA256)
    client.destination.unlink()
    hub.status = 404
    client.succeeds(None, SHA256)


def test_file_pinned_by_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="neither revision nor sha256"):
        HubFile("owner/name")


@pytest.mark.parametrize(
    ("refused", "same_file", "is_link"),
    [((), True, False), (("link",), True, True), (("link", "symlink"), False, False)],
)
def test_link_falls_back(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    refused: tuple[str, ...],
    same_file: bool,
    is_link: bool,
) -> None:
    def refuse(*_: object) -> None:
        raise OSError("not on this file system")

    for name in refused:
        monkeypatch.setattr(hub_module.os, name, refuse)

    source = tmp_path / "cache" / "blob"
    source.parent.mkdir()
    source.write_bytes(CONTENT)
    destination = tmp_path / "source" / "weights.safetensors"
    for _ in range(2):  # the second replaces the first
        link(source, destination)
        assert destination.read_bytes() == CONTENT
        assert destination.samefile(source) == same_file
        assert destination.is_symlink() == is_link
        assert len(list(destination.parent.iterdir())) == 1
