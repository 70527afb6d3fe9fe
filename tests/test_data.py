"""Datasets and batches."""

import functools
import gzip
import hashlib
import http.server
import os
import pickle
import shutil
import subprocess
import sys
import threading

import numpy as np
import pytest
import torch

from tests.conftest import MNIST, needs_mnist
from vae_exp.datasets.digits import digits
from vae_exp.datasets.prepare import prepare
from vae_exp.datasets.splits import Split, batches, size_in_bytes
from vae_exp.datasets.torchvision import torchvision_images
from vae_exp.errors import UserError

TEN = Split(torch.arange(10, dtype=torch.uint8)[:, None, None, None].repeat(1, 1, 2, 2), torch.arange(10))


def load_digits(**changes):
    return prepare(digits("digits"), **({"val_size": 200, "seed": 0} | changes))


def load(name, root, **changes):
    return prepare(torchvision_images(name, name, str(root)), **({"val_size": 5, "seed": 0} | changes))


def test_an_epoch_that_is_over_has_no_batch_left():
    split = Split(torch.zeros(10, 1, 2, 2, dtype=torch.uint8), torch.zeros(10, dtype=torch.long))
    order = torch.Generator().manual_seed(0)
    assert [len(x) for x, _ in batches(split, 4, order, skip=2)] == [2]
    assert not list(batches(split, 4, order, skip=3))
    assert not list(batches(split, 4, skip=3))


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


def unreachable(monkeypatch):
    """No network: every mirror refuses."""
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")


@pytest.mark.parametrize("name", ["mnist", "kmnist", "cifar10", "svhn"])
def test_a_failed_download_leaves_no_empty_folders(tmp_path, monkeypatch, name):
    unreachable(monkeypatch)
    with pytest.raises(UserError, match="could not be downloaded"):
        torchvision_images(name, name, str(tmp_path / "new" / "root"))
    assert list(tmp_path.iterdir()) == []
    shared = tmp_path / "shared"
    (shared / "MNIST").mkdir(parents=True)  # somebody's own
    (shared / "notes.txt").write_text("ours")
    with pytest.raises(UserError, match="could not be downloaded"):
        torchvision_images(name, name, str(shared))
    assert sorted(path.name for path in shared.rglob("*")) == ["MNIST", "notes.txt"]


def test_no_network_and_no_files_says_what_to_do(tmp_path, monkeypatch):
    unreachable(monkeypatch)
    with pytest.raises(UserError) as error:
        torchvision_images("fashion_mnist", "fashion_mnist", str(tmp_path))
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
    data = load("mnist", tmp_path)
    assert (len(data.train), len(data.val), len(data.read_test())) == (15, 5, 6)
    assert set(data.train.y.tolist()) | set(data.val.y.tolist()) == set(range(10))
    together = torch.cat([data.train.x, data.val.x])[:, 0, 0, 0]
    assert sorted(together.tolist()) == list(range(20))


@pytest.mark.parametrize("broken", ["train", "t10k"])
def test_a_truncated_file_is_named_and_refused(tmp_path, broken):
    write_idx(tmp_path / "MNIST" / "raw", broken=broken)
    with pytest.raises(UserError, match=r"MNIST/raw.* cannot be read"):
        torchvision_images("mnist", "mnist", str(tmp_path)).read_test()


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
        assert len(torchvision_images("mnist", "mnist", str(tmp_path / "root")).train) == 20
        monkeypatch.setattr(source, "resources", [(name, "0" * 32) for name, _ in sums])
        with pytest.raises(UserError, match="could not be downloaded"):
            torchvision_images("mnist", "mnist", str(tmp_path / "other"))
        server.shutdown()


@needs_mnist
def test_mnist_is_whole():
    data = load("mnist", MNIST, val_size=10_000)
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


def test_dynamic_binarisation_draws_anew_in_training_and_once_for_good_where_it_is_measured():
    grey, data = load_digits(), load_digits(binarize="dynamic")
    draws = torch.Generator().manual_seed(0)

    def epoch(draws=None):
        return torch.cat([x for x, _ in batches(data.train, 500, draws=draws)])

    first, second = epoch(draws), epoch(draws)
    assert set(first.unique().tolist()) == {0, 1}
    assert not torch.equal(first, second)
    assert torch.equal(epoch(torch.Generator().manual_seed(0)), first), "a stream of its own, by seed"
    assert torch.equal(epoch(), epoch()), "without it, one fixed draw"
    many = torch.stack([epoch(draws) for _ in range(40)]).mean(0)
    assert (many - grey.train.x / 255).abs().mean() < 0.05, "on average the grey image"
    for split, grey_split in ((data.val, grey.val), (data.read_test(), grey.read_test())):
        assert set(split.x.unique().tolist()) == {0, 255}
        assert (split.x[grey_split.x == 255] == 255).all()
        assert torch.equal(next(batches(split, 50))[0], split.x[:50] / 255)
    assert torch.equal(data.read_test().x, load_digits(binarize="dynamic", seed=1).read_test().x)
    assert torch.equal(data.val.x, load_digits(binarize="static").val.x), "runs of both kinds compare"


def test_flips_are_of_half_of_the_training_images_and_of_no_others():
    data = load_digits(flip=True)
    x = torch.cat([x for x, _ in batches(data.train, 100, draws=torch.Generator().manual_seed(0))])
    still = data.train.x / 255
    same, mirrored = (x == still).flatten(1).all(1), (x == still.flip(-1)).flatten(1).all(1)
    assert (same | mirrored).all()
    assert 0.4 < mirrored.float().mean() < 0.6
    for split in (data.train, data.val):
        assert torch.equal(torch.cat([x for x, _ in batches(split, 100)]), split.x / 255)
    val = torch.cat([x for x, _ in batches(data.val, 100, draws=torch.Generator())])
    assert torch.equal(val, data.val.x / 255)


def test_a_part_of_the_data_by_seed():
    a, b, half = load_digits(train_size=100), load_digits(train_size=100, seed=1), load_digits(train_size=0.5)
    assert (len(a.train), len(a.val), len(half.train)) == (100, 200, 648)
    assert not torch.equal(a.train.x, b.train.x)
    assert torch.equal(a.val.x, load_digits().val.x), "the validation images are not chosen anew"
    assert len(load_digits(val_size=0.1).val) == 150
    with pytest.raises(UserError, match=r"dataset.train_size=1298: digits has 1,297 images left for training"):
        load_digits(train_size=1298)


def test_some_of_the_classes_are_counted_from_0():
    data = load_digits(labels=[7, 3], val_size=0.1)
    assert (data.n_classes, data.class_names) == (2, ["3", "7"])
    every, test = load_digits(val_size=0).train, load_digits().read_test()
    assert len(data.train) + len(data.val) == int(((every.y == 3) | (every.y == 7)).sum())
    for number, digit in enumerate((3, 7)):
        assert torch.equal(data.read_test().x[data.read_test().y == number], test.x[test.y == digit])
    with pytest.raises(UserError, match=r"dataset.labels: digits has no 11, cat. Its labels: 0, 1"):
        load_digits(labels=[1, 11, "cat"])


def test_the_number_of_classes_is_the_datas_and_0_hides_the_labels():
    assert (load_digits().n_classes, load_digits(n_classes=12).n_classes) == (10, 12)
    hidden = load_digits(n_classes=0)
    assert (hidden.n_classes, hidden.class_names) == (0, [])


@pytest.mark.parametrize("flip", [False, True])
def test_streamed_batches_are_those_of_data_in_memory(flip):
    here, streamed = load_digits(flip=flip), load_digits(flip=flip, device_memory=0)
    assert isinstance(here.train.to("cpu").images, torch.Tensor)
    assert not isinstance(streamed.train.to("cpu").images, torch.Tensor)
    for split in ("train", "val"):
        a, b = (
            list(batches(getattr(data, split), 96, *(torch.Generator().manual_seed(seed) for seed in (0, 1))))
            for data in (here, streamed)
        )
        assert len(a) == len(b)
        for (x1, y1), (x2, y2) in zip(a, b, strict=True):
            assert torch.equal(x1, x2)
            assert torch.equal(y1, y2)
    assert torch.equal(streamed.read_test()[:32].x, here.read_test()[:32].x)


def test_an_error_while_streaming_reaches_the_loop_and_a_loop_may_stop_early():
    split = load_digits(device_memory=0).train
    threads = threading.active_count()
    for _ in batches(split, 10):
        break
    split.images.rows = split.images.rows + 10_000
    with pytest.raises(IndexError):
        list(batches(split, 10))
    assert threading.active_count() == threads


def test_sizes():
    assert [size_in_bytes(size) for size in ("2GB", "1.5 mb", "10kB", 7, "0")] == [2 * 10**9, 1_500_000, 10_000, 7, 0]


def test_grey_is_told_from_black_and_white():
    assert load_digits().train.is_grey()
    assert not any(load_digits(binarize=how).train.is_grey() for how in ("threshold", "static", "dynamic"))


def amat(path, rows):
    path.write_text("".join(" ".join(str(pixel) for pixel in row) + " \n" for row in rows.tolist()))


def test_larochelles_files(tmp_path):
    parts = {part: torch.randint(0, 2, (n, 784)) for part, n in (("train", 12), ("valid", 5), ("test", 3))}
    with pytest.raises(UserError, match=r"not found in .*: binarized_mnist_train.amat, binarized_mnist_valid.amat"):
        torchvision_images("mnist", "mnist", str(tmp_path), "larochelle")
    for part, rows in parts.items():
        amat(tmp_path / f"binarized_mnist_{part}.amat", rows)
    data = prepare(torchvision_images("mnist", "mnist", str(tmp_path), "larochelle"), val_size=10_000, seed=3)
    assert (data.n_classes, data.x_shape) == (0, (1, 28, 28))
    for split, part in ((data.train, "train"), (data.val, "valid"), (data.read_test(), "test")):
        assert torch.equal(split.x.flatten(1), parts[part] * 255), "its own splits, whatever the seed"
    amat(tmp_path / "binarized_mnist_test.amat", 1 - parts["test"])
    changed = torchvision_images("mnist", "mnist", str(tmp_path), "larochelle").read_test()
    assert torch.equal(changed.x.flatten(1), 255 - parts["test"] * 255), "a file that has changed meanwhile"
    (tmp_path / "other").mkdir()
    for part in parts:
        (tmp_path / "other" / f"binarized_mnist_{part}.amat").write_text("0 1 0\n")
    with pytest.raises(UserError, match="is damaged"):
        torchvision_images("mnist", "mnist", str(tmp_path / "other"), "larochelle")


def idx(path, array, kind=8):
    header = bytes([0, 0, kind, array.ndim]) + b"".join(n.to_bytes(4, "big") for n in array.shape)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(header + array.astype(array.dtype.newbyteorder(">")).tobytes())


def ramp(n, *shape):
    """Images whose first pixel is their row, lighter to the right."""
    x = np.zeros((n, *shape), np.uint8)
    x[..., :] = np.arange(shape[-1], dtype=np.uint8)
    x[..., 0, 0] = np.arange(n).reshape(-1, *[1] * (len(shape) - 2))
    return x


def test_emnist_stands_upright_and_its_letters_count_from_0(tmp_path):
    for part, n in (("train", 30), ("test", 6)):
        upright = ramp(n, 28, 28)
        idx(tmp_path / f"EMNIST/raw/emnist-letters-{part}-images-idx3-ubyte", upright.transpose(0, 2, 1))
        idx(tmp_path / f"EMNIST/raw/emnist-letters-{part}-labels-idx1-ubyte", (np.arange(n) % 26 + 1).astype(np.uint8))
    source = torchvision_images("emnist", "emnist", str(tmp_path), split="letters")
    assert torch.equal(source.train.x[:, 0], torch.from_numpy(ramp(30, 28, 28)))
    assert source.train.y.tolist() == [i % 26 for i in range(30)]
    assert (len(source.read_test()), source.class_names[0], len(source.class_names)) == (6, "a", 26)


def test_qmnist_and_kmnist(tmp_path):
    for part, n in (("train", 12), ("test", 7)):
        idx(tmp_path / f"QMNIST/raw/qmnist-{part}-images-idx3-ubyte", ramp(n, 28, 28))
        labels = np.tile(np.arange(n, dtype=np.int32)[:, None] % 10, (1, 8)) + np.arange(8, dtype=np.int32) * 100
        idx(tmp_path / f"QMNIST/raw/qmnist-{part}-labels-idx2-int", labels, kind=12)
    source = torchvision_images("qmnist", "qmnist", str(tmp_path))
    assert source.train.y.tolist() == [i % 10 for i in range(12)]
    assert source.read_test().x.shape == (7, 1, 28, 28)
    write_idx(tmp_path / "KMNIST" / "raw")
    assert load("kmnist", tmp_path).class_names[1] == "ki"


def test_cifar10(tmp_path, monkeypatch):
    from torchvision.datasets import CIFAR10

    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    images = ramp(4, 3, 32, 32) + np.array([0, 50, 100], np.uint8)[:, None, None]
    for part, _ in [*CIFAR10.train_list, *CIFAR10.test_list]:
        (folder / part).write_bytes(pickle.dumps({"data": images.reshape(4, -1), "labels": [3, 1, 0, 9]}))
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": [f"thing {i}" for i in range(10)]}))
    with pytest.raises(UserError, match="cannot be read"):  # these are not the files whose sums torchvision knows
        torchvision_images("cifar10", "cifar10", str(tmp_path))
    monkeypatch.setattr(CIFAR10, "_check_integrity", lambda self: True)
    monkeypatch.setitem(CIFAR10.meta, "md5", hashlib.md5((folder / "batches.meta").read_bytes()).hexdigest())
    source = torchvision_images("cifar10", "cifar10", str(tmp_path))
    assert torch.equal(source.train.x, torch.from_numpy(np.tile(images, (5, 1, 1, 1))))
    assert (source.train.y[:4].tolist(), source.class_names[3], len(source.read_test())) == ([3, 1, 0, 9], "thing 3", 4)


def test_svhn(tmp_path, monkeypatch):
    import scipy.io
    from torchvision.datasets import SVHN

    images = ramp(5, 3, 32, 32)
    for part in ("train", "test"):
        stored = {"X": images.transpose(2, 3, 1, 0), "y": np.array([[10], [1], [2], [9], [10]])}
        scipy.io.savemat(tmp_path / f"{part}_32x32.mat", stored)
    monkeypatch.setattr(SVHN, "_check_integrity", lambda self: True)
    source = torchvision_images("svhn", "svhn", str(tmp_path))
    assert torch.equal(source.train.x, torch.from_numpy(images))
    assert source.train.y.tolist() == [0, 1, 2, 9, 0]
    assert (source.read_test().x_shape, len(source.class_names)) == ((3, 32, 32), 10)


READS = """
import sys
from vae_exp.datasets import torchvision_images

source = torchvision_images("mnist", "mnist", "data")
test = source.read_test()
print(len(test), int(test.x.sum()), test.y.tolist(), source.class_names[3], "torchvision" in sys.modules)
"""


@pytest.mark.slow
def test_a_prepared_copy_needs_no_torchvision_and_notices_changed_files(tmp_path, monkeypatch):
    """Also in the process that has read them before."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    raw = tmp_path / "data" / "MNIST" / "raw"
    write_idx(raw)
    first = torchvision_images("mnist", "mnist", "data").read_test()
    assert torchvision_images("mnist", "mnist", "data").read_test() is first, "the jobs of a sweep read it once"
    done = subprocess.run([sys.executable, "-c", READS], capture_output=True, text=True)
    assert done.stdout == f"6 {int(first.x.sum())} {[0, 1, 2, 3, 4, 5]} 3 False\n", done.stderr
    copies = list((tmp_path / "cache" / "vae_exp" / "prepared").iterdir())
    assert len(copies) == 2
    for copy in copies:
        copy.write_bytes(b"cut off")
    shutil.copytree("data", "moved")  # with its times
    assert torch.equal(torchvision_images("mnist", "mnist", "moved").read_test().x, first.x)
    assert sorted((tmp_path / "cache" / "vae_exp" / "prepared").iterdir()) == sorted(copies), "the same content"
    images = raw / "t10k-images-idx3-ubyte"
    before = images.stat()
    images.write_bytes(images.read_bytes()[:-1] + b"\x63")  # as large as before, and as old
    os.utime(images, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert torchvision_images("mnist", "mnist", "data").read_test().x[-1, 0, -1, -1] == 0x63
    images.write_bytes(b"cut off")
    source = torchvision_images("mnist", "mnist", "data")
    with pytest.raises(UserError, match="cannot be read"):
        source.read_test()


def test_the_digits_are_those_that_scikit_learn_loads():
    from sklearn.datasets import load_digits as theirs_of

    data, theirs = digits("digits"), theirs_of()
    x, y = (torch.cat([getattr(split, name) for split in (data.read_test(), data.train)]) for name in ("x", "y"))
    known = sorted(
        (*(image * 255 / 16).round().ravel(), label) for image, label in zip(theirs.images, theirs.target, strict=True)
    )
    assert known == sorted(
        (*image.double().flatten().tolist(), label) for image, label in zip(x, y.tolist(), strict=True)
    )
