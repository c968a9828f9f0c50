"""Downloads end: where the server does not answer, drips, or sends more than can be expected."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import os
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import fuzzing
import pooch
import pytest
import samples

from binep.data import downloads, readers
from binep.data.errors import DataError
from binep.data.sources import SOURCES, Files, load, source_of

Answer = Callable[[BaseHTTPRequestHandler], None]


@pytest.fixture
def server() -> Iterator[tuple[str, list[Answer]]]:
    """The address of a server, and how it answers: by the last of these."""
    answers: list[Answer] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            with contextlib.suppress(OSError):  # the client has gone
                answers[-1](self)

        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        http.daemon_threads = True
        thread = threading.Thread(target=http.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{http.server_address[1]}/NAME.gz", answers
        http.shutdown()


def sends(content: bytes) -> Answer:
    def answer(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.end_headers()
        handler.wfile.write(content)

    return answer


def drips(handler: BaseHTTPRequestHandler) -> None:
    handler.send_response(200)
    handler.end_headers()
    for _ in range(60):
        handler.wfile.write(b"x")
        handler.wfile.flush()
        time.sleep(0.05)


def source(url: str, **settings: Any) -> Files:
    mnist = source_of("mnist")
    assert isinstance(mnist, Files)
    return replace(mnist, url=url, **settings)


def refusal(of: Files, root: Path) -> str:
    with fuzzing.time_limit(), pytest.raises(DataError) as error:
        readers.read_files(of, root, True)
    assert "\n" not in str(error.value)
    assert not list(root.rglob("*download*"))  # nothing is left of it
    return str(error.value)


def test_what_is_served_is_kept(server: tuple[str, list[Answer]], tmp_path: Path) -> None:
    files = samples.write_mnist(tmp_path / "made") / "MNIST/raw"
    contents = {f.name: gzip.compress(f.read_bytes(), mtime=0) for f in files.iterdir()}

    def answer(handler: BaseHTTPRequestHandler) -> None:
        sends(contents[Path(handler.path).name.removesuffix(".gz")])(handler)

    url, answers = server
    answers.append(answer)
    names = source(url).files
    md5 = tuple(hashlib.md5(contents[name]).hexdigest() for name in names)
    train, test = readers.read_files(source(url, md5=md5), tmp_path / "data", True)
    assert (len(train), len(test)) == (20, 10)
    found = {p.name for p in (tmp_path / "data").rglob("*") if p.is_file()}
    assert found == {f"{name}.gz" for name in names}
    assert len(list((tmp_path / "data").iterdir())) == 1


def test_a_server_that_drips_is_given_up(
    server: tuple[str, list[Answer]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(downloads, "PATIENCE", 0.2)
    url, answers = server
    answers.append(drips)
    assert "fewer than 1000 bytes a second came" in refusal(source(url), tmp_path)


def test_more_than_is_expected_is_given_up(
    server: tuple[str, list[Answer]], tmp_path: Path
) -> None:
    url, answers = server
    answers.append(sends(bytes(10**6)))
    assert "larger than 1000 bytes" in refusal(source(url, largest=1000), tmp_path)


def test_another_sum_is_refused(server: tuple[str, list[Answer]], tmp_path: Path) -> None:
    url, answers = server
    answers.append(sends(b"something else"))
    assert "hash" in refusal(source(url), tmp_path / "new" / "data")
    assert not (tmp_path / "new").exists()


def test_leftovers_of_killed_processes_are_swept_up(
    server: tuple[str, list[Answer]], tmp_path: Path
) -> None:
    old, new = tmp_path / f"{downloads._BEGUN}old", tmp_path / f"{downloads._BEGUN}new"
    for folder in (old, new):
        folder.mkdir()
        (folder / "part").touch()
    for path in (old / "part", old):
        os.utime(path, (0, 0))
    with downloads._scratch(tmp_path) as scratch:
        assert scratch.is_dir()
    assert [path.name for path in tmp_path.iterdir()] == [new.name]


def test_zeros_that_unzip_to_far_more_are_not_unzipped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No more than the header promises, and one byte, are ever held."""
    raw = samples.write_mnist(tmp_path) / "MNIST/raw"
    images = raw / "train-images-idx3-ubyte"
    (raw / f"{images.name}.gz").write_bytes(gzip.compress(images.read_bytes() + bytes(10**7)))
    images.unlink()
    held = []
    read = readers._read

    def watched(path: Path, most: int = 0) -> bytes:
        held.append(len(content := read(path, most)))
        return content

    monkeypatch.setattr(readers, "_read", watched)
    with pytest.raises(DataError, match=r"holds more bytes of items; its sizes \(20, 28, 28\)"):
        load("mnist", tmp_path, download=False)
    assert max(held) == 16 + 20 * 784 + 1


def test_a_header_that_promises_too_much_is_refused(tmp_path: Path) -> None:
    raw = samples.write_mnist(tmp_path) / "MNIST/raw/train-images-idx3-ubyte"
    content = raw.read_bytes()
    raw.write_bytes(content[:4] + b"\xff\xff\xff\xff" + content[8:])
    with pytest.raises(DataError, match="promises 3367254359280 bytes"):
        load("mnist", tmp_path, download=False)


def test_a_file_larger_than_any_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    samples.write_cifar10(tmp_path)
    monkeypatch.setattr(readers, "_LARGEST", 1000)
    with pytest.raises(DataError, match="more than 1000 bytes"):
        load("cifar10", tmp_path, download=False)


@pytest.mark.parametrize("name", ["mnist", "fashion-mnist", "cifar10"])
def test_every_published_file_has_a_size(name: str) -> None:
    files = source_of(name)
    assert isinstance(files, Files)
    assert files.largest > 10**7


@pytest.mark.parametrize("name", ["mnist", "cifar10"])
def test_a_second_address_is_asked_where_the_first_fails(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And if that fails, too, the error is the first one's."""
    asked: list[str] = []

    def refuse(url: str, *arguments: object, **options: object) -> str:
        asked.append(url)
        raise ConnectionError(f"refusal {len(asked)}")

    monkeypatch.setattr(pooch, "retrieve", refuse)
    with pytest.raises(DataError, match="refusal 1"):
        load(name, tmp_path)
    source = SOURCES[name].build()
    wanted = [address.replace("NAME", source.files[0]) for address in (source.url, *source.mirrors)]
    assert asked == wanted
    assert len(asked) == 2
