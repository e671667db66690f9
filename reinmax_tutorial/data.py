"""Images to train on: digits (no download), MNIST and Fashion-MNIST (verified).

Pixels are kept as bytes, [N, pixels], and scaled to [0, 1] a batch at a time. Files
are checked against sha256 sums before a byte of them is used; one that does not
match is refused and left as it is.
"""

from __future__ import annotations

import gzip
import hashlib
import os
import struct
import sys
import urllib.error
import urllib.request
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import platformdirs
import torch
from torch import Tensor
from tqdm import tqdm

NAMES = ("digits", "mnist", "fashion_mnist")
PROTOCOLS = ("paper", "validation")
BINARISATION_SEED = 2026
HELD_OUT = 10_000
"""Images taken from the end of the training file for validation (MNIST, Fashion)."""

URLS = {
    "mnist": "https://ossci-datasets.s3.amazonaws.com/mnist/",
    "fashion_mnist": ("http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/"),
}

FILES = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)

# MNIST: of the decompressed bytes, since mirrors compress differently.
# Fashion-MNIST: of the archives, of which only one edition is in circulation.
SHA256 = {
    "mnist": dict(
        zip(
            FILES,
            (
                "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
                "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
                "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
                "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
            ),
            strict=True,
        )
    ),
    "fashion_mnist": dict(
        zip(
            FILES,
            (
                "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84",
                "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845",
                "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073",
                "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5",
            ),
            strict=True,
        )
    ),
}


@dataclass(frozen=True)
class Split:
    """Some of the images, with their labels.

    Attributes:
        pixels: uint8, [N, side * side], 0 .. levels.
        labels: int64, [N].
        levels: the byte that means white.
    """

    pixels: Tensor
    labels: Tensor
    levels: int

    def __len__(self) -> int:
        return len(self.pixels)

    @property
    def num_pixels(self) -> int:
        """Pixels of one image."""
        return self.pixels.shape[1]

    def images(
        self, index: Tensor | slice = slice(None), dtype: torch.dtype = torch.float32
    ) -> Tensor:
        """The images of an index, scaled to [0, 1]; any leading shape of index."""
        return scaled(self.pixels[index], self.levels, dtype)

    def to(self, device: torch.device | str) -> Split:
        """The same images on another device."""
        return Split(self.pixels.to(device), self.labels.to(device), self.levels)


@dataclass(frozen=True)
class ImageData:
    """A data set in its splits; validation is empty under the paper's protocol."""

    name: str
    train: Split
    validation: Split
    test: Split


def scaled(pixels: Tensor, levels: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Bytes 0 .. levels as numbers in [0, 1]."""
    return pixels.to(dtype).div_(levels)


def load_images(
    name: str = "digits",
    *,
    folder: str | os.PathLike | None = None,
    protocol: str = "paper",
    binarised: bool = False,
    cache: str | os.PathLike | None = None,
) -> ImageData:
    """A data set, from scikit-learn, from a folder, or downloaded once to a cache.

    Args:
        name: "digits" (8x8, 1,797 images, comes with scikit-learn), "mnist" or
            "fashion_mnist" (28x28, 60,000 + 10,000).
        folder: read the idx files (.gz or not) from here; nothing is downloaded.
        protocol: "paper" trains on the whole training file; "validation" keeps the
            last 10,000 images of it (digits: 300) for choosing settings.
        binarised: replace grey levels by one Bernoulli draw per pixel, made once
            with a fixed seed, the same for everybody.
        cache: where downloads go; the user's cache folder by default.

    Raises:
        ValueError: unknown name or protocol, or a file whose bytes are not the
            published ones.
        FileNotFoundError: a file is not in the folder.
        OSError: nothing in the cache and no connection.
    """
    if name not in NAMES:
        raise ValueError(f"unknown data set {name!r}; known: {', '.join(NAMES)}")
    if protocol not in PROTOCOLS:
        raise ValueError(
            f"unknown protocol {protocol!r}; allowed: {', '.join(PROTOCOLS)}"
        )
    if name == "digits":
        train, test, held_out = *_digits(), 300
    else:
        where = Path(folder) if folder is not None else download(name, cache=cache)
        arrays = [read_idx(where, file, name) for file in FILES]
        _check_shapes(where, *arrays)
        train, test = _split(*arrays[:2], 255), _split(*arrays[2:], 255)
        held_out = HELD_OUT
    if binarised:
        train, test = _binarise(train, 0), _binarise(test, 1)
    cut = len(train) - (held_out if protocol == "validation" else 0)
    return ImageData(name, _part(train, 0, cut), _part(train, cut, None), test)


def identify_folder(folder: str | os.PathLike) -> str:
    """Which data set a folder holds, from the bytes of its training labels."""
    file = FILES[1]
    path = find_file(folder, file)
    for name in SHA256:
        if _matches(path, name, file):
            return name
    raise ValueError(_refusal(path, file, "mnist or fashion_mnist"))


def find_file(folder: str | os.PathLike, file: str) -> Path:
    """The idx file in a folder, compressed or not."""
    for path in (Path(folder) / f"{file}.gz", Path(folder) / file):
        if path.is_file():
            return path
    raise FileNotFoundError(
        f"{file}.gz is not in {folder} (nor {file}); a folder of MNIST holds "
        f"{', '.join(f + '.gz' for f in FILES)}"
    )


def read_idx(folder: str | os.PathLike, file: str, name: str) -> np.ndarray:
    """An idx file as an array of bytes, after its sha256 has been checked.

    Args:
        folder: where it lies.
        file: one of FILES.
        name: the data set that it should belong to.

    Raises:
        FileNotFoundError: it is not there.
        ValueError: truncated, corrupt, swapped or unknown bytes. The file is not
            touched.
    """
    path = find_file(folder, file)
    if not _matches(path, name, file):
        raise ValueError(_refusal(path, file, name))
    data = _contents(path)
    magic, rank = struct.unpack(">HBB", data[:4])[0], data[3]
    if magic != 0 or data[2] != 8:
        raise ValueError(f"{path} is not an idx file of bytes")
    shape = struct.unpack(f">{rank}I", data[4 : 4 + 4 * rank])
    return np.frombuffer(data, np.uint8, offset=4 + 4 * rank).reshape(shape)


def download(
    name: str,
    *,
    cache: str | os.PathLike | None = None,
    url: str | None = None,
    timeout: float = 30.0,
) -> Path:
    """Fetch the files of a data set into a cache, once; resumed and verified.

    A file arrives under the name `….part`, continues where an earlier attempt broke
    off, and gets its own name only after its bytes have been checked.

    Args:
        name: "mnist" or "fashion_mnist".
        cache: parent folder; the user's cache folder by default.
        url: where the four .gz files are, with a trailing slash.
        timeout: seconds without a byte before giving up.

    Returns:
        The folder that holds the files.

    Raises:
        OSError: no connection, or it broke off; what arrived is kept for next time.
        ValueError: the bytes that arrived are not the published ones.
    """
    if name not in URLS:
        raise ValueError(f"nothing to download for {name!r}; known: {', '.join(URLS)}")
    parent = cache or platformdirs.user_cache_dir("reinmax_tutorial")
    folder = Path(parent) / name
    folder.mkdir(parents=True, exist_ok=True)
    for file in FILES:
        path = folder / f"{file}.gz"
        if path.is_file():
            continue
        part = path.with_name(path.name + ".part")
        _fetch((url or URLS[name]) + path.name, part, timeout)
        if not _matches(part, name, file):
            message = _refusal(part, file, name)
            part.unlink()
            raise ValueError(f"{message}; the download was thrown away, try again")
        part.replace(path)
    return folder


def _fetch(url: str, part: Path, timeout: float) -> None:
    """Append to `part` what is still missing of `url`."""
    have = part.stat().st_size if part.is_file() else 0
    request = urllib.request.Request(url)
    if have:
        request.add_header("Range", f"bytes={have}-")
    try:
        with urllib.request.urlopen(request, timeout=timeout) as answer:
            if answer.status != 206:  # the server sends the whole file again
                have = 0
            left = int(answer.headers.get("Content-Length") or 0)
            with (
                open(part, "ab" if have else "wb") as out,
                tqdm(
                    total=have + left,
                    initial=have,
                    unit="B",
                    unit_scale=True,
                    desc=url.rsplit("/", 1)[-1],
                    disable=not sys.stderr.isatty(),
                ) as bar,
            ):
                received = 0
                while block := answer.read(1 << 16):
                    out.write(block)
                    received += len(block)
                    bar.update(len(block))
            if received < left:
                raise ConnectionError(f"{left - received} bytes did not arrive")
    except urllib.error.HTTPError as error:
        if error.code == 416 and have:  # nothing is left to fetch
            return
        raise OSError(f"{url} answered {error.code} {error.reason}") from error
    except OSError as error:
        raise OSError(
            f"could not download {url} ({error}); what arrived is kept, so run the "
            "same command again when there is a connection, or point --data (in "
            "Python: folder=) at a folder that holds the files, or use the digits "
            "that need no download"
        ) from error


def _contents(path: Path) -> bytes:
    """The decompressed bytes of a file; empty where it cannot be decompressed."""
    data = path.read_bytes()
    if data[:2] != b"\x1f\x8b":
        return data
    try:
        return gzip.decompress(data)
    except (EOFError, OSError, zlib.error):
        return b""


def _digest(path: Path, name: str) -> str:
    """The sha256 that SHA256[name] speaks of."""
    data = _contents(path) if name == "mnist" else path.read_bytes()
    return hashlib.sha256(data).hexdigest()


def _matches(path: Path, name: str, file: str) -> bool:
    return _digest(path, name) == SHA256[name][file]


def _refusal(path: Path, file: str, wanted: str) -> str:
    """Why a file is refused, as exactly as its bytes tell."""
    for name, sums in SHA256.items():
        digest = _digest(path, name)
        for other, known in sums.items():
            if digest == known:
                return f"{path} holds {other} of {name}, not {file} of {wanted}"
    data = path.read_bytes()
    if data[:2] == b"\x1f\x8b" and not _contents(path):
        state = f"a truncated or damaged archive ({len(data):,} bytes)"
    else:
        state = f"sha256 {_digest(path, 'mnist')}"
    return f"{path} is not {file} of {wanted}: {state}; the file is left as it is"


def _check_shapes(where: Path, *arrays: np.ndarray) -> None:
    """Images and labels must be as many; the sums make a mismatch unlikely."""
    train, train_labels, test, test_labels = map(len, arrays)
    if train != train_labels or test != test_labels:
        raise ValueError(f"{where}: images and labels differ in number")


def _digits() -> tuple[Split, Split]:
    from sklearn.datasets import load_digits  # slow to import, so only when asked

    bunch = load_digits()
    pixels = bunch.data.astype(np.uint8)
    everything = _split(pixels, bunch.target, 16)
    return _part(everything, 0, 1497), _part(everything, 1497, None)


def _split(pixels: np.ndarray, labels: np.ndarray, levels: int) -> Split:
    flat = torch.from_numpy(pixels.reshape(len(pixels), -1).copy())
    return Split(flat, torch.from_numpy(labels.astype(np.int64)), levels)


def _part(split: Split, start: int, stop: int | None) -> Split:
    return Split(split.pixels[start:stop], split.labels[start:stop], split.levels)


def _binarise(split: Split, stream: int) -> Split:
    """One Bernoulli draw per pixel with probability its grey level."""
    shape = split.pixels.shape
    draws = np.random.default_rng([BINARISATION_SEED, stream]).random(
        shape, dtype=np.float32
    )
    pixels = split.pixels.numpy() > draws * split.levels
    return Split(torch.from_numpy(pixels.astype(np.uint8)), split.labels, 1)
