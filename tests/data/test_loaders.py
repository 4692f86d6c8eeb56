import hashlib
import textwrap
from pathlib import Path

import numpy as np
import pytest
import torchvision
from sklearn.datasets import load_digits

from mlflow_unlearn.data.loaders import load_source
from mlflow_unlearn.data.manifest import Manifest
from mlflow_unlearn.data.spec import without_options
from mlflow_unlearn.errors import UnlearnError

DIGITS = load_digits()


def test_a_path_alone_is_told_what_reads_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, inside in (("images", "a.png"), ("tars", "train.tar")):
        (tmp_path / name).mkdir()
        (tmp_path / name / inside).touch()
    (tmp_path / "list.csv").touch()
    for path, scheme in (("images", "folder"), ("tars", "shards"), ("list.csv", "csv")):
        with pytest.raises(UnlearnError, match=rf"unknown data source '{path}': did you mean '{scheme}:{path}'\?"):
            load_source(path)


def counts(part):
    return np.bincount(part.labels, minlength=2).tolist()


def ids(source):
    return [set(part.ids) for part in (source.train, source.val, source.test)]


def test_digits_are_cut_into_three_stratified_parts():
    source = load_source("digits")
    total = np.bincount(DIGITS.target)
    assert [len(part) for part in (source.train, source.val, source.test)] == [1078, 359, 360]
    for part, fraction in ((source.train, 0.6), (source.val, 0.2), (source.test, 0.2)):
        assert (np.abs(np.bincount(part.labels) - fraction * total) < 1.01).all()
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


def test_who_decided_what_is_trained_on(tmp_path):
    drawn, part = load_source("digits,seed=2"), load_source("digits,train=20%")
    assert drawn.drawn and drawn.split == "made by this tool: 1078 samples drawn for training, seed 2"
    assert part.drawn and part.split.startswith("made by this tool: 359 samples")
    stated = load_source("digits,seed=2,split=drawn")
    assert (
        ids(stated) == ids(drawn)
        and not stated.drawn
        and stated.split == drawn.split + (", which a model was trained on, as stated")
    )
    listed = sorted(f"digits/{i}" for i in range(200))
    (tmp_path / "train.csv").write_text("\n".join(["id", *listed]))
    Manifest(tuple(listed)).hashed().to_csv(tmp_path / "hashed.csv")
    for name in ("train.csv", "hashed.csv"):
        source = load_source(f"digits,split={name},seed=1")
        assert sorted(source.train.ids) == listed and not source.drawn
        assert [len(part) for part in (source.val, source.test)] == [798, 799] and source.unused is None
        assert source.spec == f"digits,split={tmp_path / name},seed=1"
        assert source.split == f"by the list {str(tmp_path / name)!r}"
        again = load_source(source.spec)
        assert ids(again) == ids(source) and again.digest == source.digest


def test_what_no_split_has_is_known(tree):
    root = tree("data", train=10, test=10)
    whole = load_source(f"folder:{root}")
    assert not whole.drawn and whole.split == "the source's own" and whole.unused is None
    part = load_source(f"folder:{root},train=50%")
    assert part.drawn and set(part.train.ids) | set(part.unused.ids) == set(whole.train.ids)
    assert len(part.unused) == 10 and ids(part)[1:] == ids(whole)[1:]
    (root.parent / "ids.txt").write_text("\n".join(whole.train.ids[:5]))
    listed = load_source(f"folder:{root},split=ids.txt")
    assert listed.train.ids == whole.train.ids[:5] and listed.unused.ids == whole.train.ids[5:] and not listed.drawn
    (root.parent / "ids.txt").write_text("\n".join((*whole.train.ids[:5], whole.test.ids[0], "gone")))
    with pytest.raises(UnlearnError, match="lists 2 ids that the source does not have, or not to train on: 'gone', "):
        load_source(f"folder:{root},split=ids.txt")


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("digits,split=nowhere.csv", "no list of training ids .*nowhere.csv': give a file of ids"),
        ("digits,train=20%,split=ids.txt", "has train= and a list of what is trained on"),
        ("digits,seed=1,seed=2", "gives seed= twice"),
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
    # The split of the test part doesn't move with the fraction of the training part.
    some = load_source(f"torchvision:FashionMNIST@{fashion},train=1%")
    assert counts(some.train) == [60] * 10 and set(some.train.ids) < train and ids(some)[1:] == [val, test]


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
        ("file,label", "{p},a", "no column 'path'.*'file', 'label'; name .*behind the path: ,file=NAME,label=NAME"),
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


def test_csv_columns_of_other_names(table, tmp_path, monkeypatch):
    rows = [f'"images/{n}, ä.png",c{n % 3},{n},k{n // 2}' for n in range(30)]
    spec = table("picture,kind,number,label", rows)
    source = load_source(f"{spec},label=kind, seed=3,id=number,file=picture")
    assert source.classes == ("c0", "c1", "c2") and set().union(*ids(source)) == {str(n) for n in range(30)}
    assert set(source.train.groups) == {"label"}, "a column of a usual name that is not meant is a group"
    assert source.spec == f"{spec},file=picture,label=kind,id=number, seed=3"
    again = load_source(source.spec)
    assert again.spec == source.spec and again.digest == source.digest
    alone = without_options(source.spec)
    assert alone == f"{spec},file=picture,label=kind,id=number"
    assert load_source(alone).samples_digest == source.samples_digest
    monkeypatch.chdir(tmp_path)
    assert load_source("csv:t/list.csv,file=picture,label=kind").spec == f"{spec},file=picture,label=kind"
    usual = table("path,label", [f'"images/{n}, ä.png",c{n % 3}' for n in range(30)])
    assert load_source(f"{usual},file=path,label=label").spec == usual


@pytest.mark.parametrize(
    ("behind", "message"),
    [
        (",file=pictur,label=kind", "no column 'pictur': its columns are 'picture', 'kind'"),
        (",file=picture,label=kind,id=number", "no column 'number'"),
        (",file=picture,label=picture", "names one column for two things"),
        (",file=picture,label=", "label= in .* names no column"),
        (",file=picture,lable=kind", "unknown option 'lable' .*: did you mean 'label'"),
        (",file=picture,file=kind", "gives file= twice"),
    ],
)
def test_csv_column_problems(table, behind, message):
    spec = table("picture,kind", [f'"images/{n}, ä.png",c{n % 3}' for n in range(30)])
    with pytest.raises(UnlearnError, match=message):
        load_source(spec + behind)


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


def test_python_code_that_fails_is_reported_in_a_sentence(module, tmp_path):
    spec = module("""
        def splits():
            raise KeyError("the drive is not mounted")
        def refuses():
            from mlflow_unlearn.errors import UnlearnError
            raise UnlearnError("my own sentence")
    """)
    with pytest.raises(UnlearnError, match="' failed .KeyError: 'the drive is not mounted'.: correct it"):
        load_source(spec)
    with pytest.raises(UnlearnError, match="^my own sentence$"):
        load_source(spec.replace(":splits", ":refuses"))
    (tmp_path / "made_broken.py").write_text("1 / 0\n")
    with pytest.raises(UnlearnError, match="importing 'made_broken' failed .ZeroDivisionError: division by zero"):
        load_source("python:made_broken:splits")


def test_no_path_of_the_machine_gets_into_ids(tree):
    source = load_source(f"folder:{tree('set', **{'.': 10})}")
    assert not any(Path(i).is_absolute() for i in set().union(*ids(source)))
