"""Official files arrive whole or not at all, go on where they were cut, and say what to do without a network."""

import contextlib
import hashlib
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from distill.errors import CheckpointError, FetchError
from distill.teachers import fetch as fetching
from distill.teachers.fetch import OFFICIAL, checkpoint_folder, fetch, profile_of_hash, resolve_checkpoint

CONTENT = np.random.default_rng(0).bytes(5_000_001)


@dataclass
class Server:
    """A local HTTP server that can be told to misbehave."""

    content: bytes = CONTENT
    etag: str = '"one"'
    supports_range: bool = True
    announces: bool = True
    """Say how long the answer is."""
    cuts: list[int] = field(default_factory=list)
    """Break the next answers off after so many bytes."""
    asked: list[str] = field(default_factory=list)
    """The Range headers that came, empty where there was none."""
    url: str = ""

    def handler(self) -> type[BaseHTTPRequestHandler]:
        server = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *_: object) -> None:
                """Say nothing."""

            def do_GET(self) -> None:
                wanted = self.headers.get("Range", "")
                server.asked.append(wanted)
                mark = self.headers.get("If-Range")
                if wanted and server.supports_range and mark in (None, server.etag):
                    start = int(wanted.removeprefix("bytes=").removesuffix("-"))
                    if start >= len(server.content):
                        self.send_error(416)
                        return
                    self.send_response(206)
                    self.send_header("Content-Range", f"bytes {start}-{len(server.content) - 1}/{len(server.content)}")
                else:
                    start = 0
                    self.send_response(200)
                body = server.content[start:]
                if server.announces:
                    self.send_header("Content-Length", str(len(body)))
                if server.etag:
                    self.send_header("ETag", server.etag)
                self.end_headers()
                with contextlib.suppress(ConnectionError):  # a client that has seen enough hangs up
                    self.wfile.write(body[: server.cuts.pop(0)] if server.cuts else body)

        return Handler


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """A server that has ``toy``, which is the only official file meanwhile."""
    made = Server()
    http = ThreadingHTTPServer(("127.0.0.1", 0), made.handler())
    made.url = f"http://127.0.0.1:{http.server_port}/toy.pth"
    toy = replace(
        OFFICIAL["vit_b"],
        name="toy",
        url=made.url,
        file_name="toy.pth",
        size_bytes=len(CONTENT),
        sha256=hashlib.sha256(CONTENT).hexdigest(),
    )
    monkeypatch.setattr(fetching, "OFFICIAL", {"toy": toy})
    monkeypatch.setattr(fetching, "TIMEOUT_S", 5.0)
    monkeypatch.setenv("SAMDISTILL_CACHE", str(tmp_path))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    yield made
    http.shutdown()
    http.server_close()
    thread.join()


def beside(target: Path) -> set[str]:
    return {found.name for found in target.parent.iterdir()} - {"toy.pth.lock"}


def test_a_file_arrives_whole_and_a_second_call_asks_nobody(server: Server) -> None:
    seen: list[tuple[int, int]] = []
    path = fetch("toy", progress=lambda here, total: seen.append((here, total)))
    assert path == checkpoint_folder() / "toy.pth"
    assert path.read_bytes() == CONTENT
    assert seen[-1] == (len(CONTENT), len(CONTENT))
    assert len(seen) > 2
    assert beside(path) == {"toy.pth", "toy.pth.verified"}
    assert fetch("toy") == path
    assert server.asked == [""]
    assert resolve_checkpoint("toy") == path


def test_a_cut_line_is_taken_up_again_within_one_call(server: Server) -> None:
    server.cuts = [1_500_000, 700_000]
    assert fetch("toy").read_bytes() == CONTENT
    assert server.asked == ["", "bytes=1500000-", "bytes=2200000-"]


def test_after_a_call_that_failed_the_next_one_goes_on_from_what_had_arrived(server: Server) -> None:
    server.cuts = [2_000_000, 0]
    with pytest.raises(FetchError, match=f"2000000 of {len(CONTENT)} bytes are here; the same command goes on from them"):
        fetch("toy")
    assert not (checkpoint_folder() / "toy.pth").exists()
    assert fetch("toy").read_bytes() == CONTENT
    assert server.asked == ["", "bytes=2000000-", "bytes=2000000-"]


def test_a_file_that_changed_on_the_server_is_begun_again(server: Server) -> None:
    server.cuts, server.content, server.etag = [2_000_000, 0], bytes(len(CONTENT)), '"old"'
    with pytest.raises(FetchError):
        fetch("toy")
    server.content, server.etag = CONTENT, '"new"'
    assert fetch("toy").read_bytes() == CONTENT


def test_a_server_that_cannot_resume_is_asked_for_all_of_it(server: Server) -> None:
    server.supports_range, server.cuts = False, [1_000_000]
    assert fetch("toy").read_bytes() == CONTENT


def test_a_server_that_cannot_resume_and_always_breaks_off_is_given_up(server: Server) -> None:
    server.supports_range, server.cuts = False, [1_000_000] * 9
    with pytest.raises(FetchError, match="stopped sending"):
        fetch("toy")
    assert len(server.asked) == 2


def test_a_weak_mark_is_not_resumed_by(server: Server) -> None:
    server.etag, server.cuts = 'W/"weak"', [1_000_000]
    assert fetch("toy").read_bytes() == CONTENT
    assert server.asked == ["", "bytes=1000000-"]


def test_what_has_the_wrong_hash_does_not_get_the_name_and_is_not_kept(server: Server) -> None:
    server.content = CONTENT[:-1] + bytes([CONTENT[-1] ^ 1])
    with pytest.raises(CheckpointError, match=r"has the SHA-256 .* but toy has"):
        fetch("toy")
    assert beside(checkpoint_folder() / "toy.pth") == set()
    server.content = CONTENT
    assert fetch("toy").read_bytes() == CONTENT


def test_a_page_of_another_size_is_refused_before_it_is_read(server: Server) -> None:
    server.content = b"<html>please log in</html>"
    with pytest.raises(CheckpointError, match=r"announces 26 bytes from 0 on, but toy.pth has 5000001"):
        fetch("toy")


def test_a_partial_file_that_is_longer_than_the_file_is_thrown_away(server: Server) -> None:
    part = checkpoint_folder() / "toy.pth.part"
    part.parent.mkdir(parents=True)
    part.write_bytes(CONTENT + b"more")
    assert fetch("toy").read_bytes() == CONTENT
    assert server.asked == [""]


def test_a_partial_file_that_is_whole_is_verified_without_asking(server: Server) -> None:
    part = checkpoint_folder() / "toy.pth.part"
    part.parent.mkdir(parents=True)
    part.write_bytes(CONTENT)
    assert fetch("toy").read_bytes() == CONTENT
    assert server.asked == []


def test_two_at_once_fetch_once(server: Server) -> None:
    paths: list[Path] = []
    threads = [threading.Thread(target=lambda: paths.append(fetch("toy"))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(paths) == 3
    assert server.asked == [""]


def test_without_a_network_one_line_says_what_to_put_where_and_then_the_name_is_found(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unreachable(*_: object, **__: object) -> None:
        import urllib.error

        raise urllib.error.URLError(OSError(101, "Network is unreachable"))

    monkeypatch.setattr(fetching.urllib.request, "urlopen", unreachable)
    with pytest.raises(FetchError) as caught:
        fetch("toy")
    said = str(caught.value)
    assert "\n" not in said
    assert all(part in said for part in (server.url, "as toy.pth into", str(checkpoint_folder()), "Network is unreachable"))
    (checkpoint_folder() / "toy.pth").write_bytes(CONTENT)
    assert resolve_checkpoint("toy") == checkpoint_folder() / "toy.pth"
    assert fetch("toy") == checkpoint_folder() / "toy.pth"


def test_a_name_whose_file_is_not_here_says_how_to_get_it(server: Server) -> None:
    with pytest.raises(
        CheckpointError, match=r"'samdistill fetch toy' brings it; without a network, download http.* and put it as toy.pth"
    ):
        resolve_checkpoint("toy")
    assert server.asked == []


@pytest.mark.parametrize(
    ("content", "said"), [(CONTENT[:-5], "has 4999996 bytes"), (bytes(len(CONTENT)), "SHA-256")], ids=["short", "other"]
)
def test_a_file_put_there_by_hand_is_held_against_size_and_hash(server: Server, content: bytes, said: str) -> None:
    checkpoint_folder().mkdir(parents=True)
    (checkpoint_folder() / "toy.pth").write_bytes(content)
    with pytest.raises(CheckpointError, match=said):
        resolve_checkpoint("toy")
    with pytest.raises(CheckpointError, match=said):
        fetch("toy")
    assert (checkpoint_folder() / "toy.pth").read_bytes() == content


def test_a_file_that_was_changed_after_it_was_verified_is_verified_again(server: Server) -> None:
    path = fetch("toy")
    path.write_bytes(bytes(len(CONTENT)))
    with pytest.raises(CheckpointError, match="SHA-256"):
        resolve_checkpoint("toy")


def test_a_server_that_says_no_is_quoted(server: Server) -> None:
    part = checkpoint_folder() / "toy.pth.part"
    part.parent.mkdir(parents=True)
    part.write_bytes(CONTENT[:4_000_000])
    server.content = CONTENT[:3_000_000]  # answers 416 to the first request; the second one announces another size
    with pytest.raises(CheckpointError, match="announces 3000000 bytes"):
        fetch("toy")
    assert server.asked == ["bytes=4000000-", ""]


def test_a_misspelt_name_is_compared_with_the_known_ones() -> None:
    with pytest.raises(CheckpointError, match=r"no official checkpoint 'vit_bb'. Did you mean 'vit_b'"):
        fetch("vit_bb")
    with pytest.raises(CheckpointError, match="Did you mean 'vit_b'"):
        resolve_checkpoint("vit_bb")


def test_a_path_is_returned_as_it_is(tmp_path: Path) -> None:
    assert resolve_checkpoint(tmp_path / "own.pth") == tmp_path / "own.pth"
    assert resolve_checkpoint("folder/vit_bb") == Path("folder/vit_bb")


def test_every_official_file_can_be_told_apart_and_names_its_profile() -> None:
    assert {name: file.profile for name, file in OFFICIAL.items()} == {
        "vit_b": "sam",
        "vit_l": "sam",
        "vit_h": "sam",
        "mobile_sam": "mobile-sam",
        "edge_sam": "edge-sam",
        "edge_sam_3x": "edge-sam",
        "medsam": "medsam",
    }
    for each in (lambda f: f.file_name, lambda f: f.sha256, lambda f: f.url):
        pick: Callable[[fetching.OfficialFile], str] = each
        assert len({pick(file) for file in OFFICIAL.values()}) == len(OFFICIAL)
    assert profile_of_hash(OFFICIAL["medsam"].sha256[:16]) == "medsam"
    assert profile_of_hash("0" * 64) is None
    assert profile_of_hash("") is None


def test_fetching_needs_no_torch() -> None:
    code = "import sys, distill.teachers.fetch; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "False"


def test_an_answer_of_unknown_length_is_not_written_beyond_the_file_s_size(server: Server) -> None:
    server.announces, server.content = False, CONTENT + bytes(4_000_000)
    with pytest.raises(CheckpointError, match="sends more than the 5000001 bytes"):
        fetch("toy")
    assert (checkpoint_folder() / "toy.pth.part").stat().st_size <= len(CONTENT)
