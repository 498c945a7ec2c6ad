"""Sounds behind addresses: fetched once, asked for again, and told in one sentence where they cannot be had."""

from __future__ import annotations

import hashlib
import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
import soundfile
from conftest import spoken

from csm.data.fields import WrongField
from csm.data.manifest import read_data
from csm.data.patience import Unanswered, in_time
from csm.data.remote import Limits, Remote
from csm.data.sounds import Sounds, sound_name

LIMITS = Limits(size=2_000_000, silence=0.5, total=2.0)


class Server(ThreadingHTTPServer):
    """Serves `files` by path; what was asked for is in `asked`, how it was answered in `answers`."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files: dict[str, bytes] = {}
        self.asked: list[str] = []
        self.answers: list[int] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Handler(BaseHTTPRequestHandler):
    server: Server

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        self.server.asked.append(self.path)
        name = self.path.split("?")[0]
        if hasattr(self, f"do_{name[1:]}"):
            getattr(self, f"do_{name[1:]}")()
        elif (data := self.server.files.get(name)) is None:
            self.answer(404, b"", {})
        elif self.headers["If-None-Match"] == tag(data):
            self.answer(304, b"", {})
        else:
            self.answer(200, data, {"ETag": tag(data)})

    def answer(self, status: int, data: bytes, headers: dict[str, str]) -> None:
        self.server.answers.append(status)
        self.send_response(status)
        for key, value in {"Content-Length": str(len(data)), **headers}.items():
            self.send_header(key, value)
        self.end_headers()
        self.wfile.write(data)

    def do_silent(self) -> None:
        time.sleep(1.5)

    def do_stalled(self) -> None:
        self.answer(200, b"RIFF", {"Content-Length": "100"})
        time.sleep(1.5)

    def do_dripping(self) -> None:
        self.answer(200, b"R", {"Content-Length": "100000"})
        for _ in range(30):
            time.sleep(0.15)
            self.wfile.write(b"x")
            self.wfile.flush()

    def do_huge(self) -> None:
        self.answer(200, b"", {"Content-Length": str(1 << 40)})

    def do_endless(self) -> None:
        self.send_response(200)
        self.end_headers()
        while True:
            self.wfile.write(bytes(1 << 16))

    def do_cut(self) -> None:
        self.answer(200, bytes(1000), {"Content-Length": "5000"})

    def do_chunks(self) -> None:
        self.protocol_version = "HTTP/1.1"
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        self.wfile.write(b"400\r\n" + bytes(100))

    def do_empty(self) -> None:
        self.answer(200, b"", {})

    def do_noise(self) -> None:
        self.wfile.write(b"this is no HTTP at all\r\n\r\n")

    def do_dated(self) -> None:
        date = "Mon, 02 Jan 2023 03:04:05 GMT"
        if self.headers["If-Modified-Since"] == date:
            self.answer(304, b"", {})
        else:
            self.answer(200, b"sound", {"Last-Modified": date, "Content-Type": "audio/x-wav"})

    def do_elsewhere(self) -> None:
        self.answer(302, b"", {"Location": "file:///etc/hostname"})


def tag(data: bytes) -> str:
    return f'"{hashlib.md5(data).hexdigest()}"'


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user"))
    monkeypatch.setenv("no_proxy", "*")


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as running:
        thread = threading.Thread(target=running.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        yield running
        running.shutdown()


@pytest.fixture
def remote(tmp_path: Path) -> Remote:
    return Remote(tmp_path / "cache", LIMITS)


def files_in(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def wave_bytes(folder: Path, seed: int = 0) -> bytes:
    folder.mkdir(parents=True, exist_ok=True)
    soundfile.write(folder / "made.wav", spoken(1.5, seed), 24_000)
    return (folder / "made.wav").read_bytes()


def test_it_is_fetched_once_and_asked_for_again(server: Server, tmp_path: Path) -> None:
    server.files["/a/x.wav"] = b"first"
    first = Remote(tmp_path / "cache").fetch(f"{server.url}/a/x.wav?key=secret")
    assert (first.read_bytes(), first.suffix) == (b"first", ".wav")
    again = Remote(tmp_path / "cache")
    assert again.fetch(f"{server.url}/a/x.wav?key=secret") == first
    assert again.fetch(f"{server.url}/a/x.wav?key=secret") == first
    assert server.answers == [200, 304], "one run asks once for one address"
    server.files["/a/x.wav"] = b"second"
    assert Remote(tmp_path / "cache").fetch(f"{server.url}/a/x.wav?key=secret").read_bytes() == b"second"
    assert all(
        b"secret" not in path.read_bytes() and "secret" not in path.name for path in files_in(tmp_path / "cache")
    )


def test_a_date_stands_in_for_a_tag(server: Server, tmp_path: Path) -> None:
    paths = {Remote(tmp_path / "cache").fetch(f"{server.url}/dated") for _ in range(2)}
    assert server.answers == [200, 304]
    assert [path.suffix for path in paths] == [".wav"]


def test_a_lost_file_or_a_damaged_note_is_fetched_again(server: Server, tmp_path: Path) -> None:
    server.files["/x.wav"] = b"sound"
    fetch = lambda: Remote(tmp_path / "cache").fetch(f"{server.url}/x.wav")  # noqa: E731
    fetch().unlink()
    assert fetch().read_bytes() == b"sound"
    next((tmp_path / "cache").rglob("*.json")).write_text("{")
    assert fetch().read_bytes() == b"sound"
    assert server.answers == [200, 200, 200]


@pytest.mark.parametrize(
    ("path", "says"),
    [
        ("gone.wav", "the server says 404"),
        ("silent", "timed out|nothing came for 0.5 s"),
        ("stalled", "nothing came for 0.5 s"),
        ("dripping", "longer than 2 s"),
        ("huge", "1099512 MB, and 2 MB are the limit"),
        ("endless", "larger than the limit of 2 MB"),
        ("cut", "cut off after 1000 of 5000 bytes"),
        ("chunks", "cannot be had: "),
        ("empty", "it is empty"),
        ("noise", "cannot be had: "),
        ("elsewhere", "the server says 302"),
    ],
)
def test_what_goes_wrong_is_a_sentence_and_leaves_nothing(
    server: Server, remote: Remote, tmp_path: Path, path: str, says: str
) -> None:
    begun = time.monotonic()
    with pytest.raises(WrongField, match=says) as caught:
        remote.fetch(f"{server.url}/{path}?token=secret")
    assert time.monotonic() - begun < 3.5
    assert f"/{path}" in str(caught.value)
    assert "secret" not in str(caught.value)
    assert files_in(tmp_path / "cache") == []


def test_a_server_that_never_answers_is_asked_three_times(remote: Remote) -> None:
    for number in range(5):
        with pytest.raises(WrongField) as caught:
            remote.fetch(f"http://127.0.0.1:1/{number}.wav")
        assert ("has not answered 3 times" in str(caught.value)) == (number >= 3)


def test_a_key_in_an_address_goes_nowhere(server: Server, remote: Remote, tmp_path: Path) -> None:
    with pytest.raises(WrongField) as caught:
        remote.fetch(f"{server.url}/a b.wav?key=secret words")
    assert "secret" not in str(caught.value)
    audio = tmp_path / "x.wav"
    assert sound_name(f"{server.url}/x.wav?key=secret", audio) == f"{server.url}/x.wav"


@pytest.mark.parametrize("url", ["https://", "http://[", "http://a b/x.wav", "https://\u00e9.invalid/\ud800.wav"])
def test_addresses_that_are_none(remote: Remote, url: str) -> None:
    with pytest.raises(WrongField) as caught:
        remote.fetch(url)
    str(caught.value).encode()


def test_stores_through_fsspec(tmp_path: Path) -> None:
    store = fsspec.filesystem("memory")
    store.pipe("/voice/x.wav", b"first")
    fetch = lambda: Remote(tmp_path / "cache", LIMITS).fetch("memory://voice/x.wav")  # noqa: E731
    first = fetch()
    assert (first.read_bytes(), first.suffix) == (b"first", ".wav")
    assert fetch() == first
    store.pipe("/voice/x.wav", b"second, and longer")
    assert fetch().read_bytes() == b"second, and longer"
    with pytest.raises(WrongField, match="there is no such file"):
        Remote(tmp_path / "cache").fetch("memory://voice/gone.wav")
    store.pipe("/voice/big.wav", bytes(3_000_000))
    with pytest.raises(WrongField, match="2 MB are the limit"):
        Remote(tmp_path / "cache", LIMITS).fetch("memory://voice/big.wav")


def test_a_store_without_its_package_names_it(remote: Remote, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "s3fs", None)
    with pytest.raises(WrongField, match=r"s3fs is needed; pip install 'csm-finetune\[s3\]'"):
        remote.fetch("s3://bucket/x.wav")
    with pytest.raises(WrongField, match="names nonsense://x/y"):
        remote.fetch("nonsense://x/y.wav")


def test_patience_ends() -> None:
    assert in_time(lambda: 5, 1) == 5
    with pytest.raises(ZeroDivisionError):
        in_time(lambda: 1 // 0, 1)
    with pytest.raises(Unanswered, match=r"0\.1 s"):
        in_time(lambda: time.sleep(1), 0.1)


def test_several_are_fetched_at_a_time(server: Server, remote: Remote) -> None:
    for number in range(6):
        server.files[f"/{number}.wav"] = b"sound"
    urls = [f"{server.url}/{number}.wav" for number in range(6)]
    sounds = Sounds(Path(), remote)
    sounds.fetch_ahead([*urls, *urls, "here.wav", None, f"{server.url}/gone.wav"])
    assert sorted(server.asked) == sorted([*(f"/{n}.wav" for n in range(6)), "/gone.wav"])
    assert [sounds.find(url).read_bytes() for url in urls] == [b"sound"] * 6
    assert len(server.asked) == 7
    with pytest.raises(WrongField, match="404"):
        sounds.find(f"{server.url}/gone.wav")


@pytest.mark.parametrize("suffix", [".jsonl", ".json", "talk"])
def test_rows_and_turns_may_name_addresses(server: Server, tmp_path: Path, suffix: str) -> None:
    server.files["/x.wav"] = wave_bytes(tmp_path)
    key = "audio_path" if suffix == "talk" else "audio"
    rows = [
        {key: f"{server.url}/{name}", "text": "good morning.", "speaker": 1} for name in ("x.wav", "gone.wav", "x.wav")
    ]
    if suffix == "talk":
        path = tmp_path / "talk.json"
        path.write_text(json.dumps([rows]))
    else:
        path = tmp_path / f"rows{suffix}"
        path.write_text(json.dumps(rows) if suffix == ".json" else "\n".join(map(json.dumps, rows)))
    conversations, faults = read_data([path])
    found = [row for conversation in conversations for row in conversation]
    assert [row.name for row in found] == [f"{server.url}/x.wav"] * 2
    assert found[0].audio.is_relative_to(tmp_path / "user")
    np.testing.assert_allclose(soundfile.read(found[0].audio)[0], spoken(1.5, 0), atol=1e-4)
    (fault,) = faults
    assert f"names {server.url}/gone.wav, which cannot be had: the server says 404" in fault.message
    assert sorted(server.asked) == ["/gone.wav", "/x.wav"]
