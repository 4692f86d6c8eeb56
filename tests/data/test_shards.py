import gzip
import io
import json
import pickle
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from mlflow_unlearn.data import _index
from mlflow_unlearn.data.datasets import as_dataset
from mlflow_unlearn.data.loaders import load_source
from mlflow_unlearn.data.splits import labels_of
from mlflow_unlearn.data.transforms import build_transform
from mlflow_unlearn.errors import UnlearnError

NONE = build_transform("none", channels=3)


@pytest.fixture
def image(scan):
    def encode(digit, n, kind="jpg"):
        file = io.BytesIO()
        scan(digit, n).convert("RGB").save(file, "PNG" if kind == "png" else "JPEG", quality=95)
        return file.getvalue()

    return encode


@pytest.fixture
def write(tmp_path):
    """Write a shard of (name, bytes)."""

    def shard(name, members, **options):
        path = tmp_path / "shards" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with tarfile.open(path, "w", **options) as tar:
            for member, data in members:
                info = tarfile.TarInfo(member)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
        return path

    return shard


@pytest.fixture
def samples(image):
    """Members of samples of the digits 8 and 9 by turns."""

    def members(count, start=0, label=lambda digit: str(digit), kind="jpg"):
        for n in range(start, start + count):
            yield f"{n:04d}.{kind}", image(8 + n % 2, n // 2, kind)
            yield f"{n:04d}.cls", label(8 + n % 2).encode()

    return members


@pytest.fixture
def shards(write, samples, tmp_path):
    """Two training shards of six samples, one validation and one test shard of four."""
    for number in range(2):
        write(f"train-{number:06d}.tar", samples(6, 6 * number))
    write("val-000000.tar", samples(4, 20))
    write("test-000000.tar", samples(4, 30))
    return tmp_path / "shards"


def test_parts_ids_classes_and_images(shards, image):
    source = load_source(f"shards:{shards}")
    assert source.classes == ("8", "9") and source.spec == f"shards:{shards}" and source.deterministic
    assert source.train.ids == tuple(f"train-{n // 6:06d}/{n:04d}" for n in range(12))
    assert source.val.ids == tuple(f"val-000000/{n:04d}" for n in range(20, 24)) and len(source.test) == 4
    assert source.train.labels.tolist() == [0, 1] * 6
    from PIL import Image

    for part, n, i in ((source.train, 7, 7), (source.train, 0, 0), (source.test, 33, 3)):
        expected = Image.open(io.BytesIO(image(8 + n % 2, n // 2)))
        assert part.images[i].tobytes() == expected.tobytes()


def test_a_forget_and_a_retain_set_read_what_their_ids_say(shards, image):
    source = load_source(f"shards:{shards}")
    chosen = np.array([10, 3, 4])
    dataset = as_dataset(source.train.subset(chosen), NONE, memory_limit=0)
    whole = as_dataset(source.train, NONE)
    images, labels = dataset.gather(range(3))
    assert torch.equal(images, whole.tensors[0][chosen]) and labels.tolist() == [0, 1, 0]
    assert labels_of(dataset).tolist() == [0, 1, 0]
    by_workers = torch.cat([batch for batch, _ in DataLoader(dataset, batch_size=2, num_workers=2)])
    assert torch.equal(by_workers, images)
    again = pickle.loads(pickle.dumps(dataset))
    assert torch.equal(again.gather(range(3))[0], images)


def test_folders_name_the_parts_as_well(write, samples, tmp_path):
    write("train/a-0.tar", samples(4))
    write("train/a-1.tar", samples(4, 4))
    write("validation/0.tar", samples(8, 20))
    source = load_source(f"shards:{tmp_path}/shards")
    assert source.train.ids[0] == "train/a-0/0000" and len(source.train) == 8
    assert len(source.val) == len(source.test) == 4 and source.val.ids[0].startswith("validation/0/")


def test_shards_without_parts_are_cut(write, samples, tmp_path):
    for number in range(2):
        write(f"{number}.tar", samples(10, 10 * number, kind="png"))
    source = load_source(f"shards:{tmp_path}/shards")
    assert [len(part) for part in (source.train, source.val, source.test)] == [12, 4, 4]
    assert {i.split("/")[0] for i in source.train.ids} == {"0", "1"}


def test_what_else_is_in_a_shard_is_left_out(write, samples, image, tmp_path):
    more = [("0001.json", b"{}"), ("notes.txt", b"x"), ("./sub/b.PNG", image(8, 3, "png")), ("./sub/b.cls", b"8\n")]
    hidden = [("._0001.jpg", b"macOS"), ("__info__.json", b"{}")]
    write("imagenet1k-train-00.tar", [*samples(4), *more, *hidden])
    write("imagenet1k-validation-00.tar", samples(4, 20))
    source = load_source(f"shards:{tmp_path}/shards")
    assert source.train.ids[4] == "imagenet1k-train-00/sub/b" and len(source.train) == 5
    assert source.train.images[4].format == "PNG" and source.train.labels.tolist() == [0, 1, 0, 1, 0]


def test_a_key_of_200_characters(write, image, tmp_path):
    """Such names take further blocks of the tar file."""
    key = "ä" * 120 + "/" + "b" * 80
    for part in ("train", "val"):
        classes = [m for n in range(4) for m in ((f"{key}{n}.jpg", image(8, n)), (f"{key}{n}.cls", b"cat"))]
        write(f"{part}-0.tar", classes, format=tarfile.PAX_FORMAT)
    source = load_source(f"shards:{tmp_path}/shards")
    assert source.train.ids[3] == f"train-0/{key}3" and source.train.images[3].size == (16, 16)


def test_numbers_are_lines_of_classes_txt_and_names_are_names(write, samples, tmp_path):
    names = {8: "zebra", 9: "ant"}
    write("train-0.tar", samples(4, label=lambda digit: str(digit - 8)))
    write("val-0.tar", samples(4, 20, label=names.__getitem__))
    (tmp_path / "shards/classes.txt").write_text("zebra\nant\n")
    source = load_source(f"shards:{tmp_path}/shards")
    assert source.classes == ("zebra", "ant")
    assert source.train.labels.tolist() == [0, 1, 0, 1] and set(source.val.labels) == {0, 1}
    for text, message in (
        (
            "zebra\nbee\n",
            "'val' have the class 'ant', neither a line of '.*classes.txt' nor the number of one: .*'zebra', 'bee'",
        ),
        ("zebra\n", "'train' have the class '1', neither a line of"),
        ("ant\nzebra\nant\n", "has the classes 'ant' twice"),
    ):
        (tmp_path / "shards/classes.txt").write_text(text)
        with pytest.raises(UnlearnError, match=message):
            load_source(f"shards:{tmp_path}/shards")
    (tmp_path / "shards/classes.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(UnlearnError, match="can't read the classes"):
        load_source(f"shards:{tmp_path}/shards")


# What is missing or broken


@pytest.mark.parametrize("known_before", [True, False])
def test_a_missing_shard_is_named(shards, write, samples, known_before):
    write("train-000002.tar", samples(2, 12))
    if known_before:
        load_source(f"shards:{shards}")
    (shards / "train-000001.tar").unlink()
    with pytest.raises(UnlearnError, match="shards missing below '.*shards': 'train-000001.tar': copy them there, or"):
        load_source(f"shards:{shards}")


@pytest.mark.parametrize("first", [0, 1])
def test_a_shard_of_a_counted_set_is_missed_at_either_end(write, samples, tmp_path, first):
    for number in range(first, first + 3):
        write(f"train-{number}-of-3.tar", samples(4, 4 * number))
    write("val-0-of-1.tar", samples(4, 20))
    assert len(load_source(f"shards:{tmp_path}/shards").train) == 12
    for number in (first, first + 2):
        (tmp_path / f"shards/train-{number}-of-3.tar").rename(tmp_path / "away")
        # Without the last one of 1 to 3, those that are there could as well be two of 0 to 2.
        lost = f"train-{number}-of-3.tar" if number < 3 else "train-0-of-3.tar"
        with pytest.raises(UnlearnError, match=f"shards missing below '.*': '{lost}'"):
            load_source(f"shards:{tmp_path}/shards")
        (tmp_path / "away").rename(tmp_path / f"shards/train-{number}-of-3.tar")


def test_a_shard_that_webdatasets_index_lists_is_missed(shards):
    listed = [{"url": f"train-00000{n}.tar", "nsamples": 6} for n in range(3)]
    (shards / "index.json").write_text(json.dumps({"__kind__": "wids-shard-index-v1", "shardlist": listed}))
    with pytest.raises(UnlearnError, match="shards missing below '.*': 'train-000002.tar'"):
        load_source(f"shards:{shards}")
    (shards / "index.json").write_text("[1]")
    assert len(load_source(f"shards:{shards}").train) == 12


def test_a_shard_that_goes_or_shrinks_while_it_is_read_is_named(shards):
    images = load_source(f"shards:{shards}").train.images
    whole = (shards / "train-000001.tar").read_bytes()
    (shards / "train-000001.tar").write_bytes(whole[:2000])
    with pytest.raises(
        UnlearnError, match="the shard '.*train-000001.tar' is truncated now, within 'train-000001/0011'"
    ):
        images[11]
    (shards / "train-000001.tar").unlink()
    with pytest.raises(UnlearnError, match="can't read 'train-000001/0011' from the shard '.*train-000001.tar'"):
        images.pixels(11)


def test_a_truncated_shard_is_named_wherever_it_ends(shards):
    path = shards / "train-000001.tar"
    whole = path.read_bytes()
    with tarfile.open(path) as tar:
        ends = [member.offset for member in tar.getmembers()]
        end = tar.offset  # of the last member; zeros follow
    for cut in (0, 100, 512, *ends[1:4], ends[3] + 200, ends[3] + 512, ends[3] + 600, end - 1, end, end + 100):
        path.write_bytes(whole[:cut])
        with pytest.raises(UnlearnError, match="the shard '.*train-000001.tar' is truncated or not a tar file"):
            load_source(f"shards:{shards}")
    path.write_bytes(whole[: end + 512])
    assert len(load_source(f"shards:{shards}").train) == 12


@pytest.mark.parametrize("name", ["train-000001.tar.gz", "train-000001.tgz", "val/0.tar.zst"])
def test_compressed_shards_are_to_be_unpacked(shards, name):
    (shards / name).parent.mkdir(exist_ok=True)
    (shards / name).write_bytes(b"")
    with pytest.raises(UnlearnError, match=f"compressed shards below '.*': '{name}': unpack them to plain .tar"):
        load_source(f"shards:{shards}")


def test_a_compressed_shard_with_the_wrong_name_is_seen(shards):
    path = shards / "train-000001.tar"
    path.write_bytes(gzip.compress(path.read_bytes()))
    with pytest.raises(UnlearnError, match="the shard '.*train-000001.tar' is compressed: unpack it"):
        load_source(f"shards:{shards}")


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ([("x.jpg", b"1")], "the sample 'x' of the shard '.*train-000001.tar' has no class ..cls.: add it or drop"),
        ([("x.cls", b"8"), ("x.json", b"{}")], "the sample 'x' of the shard '.*' has no image ..jpg, .jpeg or .png"),
        ([("x.jpg", b"1"), ("x.cls", b" \n")], "the class of the sample 'x' of the shard '.*' is not a text"),
        (
            [("x.jpg", b"1"), ("x.cls", b"8"), ("x.png", b"1")],
            "the shard '.*train-000001.tar' has the sample 'x' twice",
        ),
        ([("0007.cls", b"9"), ("0007.jpg", b"1")], "the shard '.*' has the sample '0007' twice: give each a key"),
    ],
)
def test_incomplete_and_double_samples_are_named(shards, write, samples, members, message):
    write("train-000001.tar", [*samples(6, 6), *members])
    with pytest.raises(UnlearnError, match=message):
        load_source(f"shards:{shards}")


def test_a_broken_image_is_named(shards, write, samples, image):
    write("train-000001.tar", [*samples(6, 6), ("x.jpg", image(8, 0)[:200]), ("x.cls", b"8")])
    with pytest.raises(UnlearnError, match="can't decode the image 'train-000001/x' .*: replace the file"):
        as_dataset(load_source(f"shards:{shards}").train, NONE)


def test_shards_of_no_part_or_of_one_part_only(write, samples, tmp_path):
    with pytest.raises(UnlearnError, match="no folder '.*shards': give the path of a folder of tar shards"):
        load_source(f"shards:{tmp_path}/shards")
    write("train-0.tar", samples(4))
    with pytest.raises(UnlearnError, match="has shards of 'train' only: add train, and test or val"):
        load_source(f"shards:{tmp_path}/shards")
    write("other-0.tar", samples(4, 20))
    with pytest.raises(UnlearnError, match="the shards 'other-0.tar' of '.*' belong to no split"):
        load_source(f"shards:{tmp_path}/shards")
    for path in (tmp_path / "shards").iterdir():
        path.unlink()
    with pytest.raises(UnlearnError, match="no shard in '.*': put train-000000.tar"):
        load_source(f"shards:{tmp_path}/shards")


def test_a_warm_start_does_not_open_a_shard(shards, write, samples, monkeypatch):
    monkeypatch.setattr(_index, "SETTLED", 0.0)
    opened, open_tar = [], tarfile.open

    def counting(name=None, mode="r", fileobj=None):
        opened.extend([Path(fileobj.name).name] if mode == "r:" else [])
        return open_tar(name, mode, fileobj)

    monkeypatch.setattr(tarfile, "open", counting)
    cold = load_source(f"shards:{shards}")
    assert len(opened) == 4
    warm = load_source(f"shards:{shards}")
    assert len(opened) == 4 and warm.digest == cold.digest and warm.train.ids == cold.train.ids
    assert warm.train.images[5].tobytes() == cold.train.images[5].tobytes()
    write("train-000001.tar", samples(4, 6))
    assert len(load_source(f"shards:{shards}").train) == 10
    assert opened[4:] == ["train-000000.tar", "train-000001.tar"]  # not those of the other parts
