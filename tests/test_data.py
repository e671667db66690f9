"""Files and downloads: what is accepted, what is refused, what is left in place."""

import gzip
import hashlib
import http.server
import struct
import threading
import time

import numpy as np
import pytest
import torch

from reinmax_tutorial import data
from reinmax_tutorial.data import FILES, download, identify_folder, load_images


def idx(array):
    shape = array.shape
    head = struct.pack(f">HBB{len(shape)}I", 0, 8, len(shape), *shape)
    return head + array.tobytes()


@pytest.fixture
def mnist_like(monkeypatch, tmp_path):
    """A folder of small files, and sums that make them the published ones."""
    rng = np.random.default_rng(0)
    arrays = [
        rng.integers(256, size=(12, 4, 4), dtype=np.uint8),
        rng.integers(10, size=12, dtype=np.uint8),
        rng.integers(256, size=(5, 4, 4), dtype=np.uint8),
        rng.integers(10, size=5, dtype=np.uint8),
    ]
    folder = tmp_path / "files"
    folder.mkdir()
    sums = {}
    for file, array in zip(FILES, arrays, strict=True):
        raw = idx(array)
        sums[file] = hashlib.sha256(raw).hexdigest()
        (folder / f"{file}.gz").write_bytes(gzip.compress(raw, mtime=0))
    monkeypatch.setitem(data.SHA256, "mnist", sums)
    monkeypatch.setattr(data, "HELD_OUT", 3)
    return folder, arrays


def state_of(folder):
    return {p.name: p.read_bytes() for p in sorted(folder.iterdir())}


# --- data sets


def test_digits_need_nothing():
    digits = load_images()
    assert (len(digits.train), len(digits.validation), len(digits.test)) == (
        1497,
        0,
        300,
    )
    images = digits.train.images(slice(0, 7))
    assert images.shape == (7, 64) and images.dtype == torch.float32
    assert images.min() == 0 and images.max() == 1
    assert digits.train.labels[:3].tolist() == [0, 1, 2]


def test_validation_images_come_from_the_end_of_the_training_images():
    paper, split = load_images(), load_images(protocol="validation")
    assert (len(split.train), len(split.validation)) == (1197, 300)
    joined = torch.cat([split.train.pixels, split.validation.pixels])
    assert torch.equal(joined, paper.train.pixels)
    assert torch.equal(split.test.pixels, paper.test.pixels)


def test_binarised_images_are_fixed_draws_with_the_grey_level_as_mean():
    grey, first = load_images(), load_images(binarised=True)
    again = load_images(binarised=True, protocol="validation")
    x, probability = first.train.images(), grey.train.images()
    assert set(x.unique().tolist()) == {0.0, 1.0}
    assert torch.equal(again.train.pixels, first.train.pixels[:1197])
    assert (x[probability == 0] == 0).all() and (x[probability == 1] == 1).all()
    # 95,808 independent pixels: six standard errors
    error = (probability * (1 - probability)).sum().sqrt()
    assert abs(x.sum() - probability.sum()) < 6 * error


def test_a_folder_is_read_compressed_or_not(mnist_like):
    folder, arrays = mnist_like
    first = load_images("mnist", folder=folder)
    for file in FILES:
        packed = folder / f"{file}.gz"
        (folder / file).write_bytes(gzip.decompress(packed.read_bytes()))
        packed.unlink()
    second = load_images("mnist", folder=folder, protocol="validation")
    assert torch.equal(first.train.pixels, torch.from_numpy(arrays[0].reshape(12, 16)))
    assert first.test.labels.tolist() == arrays[3].tolist()
    assert torch.equal(second.validation.pixels, first.train.pixels[-3:])
    assert identify_folder(folder) == "mnist"


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"name": "cifar"}, "unknown data set 'cifar'; known: digits, mnist"),
        ({"protocol": "mine"}, "unknown protocol 'mine'; allowed: paper, validation"),
    ],
)
def test_unknown_names_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        load_images(**arguments)


# --- bad files: each is refused with its reason, and left as it is


def test_an_absent_file(mnist_like):
    folder, _ = mnist_like
    (folder / f"{FILES[2]}.gz").unlink()
    with pytest.raises(FileNotFoundError, match=f"{FILES[2]}.gz is not in .*a folder"):
        load_images("mnist", folder=folder)


@pytest.mark.parametrize("keep", [30, 200])
def test_a_truncated_file(mnist_like, keep):
    folder, _ = mnist_like
    path = folder / f"{FILES[0]}.gz"
    path.write_bytes(path.read_bytes()[:keep])
    before = state_of(folder)
    with pytest.raises(ValueError, match="truncated or damaged archive .* left as it"):
        load_images("mnist", folder=folder)
    assert state_of(folder) == before


def test_a_truncated_file_without_compression(mnist_like):
    folder, arrays = mnist_like
    (folder / f"{FILES[0]}.gz").unlink()
    (folder / FILES[0]).write_bytes(idx(arrays[0])[:-1])
    with pytest.raises(ValueError, match="is not train-images.* of mnist: sha256"):
        load_images("mnist", folder=folder)


def test_swapped_files(mnist_like):
    folder, _ = mnist_like
    a, b = folder / f"{FILES[0]}.gz", folder / f"{FILES[2]}.gz"
    one, other = a.read_bytes(), b.read_bytes()
    a.write_bytes(other)
    b.write_bytes(one)
    before = state_of(folder)
    with pytest.raises(ValueError, match=f"holds {FILES[2]} of mnist, not {FILES[0]}"):
        load_images("mnist", folder=folder)
    assert state_of(folder) == before


def test_wrong_bytes_of_the_right_shape(mnist_like):
    folder, arrays = mnist_like
    other = idx(255 - arrays[0])
    (folder / f"{FILES[0]}.gz").write_bytes(gzip.compress(other))
    digest = hashlib.sha256(other).hexdigest()
    with pytest.raises(ValueError, match=f"sha256 {digest}"):
        load_images("mnist", folder=folder)


def test_a_folder_of_something_else(tmp_path):
    (tmp_path / FILES[1]).write_bytes(b"hello")
    with pytest.raises(ValueError, match="is not .* of mnist or fashion_mnist"):
        identify_folder(tmp_path)


# --- downloads, from a server on this machine


class Server:
    """Serves a folder; `manner` decides how badly."""

    def __init__(self, folder):
        self.folder, self.manner, self.ranges = folder, "well", []
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                outer.answer(self)

            def log_message(self, *args):
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/"
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.02,))
        self.thread.start()

    def answer(self, handler):
        if self.manner == "absent":
            handler.send_error(404)
            return
        body = (self.folder / handler.path.lstrip("/")).read_bytes()
        if self.manner == "wrong":
            body = body[::-1]
        wanted = handler.headers.get("Range")
        self.ranges.append(wanted)
        start = 0
        if wanted and self.manner != "no ranges":
            start = int(wanted.removeprefix("bytes=").removesuffix("-"))
            if start >= len(body):
                handler.send_error(416)
                return
            handler.send_response(206)
        else:
            handler.send_response(200)
        handler.send_header("Content-Length", str(len(body) - start))
        handler.end_headers()
        body = body[start:]
        if self.manner == "breaks off":
            body = body[: len(body) // 2]
        for i in range(0, len(body), 64):
            handler.wfile.write(body[i : i + 64])
            if self.manner == "slow":
                handler.wfile.flush()
                time.sleep(0.01)
            if self.manner == "hangs":
                handler.wfile.flush()
                time.sleep(1.0)
                return

    def close(self):
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()


@pytest.fixture
def server(mnist_like, monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    server = Server(mnist_like[0])
    yield server
    server.close()


@pytest.mark.parametrize("manner", ["well", "slow"])
def test_download(server, tmp_path, manner):
    server.manner = manner
    folder = download("mnist", cache=tmp_path / "cache", url=server.url)
    assert state_of(folder) == state_of(server.folder)
    asked = len(server.ranges)
    download("mnist", cache=tmp_path / "cache", url=server.url)
    assert len(server.ranges) == asked == 4  # once is enough


def test_a_broken_download_is_resumed(server, tmp_path):
    server.manner = "breaks off"
    with pytest.raises(OSError, match="could not download .* arrived is kept"):
        download("mnist", cache=tmp_path, url=server.url)
    first = f"{FILES[0]}.gz"
    whole = (server.folder / first).read_bytes()
    part = tmp_path / "mnist" / f"{first}.part"
    assert part.read_bytes() == whole[: len(whole) // 2]
    assert not (tmp_path / "mnist" / first).exists()
    server.manner = "well"
    folder = download("mnist", cache=tmp_path, url=server.url)
    assert server.ranges[1] == f"bytes={len(whole) // 2}-"
    assert state_of(folder) == state_of(server.folder)


def test_a_server_without_ranges_sends_the_file_again(server, tmp_path):
    folder = tmp_path / "mnist"
    folder.mkdir()
    (folder / f"{FILES[0]}.gz.part").write_bytes(b"some bytes")
    server.manner = "no ranges"
    assert state_of(download("mnist", cache=tmp_path, url=server.url)) == state_of(
        server.folder
    )


def test_a_part_that_is_already_complete(server, tmp_path):
    folder = tmp_path / "mnist"
    folder.mkdir()
    name = f"{FILES[0]}.gz"
    (folder / f"{name}.part").write_bytes((server.folder / name).read_bytes())
    assert state_of(download("mnist", cache=tmp_path, url=server.url)) == state_of(
        server.folder
    )


def test_wrong_bytes_are_thrown_away(server, tmp_path):
    server.manner = "wrong"
    with pytest.raises(ValueError, match="download was thrown away, try again"):
        download("mnist", cache=tmp_path, url=server.url)
    assert state_of(tmp_path / "mnist") == {}


def test_a_server_that_stops_answering(server, tmp_path):
    server.manner = "hangs"
    with pytest.raises(OSError, match="could not download"):
        download("mnist", cache=tmp_path, url=server.url, timeout=0.2)


def test_a_missing_page(server, tmp_path):
    server.manner = "absent"
    with pytest.raises(OSError, match="answered 404"):
        download("mnist", cache=tmp_path, url=server.url)


def test_offline_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    url = "http://127.0.0.1:9/"  # nothing listens on the discard port
    with pytest.raises(OSError, match="point --data .* or use the digits"):
        download("mnist", cache=tmp_path, url=url, timeout=1)


def test_the_published_sums_are_sums():
    for sums in data.SHA256.values():
        assert tuple(sums) == FILES
        assert all(len(digest) == 64 for digest in sums.values())
