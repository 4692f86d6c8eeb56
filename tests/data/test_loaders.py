import hashlib
import textwrap
from pathlib import Path

import numpy as np
import pytest
import torchvision
from sklearn.datasets import load_digits

from mlflow_unlearn.data.loaders import load_source, stratified
from mlflow_unlearn.errors import UnlearnError

DIGITS = load_digits()


def counts(part):
    return np.bincount(part.labels, minlength=2).tolist()


def ids(source):
    return [set(part.ids) for part in (source.train, source.val, source.test)]


# Cuts


def test_stratified_rounds_by_the_largest_remainder():
    # n = 5 of 10: quotas 5·(7, 2, 1)/10 = 3.5, 1.0, 0.5 → floors 3, 1, 0 and one more for the first .5.
    labels = np.array([0] * 7 + [1] * 2 + [2])
    chosen = stratified(labels, 5, seed=0)
    assert np.bincount(labels[chosen]).tolist() == [4, 1]
    assert len(set(chosen)) == 5 and (np.sort(chosen) == chosen).all()


@pytest.mark.parametrize("n", range(8))
def test_stratified_sizes_are_exact_when_every_class_is_tiny(n):
    assert len(stratified(np.array([4, 4, 0, 7, 7, 9, 2]), n, seed=1)) == n


def test_stratified_counts_and_shares():
    labels = np.repeat([0, 1], 50)
    assert len(stratified(labels, 1, seed=0)) == 1  # an int is a number of samples, a float a share
    assert len(stratified(labels, np.int64(3), seed=0)) == 3
    assert (stratified(labels, 1.0, seed=0) == np.arange(100)).all()
    assert (stratified(labels, 0.5, seed=0) == stratified(labels, 50, seed=0)).all()
    assert (stratified(labels, 50, seed=0) != stratified(labels, 50, seed=1)).any()
    with pytest.raises(UnlearnError, match="can't draw 101 of 100"):
        stratified(labels, 101, seed=0)


def test_digits_are_cut_into_three_stratified_parts():
    source = load_source("digits")
    total = np.bincount(DIGITS.target)
    assert [len(part) for part in (source.train, source.val, source.test)] == [1078, 359, 360]
    for part, share in ((source.train, 0.6), (source.val, 0.2), (source.test, 0.2)):
        assert (np.abs(np.bincount(part.labels) - share * total) < 1.01).all()
    train, val, test = ids(source)
    assert train | val | test == {f"digits/{i}" for i in range(1797)}
    assert not (train & val or train & test or val & test)
    number = int(source.val.ids[5].removeprefix("digits/"))
    image = source.val.images[5]
    assert image.mode == "L" and image.size == (8, 8)
    assert (np.asarray(image) == np.rint(DIGITS.images[number] * 255 / 16)).all()
    assert source.val.labels[5] == DIGITS.target[number]
    assert source.classes == tuple("0123456789") and source.deterministic and not source.ready


def test_seed_and_share():
    first, again, other = load_source("digits"), load_source("digits,seed=0"), load_source("digits,seed=3")
    assert ids(first) == ids(again) and first.digest == again.digest
    assert first.digest != other.digest and ids(first)[0] != ids(other)[0]
    small = load_source("digits,train=20%,seed=3")
    assert [len(part) for part in (small.train, small.val, small.test)] == [359, 719, 719]
    assert small.digest == load_source("digits,seed=3,train=0.2").digest


def test_digest_is_over_the_sorted_manifest(tree):
    source = load_source(f"folder:{tree('set', train=1, val=1, test=1)}")
    lines = [f"{part}\t{part}/{name}/0.png\t{name}" for part in ("test", "train", "val") for name in ("eight", "nine")]
    assert source.digest == hashlib.sha256("\n".join(lines).encode()).hexdigest()


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("digits,sead=1", "unknown option 'sead'.*did you mean 'seed'.*'train'"),
        ("digits,seed=-1", "seed=-1.*whole number from 0"),
        ("digits,seed=", "seed= in"),
        ("digits,train=120%", "train=120%.*20% or 0.2"),
        ("digits,train=half", "train=half"),
        ("digits,train=0", "train=0"),
        ("digits,train=100%", "leaves the validation set without samples"),
        (
            "diggits",
            "unknown data source 'diggits': did you mean 'digits'.*'torchvision', 'folder', 'shards', 'csv', 'python'",
        ),
        ("digits:x", "write digits"),
        ("folder:nowhere", "no folder .*nowhere"),
        ("csv:nowhere.csv", "can't read the table"),
        ("torchvision:CIFAR10", "write torchvision:NAME@ROOT"),
        ("torchvision:CIFAR11@.", "did you mean 'CIFAR10"),
        ("torchvision:FakeData@.", "FakeData has no train and test split"),
        ("torchvision:EMNIST@.", "EMNIST has no train and test split"),
        ("torchvision:CIFAR10@.", "cifar-10-batches-py"),
        ("torchvision:FashionMNIST@.", "FashionMNIST/raw/train-images-idx3-ubyte"),
        ("torchvision:SVHN@.", "train_32x32.mat and test_32x32.mat"),
        ("torchvision:ImageNet@.", "one folder a WordNet id"),
        ("python:nothing", "'nothing' names no function: write package.module:function"),
        ("python:no_such_module:f", "'no_such_module:f': importing 'no_such_module' failed"),
        ("python:math:cosh2", "has no function 'cosh2'"),
        ("python:time:time", "returned a float: return mlflow_unlearn.Splits"),
    ],
)
def test_bad_specs_are_refused(spec, message):
    with pytest.raises(UnlearnError, match=message):
        load_source(spec)


# torchvision


def test_fashion_mnist_cuts_validation_from_the_test_part_only(fashion):
    source = load_source(f"torchvision:FashionMNIST@{fashion}")
    assert (len(source.train), counts(source.val), counts(source.test)) == (60000, [500] * 10, [500] * 10)
    train, val, test = ids(source)
    assert train == {f"train/{i}" for i in range(60000)}
    assert val | test == {f"test/{i}" for i in range(10000)} and not val & test
    assert source.classes[9] == "Ankle boot"
    raw = torchvision.datasets.FashionMNIST(str(fashion), train=False)
    image, label = raw[int(source.test.ids[7].removeprefix("test/"))]
    assert source.test.images[7].tobytes() == image.tobytes() and source.test.labels[7] == label
    # The cut of the test part doesn't move with the share of the training part.
    share = load_source(f"torchvision:FashionMNIST@{fashion},train=1%")
    assert counts(share.train) == [60] * 10 and set(share.train.ids) < train and ids(share)[1:] == [val, test]


@pytest.mark.parametrize("name", ["CIFAR10", "CIFAR100"])
def test_cifar_as_distributed(cifar, name):
    made = cifar(name)
    source = load_source(f"torchvision:{name}@{made.root},seed=5")
    assert source.classes == made.classes
    assert len(source.train) == (1000 if name == "CIFAR10" else 200)
    assert len(source.val) == len(source.test) == 100
    image = source.train.images[3]
    assert image.mode == "RGB" and image.size == (32, 32)
    grey = np.kron((DIGITS.images[3] * 15.9375).round(), np.ones((4, 4)))
    assert (np.asarray(image)[..., 0] == grey).all() and (np.asarray(image)[..., 2] == 255 - grey).all()


def test_imagenet_of_torchvision_tests_on_val_and_names_files(save, tmp_path):
    import torch

    wnids = ("n01440764", "n02012849", "n03126707")
    for label, wnid in enumerate(wnids):
        for n in range(2):
            save(label, n, f"net/train/{wnid}/{wnid}_{n}.JPEG")
            save(label, n + 5, f"net/val/{wnid}/ILSVRC2012_val_{label}{n}.JPEG")
    torch.save(({wnids[0]: ("tench",), wnids[1]: ("crane",), wnids[2]: ("crane",)}, []), tmp_path / "net/meta.bin")
    source = load_source(f"torchvision:ImageNet@{tmp_path}/net")
    assert source.classes == wnids  # names occur twice in ImageNet
    assert "train/n01440764/n01440764_0.JPEG" in source.train.ids
    assert counts(source.val) == counts(source.test) == [1, 1, 1]
    assert source.test.ids[0].startswith("val/n01440764/")
    assert source.test.images[0].size == (16, 16)


# Folders


def test_folder_with_all_three_parts_is_taken_as_it_is(tree):
    root = tree("set", train=4, valid=2, test=3)
    source = load_source(f"folder:{root}")
    assert source.classes == ("eight", "nine")
    assert [counts(part) for part in (source.train, source.val, source.test)] == [[4, 4], [2, 2], [3, 3]]
    assert source.val.ids == tuple(f"valid/{name}/{n}.png" for name in ("eight", "nine") for n in range(2))
    with_file = source.train.images[5]
    assert with_file.size == (16, 16) and source.train.ids[5] == "train/nine/1.png"
    assert len(load_source(f"folder:{root},train=50%").train) == 4


@pytest.mark.parametrize("held_out", ["test", "val", "validation"])
def test_folder_with_one_held_out_part_has_it_cut(tree, held_out):
    source = load_source(f"folder:{tree('set', train=3, **{held_out: 4})}")
    assert [counts(part) for part in (source.train, source.val, source.test)] == [[3, 3], [2, 2], [2, 2]]
    assert ids(source)[1] | ids(source)[2] == {f"{held_out}/{c}/{n}.png" for c in ("eight", "nine") for n in range(4)}


def test_plain_folder_is_cut_and_a_comma_belongs_to_the_path(tree):
    source = load_source(f"folder:{tree('a,b=c/x, y', **{'.': 10})},seed=2")
    assert [counts(part) for part in (source.train, source.val, source.test)] == [[6, 6], [2, 2], [2, 2]]
    assert "eight/0.png" in set().union(*ids(source))


def test_a_class_called_train_and_an_unlabelled_test_folder(tree, save, tmp_path):
    for name in ("train", "bus"):
        for n in range(5):
            save(1, n, f"vehicles/{name}/{n}.png")
    assert load_source(f"folder:{tmp_path}/vehicles").classes == ("bus", "train")
    root = tree("set", train=3, val=4)
    save(1, 0, "set/test/0.png")
    assert ids(load_source(f"folder:{root}"))[2] < {f"val/{c}/{n}.png" for c in ("eight", "nine") for n in range(4)}


def test_folder_problems_name_the_classes(tree, save, tmp_path):
    save(3, 0, "one/train/three/0.png")
    with pytest.raises(UnlearnError, match="no test sample of the classes 'three'"):
        load_source(f"folder:{tree('one', train=1, test=2)}")
    # The test part measures: a place in the validation part is not enough, and in the test part it is.
    for part in ("train", "val"):
        save(3, 0, f"six/{part}/three/0.png")
    with pytest.raises(UnlearnError, match="no test sample of the classes 'three'"):
        load_source(f"folder:{tree('six', train=1, val=1, test=1)}")
    for part in ("train", "test"):
        save(3, 0, f"seven/{part}/three/0.png")
    assert "three" in load_source(f"folder:{tree('seven', train=1, val=1, test=1)}").classes
    save(3, 0, "two/test/three/0.png")
    with pytest.raises(UnlearnError, match="no training sample of the classes 'three'"):
        load_source(f"folder:{tree('two', train=1, test=2)}")
    with pytest.raises(UnlearnError, match="has train/ and no test/ or val/"):
        load_source(f"folder:{tree('three', train=1)}")
    (tree("four", **{".": 5}) / "empty").mkdir()
    with pytest.raises(UnlearnError, match="no image in the class folders 'empty'"):
        load_source(f"folder:{tmp_path}/four")
    save(3, 0, "five/0.png")
    with pytest.raises(UnlearnError, match="holds no class folders: known layouts"):
        load_source(f"folder:{tmp_path}/five")


def test_tiny_imagenet_as_distributed(save, tmp_path):
    wnids, rows = ("n02124075", "n01443537"), []
    for label, wnid in enumerate(wnids):
        for n in range(3):
            save(label, n, f"tiny/train/{wnid}/images/{wnid}_{n}.JPEG")
        (tmp_path / f"tiny/train/{wnid}/{wnid}_boxes.txt").write_text(f"{wnid}_0.JPEG\t0\t0\t9\t9\n")
        for n in range(2):
            save(label, n + 5, f"tiny/val/images/val_{label + 2 * n}.JPEG")
            rows.append(f"val_{label + 2 * n}.JPEG\t{wnid}\t0\t32\t44\t62\n")
    save(0, 9, "tiny/test/images/test_0.JPEG")
    (tmp_path / "tiny/val/val_annotations.txt").write_text("".join(rows))
    (tmp_path / "tiny/wnids.txt").write_text("\n".join(wnids) + "\n")
    source = load_source(f"folder:{tmp_path}/tiny")
    assert source.classes == ("n01443537", "n02124075")
    assert [counts(part) for part in (source.train, source.val, source.test)] == [[3, 3], [1, 1], [1, 1]]
    held_out = dict(zip(source.val.ids + source.test.ids, [*source.val.labels, *source.test.labels], strict=True))
    assert held_out == {f"val/images/val_{i}.JPEG": 1 - i % 2 for i in range(4)}
    (tmp_path / "tiny/val/images/val_3.JPEG").unlink()
    with pytest.raises(UnlearnError, match="files missing below .*: 'val/images/val_3.JPEG'"):
        load_source(f"folder:{tmp_path}/tiny")


def test_mufac_as_distributed(save, tmp_path):
    for part, families in {"train": ("F0001", "F0002"), "val": ("F0003",), "test": ("F0004",)}.items():
        rows = ["family_id,person_id,age_class,image_path"]
        for family in families:
            for person in (1, 2):
                name = f"{family}_AGE_{person}.jpg"
                save(person, int(family[-1]), f"mufac/{part}_images/{name}")
                rows.append(f"{family},{person},{'ab'[person - 1]},{name}")
        (tmp_path / f"mufac/custom_{part}_dataset.csv").write_text("\n".join(rows) + "\n")
    source = load_source(f"folder:{tmp_path}/mufac")
    assert source.classes == ("a", "b")
    assert [len(part) for part in (source.train, source.val, source.test)] == [4, 2, 2]
    assert source.train.ids[2] == "train_images/F0002_AGE_1.jpg"
    assert source.train.groups == {
        "family_id": ("F0001", "F0001", "F0002", "F0002"),
        "person_id": ("1", "2", "1", "2"),
        "subject": ("F0001/1", "F0001/2", "F0002/1", "F0002/2"),
    }
    listing = source.listing()
    assert list(listing.columns) == ["id", "split", "class", "family_id", "person_id", "subject"]
    assert listing["split"].tolist() == ["train"] * 4 + ["val"] * 2 + ["test"] * 2
    assert listing.iloc[5].tolist() == ["val_images/F0003_AGE_2.jpg", "val", "b", "F0003", "2", "F0003/2"]
    assert load_source(f"folder:{tmp_path}/mufac,train=0.5").train.groups["subject"] in (
        ("F0001/1", "F0001/2"),
        ("F0001/1", "F0002/2"),
        ("F0001/2", "F0002/1"),
        ("F0002/1", "F0002/2"),
    )


def test_imagenet_of_kaggle_as_distributed(save, tmp_path):
    wnids, rows = ("n01440764", "n01751748"), ["ImageId,PredictionString"]
    base = "kaggle/ILSVRC/Data/CLS-LOC"
    for label, wnid in enumerate(wnids):
        for n in range(3):
            save(label, n, f"{base}/train/{wnid}/{wnid}_{n}.JPEG")
        for n in range(2):
            name = f"ILSVRC2012_val_0000000{label + 2 * n}"
            save(label, n, f"{base}/val/{name}.JPEG")
            rows.append(f"{name},{wnid} 111 108 230 269 {wnids[0]} 24 133 115 254 ")
    save(0, 0, f"{base}/test/ILSVRC2012_test_00000001.JPEG")
    (tmp_path / "kaggle/LOC_val_solution.csv").write_text("\n".join(rows) + "\n")
    source = load_source(f"folder:{tmp_path}/kaggle")
    assert source.classes == wnids
    assert source.train.ids[3] == "ILSVRC/Data/CLS-LOC/train/n01751748/n01751748_0.JPEG"
    assert [counts(part) for part in (source.train, source.val, source.test)] == [[3, 3], [1, 1], [1, 1]]
    held_out = dict(zip(source.val.ids + source.test.ids, [*source.val.labels, *source.test.labels], strict=True))
    assert held_out == {f"ILSVRC/Data/CLS-LOC/val/ILSVRC2012_val_0000000{i}.JPEG": i % 2 for i in range(4)}
    (tmp_path / "kaggle/LOC_val_solution.csv").write_text("ImageId,PredictionString\nx,n99 1 2 3 4\n")
    with pytest.raises(UnlearnError, match="no training folder for the classes 'n99'"):
        load_source(f"folder:{tmp_path}/kaggle")


# CSV


@pytest.fixture
def table(save, tmp_path):
    for n in range(30):
        save(n % 3, n // 3, f"t/images/{n}, ä.png")

    def write(header, rows, name="t/list.csv"):
        (tmp_path / name).write_text("\n".join([header, *rows]) + "\n", encoding="utf-8-sig")
        return f"csv:{tmp_path / name}"

    return write


def test_csv_without_a_split_is_cut(table, tmp_path):
    spec = table(
        "path,label,camera",
        [
            f'"{tmp_path if n == 4 else "."}/{"t/" if n == 4 else ""}images/{n}, ä.png",{9 + n % 3},c{n}'
            for n in range(30)
        ],
    )
    source = load_source(spec)
    assert source.classes == ("9", "10", "11")  # numbers by value: "10" sorts before "9"
    assert [counts(part) for part in (source.train, source.val, source.test)] == [[6] * 3, [2] * 3, [2] * 3]
    assert set().union(*ids(source)) == {f"images/{n}, ä.png" for n in range(30)}
    assert source.train.groups["camera"][0] == "c" + source.train.ids[0].removeprefix("images/").split(",")[0]
    assert source.train.images[0].size == (16, 16)


def test_csv_with_ids_and_a_split(table):
    splits = ["train"] * 18 + ["val"] * 6 + ["test"] * 6
    rows = [f'p{n},"images/{n}, ä.png",c{n % 3},{split}' for n, split in enumerate(splits)]
    source = load_source(table("id,path,label,split", rows))
    assert source.train.ids == tuple(f"p{n}" for n in range(18)) and source.val.ids[0] == "p18"
    assert source.train.groups == {}
    rows = [row.replace(",val", ",test") for row in rows]
    assert [counts(p) for p in (load_source(table("id,path,label,split", rows)).val,)] == [[2, 2, 2]]


@pytest.mark.parametrize(
    ("header", "row", "message"),
    [
        ("file,label", "{p},a", "no column 'path'.*'file', 'label'"),
        ("path,label,split", "{p},a,tset", "the splits 'tset'"),
        ("path,label,split", "{p},a,train", "no row of the split 'test'"),
        ("path,label", "images/none{n}.png,a", r"files missing .*'images/none9.png', … \(30 in all\)"),
        ("path,label,id", "{p},a,same", "ids that occur twice: 'same'"),
        ("path,label", "{p},", "an empty path, label or id"),
        ("path,label", "images/{n},a,b", "more fields than its header"),
    ],
)
def test_csv_problems(table, header, row, message):
    with pytest.raises(UnlearnError, match=message):
        load_source(table(header, [row.format(n=n, p=f'"images/{n}, ä.png"') for n in range(30)]))


# Python


@pytest.fixture
def module(tmp_path, request):
    name = f"made_{hashlib.md5(request.node.name.encode()).hexdigest()}"

    def write(body):
        (tmp_path / f"{name}.py").write_text(
            "import torch\nfrom torch.utils.data import TensorDataset, Subset, Dataset\n"
            "from mlflow_unlearn.data.splits import Splits\n"
            "def make(labels, start=0.):\n"
            "    x = torch.arange(len(labels)).float().view(-1, 1, 1, 1) + start\n"
            "    return TensorDataset(x, torch.tensor(labels))\n" + textwrap.dedent(body)
        )
        return f"python:{name}:splits"

    return write


def test_python_joins_retain_and_forget(module):
    spec = module("""
        def splits():
            return Splits(forget=make([2, 2], 100), retain=make([0, 1, 0]), val=make([0]), test=make([1, 0]))
    """)
    source = load_source(spec)
    assert source.ready and source.deterministic and source.classes == ("0", "1", "2")
    assert source.train.ids == ("retain/0", "retain/1", "retain/2", "forget/0", "forget/1")
    assert source.train.labels.tolist() == [0, 1, 0, 2, 2]
    assert source.train.groups == {"split": ("retain",) * 3 + ("forget",) * 2}
    image, label = source.train.subset([1, 4]).images[1]
    assert (image.item(), int(label)) == (101.0, 2)
    assert (source.val.ids, source.test.ids) == (("val/0",), ("test/0", "test/1"))


def test_python_reads_labels_apart_and_knows_what_may_be_random(module):
    spec = module("""
        class Loud(Dataset):
            targets = [1, 0]
            def __len__(self): return 2
            def __getitem__(self, i): raise AssertionError("read an image for its label")
        class Quiet(Dataset):
            def __len__(self): return 3
            def __getitem__(self, i):
                if i > 2: raise IndexError(i)
                return torch.zeros(1, 1, 1), i
        def splits():
            return Splits(forget=Subset(make([0, 1, 2, 3]), [3, 1]), retain=Quiet(), val=Loud(), test=make([0]))
        def fixed():
            return Splits(forget=Subset(make([0, 1]), [1]), retain=make([0]), val=make([0]), test=make([0]))
        def wrong():
            return Splits(forget=make([0.5]), retain=make([[0, 1]]), val=make([0]), test=make([0]))
    """)
    source = load_source(spec)
    assert not source.deterministic and source.ready
    assert source.train.labels.tolist() == [0, 1, 2, 3, 1] and source.val.labels.tolist() == [1, 0]
    assert load_source(spec.replace(":splits", ":fixed")).deterministic
    with pytest.raises(UnlearnError, match=r"retain: labels of shape \(1, 2\)"):
        load_source(spec.replace(":splits", ":wrong"))


def test_python_code_that_fails_is_told_in_a_sentence(module, tmp_path):
    spec = module("""
        def splits():
            raise KeyError("the drive is not mounted")
        def refuses():
            from mlflow_unlearn.errors import UnlearnError
            raise UnlearnError("my own sentence")
    """)
    with pytest.raises(UnlearnError, match=f"{spec} failed with KeyError: 'the drive is not mounted'"):
        load_source(spec)
    with pytest.raises(UnlearnError, match="^my own sentence$"):
        load_source(spec.replace(":splits", ":refuses"))
    (tmp_path / "made_broken.py").write_text("1 / 0\n")
    with pytest.raises(UnlearnError, match="importing 'made_broken' failed .division by zero"):
        load_source("python:made_broken:splits")


def test_no_path_of_the_machine_gets_into_ids(tree):
    source = load_source(f"folder:{tree('set', **{'.': 10})}")
    assert not any(Path(i).is_absolute() for i in set().union(*ids(source)))
