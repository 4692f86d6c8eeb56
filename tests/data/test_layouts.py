"""Folders as the datasets are distributed."""

import numpy as np
import pytest

from mlflow_unlearn.data import _layouts
from mlflow_unlearn.data.loaders import load_source
from mlflow_unlearn.errors import UnlearnError


def counts(part):
    return np.bincount(part.labels, minlength=2).tolist()


def ids(source):
    return [set(part.ids) for part in (source.train, source.val, source.test)]


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


def test_classes_are_ordered_by_number_or_by_alphabet():
    assert _layouts.class_order(["10", "9", "9"]) == ("9", "10") and _layouts.class_order(["10", "b"]) == ("10", "b")
    assert _layouts.codes(["b", "a", "b"], ("a", "b")) == [1, 0, 1]


def test_a_table_has_its_columns_or_is_refused(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("path,label\na.png,001\nb.png,\n", encoding="utf-8-sig")
    table = _layouts.read_table(path, ("path", "label"))
    assert table["label"].tolist() == ["001", ""]
    with pytest.raises(UnlearnError, match="has no column 'id': its columns are 'path', 'label'"):
        _layouts.read_table(path, ("path", "id"))
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(UnlearnError, match="can't read the table '.*t.csv'"):
        _layouts.read_table(path)
