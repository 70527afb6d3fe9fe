"""Datasets and batches."""

import functools
import gzip
import hashlib
import http.server
import os
import threading

import pytest
import torch

from tests.conftest import MNIST, needs_mnist
from vae_exp import datasets
from vae_exp.config import UserError
from vae_exp.datasets import Split, batches, digits, torchvision_images

TEN = Split(torch.arange(10, dtype=torch.uint8)[:, None, None, None].repeat(1, 1, 2, 2), torch.arange(10))


def load_digits(**changes):
    return digits(**({"name": "digits", "val_size": 200, "n_classes": 10, "seed": 0} | changes))


def test_batches_are_in_0_1_and_keep_the_last_partial_one():
    seen = list(batches(TEN, 4))
    assert [len(x) for x, _ in seen] == [4, 4, 2]
    assert seen[2][0][1, 0, 0, 0] == pytest.approx(9 / 255)
    assert seen[0][0].dtype == torch.float32


def test_batches_with_a_generator_are_every_image_once_in_a_new_order_each_time():
    order = torch.Generator().manual_seed(0)
    first, second = (torch.cat([y for _, y in batches(TEN, 3, order)]).tolist() for _ in range(2))
    assert sorted(first) == sorted(second) == list(range(10))
    assert first != second
    x, y = next(batches(TEN, 10, order))
    assert torch.equal((x[:, 0, 0, 0] * 255).round().long(), y), "images and labels travel together"


def test_digits_are_split_three_ways_and_only_validation_depends_on_the_seed():
    a, b = load_digits(), load_digits(seed=1)
    assert (len(a.train), len(a.val), len(a.read_test())) == (1297, 200, 300)
    assert a.x_shape == (1, 8, 8)
    assert a.train.x.max() == 255
    assert torch.equal(a.read_test().x, b.read_test().x)
    assert not torch.equal(a.val.x, b.val.x)
    assert torch.equal(a.val.x, load_digits().val.x)
    rows = torch.cat([split.x for split in (a.train, a.val, a.read_test())]).flatten(1)
    everything = torch.cat([load_digits(val_size=0).train.x, a.read_test().x]).flatten(1)
    assert torch.equal(rows.unique(dim=0), everything.unique(dim=0))


def test_more_validation_than_data_is_refused():
    with pytest.raises(UserError, match=r"dataset.val_size=1497: digits has 1,497 training images"):
        load_digits(val_size=1497)


def test_too_few_classes_are_refused():
    with pytest.raises(UserError, match=r"dataset.n_classes=9: digits has labels up to 9"):
        load_digits(n_classes=9)


def test_no_network_and_no_files_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets, "DOWNLOAD_SECONDS", 2)
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    with pytest.raises(UserError) as error:
        torchvision_images("fashion_mnist", str(tmp_path), 10, 10, 0)
    said = str(error.value)
    assert said.count("tried  http") >= 1
    assert str(tmp_path / "FashionMNIST" / "raw") in said
    for file in ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "dataset=digits"):
        assert file in said


def write_idx(folder, train=20, test=6, broken=None):
    """Files in MNIST's format, with a picture of its own for every row."""
    folder.mkdir(parents=True)
    for part, n in (("train", train), ("t10k", test)):
        pixels = torch.arange(n, dtype=torch.uint8).repeat_interleave(784).numpy().tobytes()
        header = bytes([0, 0, 8, 3]) + b"".join(k.to_bytes(4, "big") for k in (n, 28, 28))
        (folder / f"{part}-images-idx3-ubyte").write_bytes(header + (pixels[:-9] if part == broken else pixels))
        labels = bytes([0, 0, 8, 1]) + n.to_bytes(4, "big") + bytes(i % 10 for i in range(n))
        (folder / f"{part}-labels-idx1-ubyte").write_bytes(labels)


def test_files_put_there_by_hand_are_read_without_a_network(tmp_path):
    write_idx(tmp_path / "MNIST" / "raw")
    data = torchvision_images("mnist", str(tmp_path), 5, 10, 0)
    assert (len(data.train), len(data.val), len(data.read_test())) == (15, 5, 6)
    assert set(data.train.y.tolist()) | set(data.val.y.tolist()) == set(range(10))
    together = torch.cat([data.train.x, data.val.x])[:, 0, 0, 0]
    assert sorted(together.tolist()) == list(range(20))


@pytest.mark.parametrize("broken", ["train", "t10k"])
def test_a_truncated_file_is_named_and_refused(tmp_path, broken):
    write_idx(tmp_path / "MNIST" / "raw", broken=broken)
    with pytest.raises(UserError, match=r"MNIST/raw.* cannot be read"):
        torchvision_images("mnist", str(tmp_path), 5, 10, 0).read_test()


def test_a_mirror_is_downloaded_from_unpacked_and_checked(tmp_path, monkeypatch):
    """torchvision's own download, from a server of the test; the first mirror has nothing."""
    from torchvision.datasets import MNIST as source

    write_idx(tmp_path / "made")
    mirror, sums = tmp_path / "mirror", []
    mirror.mkdir()
    for filename, _ in source.resources:
        packed = gzip.compress((tmp_path / "made" / filename.removesuffix(".gz")).read_bytes(), mtime=0)
        (mirror / filename).write_bytes(packed)
        sums.append((filename, hashlib.md5(packed).hexdigest()))
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=tmp_path)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}"
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        monkeypatch.setattr(source, "mirrors", [f"{address}/nothing-here/", f"{address}/mirror/"])
        monkeypatch.setattr(source, "resources", sums)
        assert len(torchvision_images("mnist", str(tmp_path / "root"), 5, 10, 0).train) == 15
        monkeypatch.setattr(source, "resources", [(name, "0" * 32) for name, _ in sums])
        with pytest.raises(UserError, match="could not be downloaded"):
            torchvision_images("mnist", str(tmp_path / "other"), 5, 10, 0)
        server.shutdown()


@needs_mnist
def test_mnist_is_whole():
    data = torchvision_images("mnist", os.fspath(MNIST), 10_000, 10, 0)
    assert (len(data.train), len(data.val), len(data.read_test())) == (50_000, 10_000, 10_000)
    mean = torch.cat([data.train.x, data.val.x]).float().mean().item() / 255
    assert mean == pytest.approx(0.1307, abs=1e-4)


def test_binarized_images_are_black_or_white_and_the_same_for_every_seed():
    grey = load_digits(val_size=0)
    static = [load_digits(val_size=0, seed=seed, binarize="static") for seed in (0, 1)]
    threshold = load_digits(val_size=0, binarize="threshold")
    for data in (*static, threshold):
        assert set(data.train.x.unique().tolist()) == {0, 255}
    assert torch.equal(static[0].train.x, static[1].train.x)
    assert torch.equal(static[0].read_test().x, static[1].read_test().x)
    assert torch.equal(threshold.train.x == 255, grey.train.x >= 128)
    # A Bernoulli draw is right on average, and black and white pixels stay what they are.
    assert static[0].train.x.float().mean().item() == pytest.approx(grey.train.x.float().mean().item(), rel=0.01)
    assert (static[0].train.x[grey.train.x == 0] == 0).all()
    assert (static[0].train.x[grey.train.x == 255] == 255).all()
