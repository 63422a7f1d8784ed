"""ImageNet from its archives: import, classes, a run, and what can be wrong."""

import io

import numpy as np
import pytest
import scipy.io
import tensorflow_datasets as tfds
from archive_files import (
    META,
    TRUTH,
    WNIDS,
    encode,
    imagenet_files,
    pack_inner,
    train_once,
    write,
)
from PIL import Image

from svda_jax.data import prepare
from svda_jax.data.imagenet import ARCHIVES

CLASSES = WNIDS[700:684:-1]
PNG, CMYK = f"{CLASSES[0]}.tar", f"{CLASSES[1]}.tar"
FIRST = "ILSVRC2012_val_00000001.JPEG"


def image_name(archive_name):
    return archive_name.replace(".tar", "_7.JPEG")


@pytest.fixture(scope="module")
def good():
    """The files of each archive, one a PNG and one of CMYK, and the truth."""
    files, truth = imagenet_files()
    png, cmyk = encode(3, kind="PNG"), encode(4, mode="CMYK")
    files["train"][PNG] = pack_inner([(image_name(PNG), png)])
    files["train"][CMYK] = pack_inner([(image_name(CMYK), cmyk)])
    return files, truth


@pytest.fixture(scope="module")
def folder(good, tmp_path_factory):
    return write_all(tmp_path_factory.mktemp("imagenet"), good[0])


def write_all(folder, files):
    for key, name in ARCHIVES.items():
        write(folder / name, files[key], "w:gz" if name.endswith("gz") else "w")
    return folder


@pytest.fixture(scope="module")
def class_list(tmp_path_factory):
    path = tmp_path_factory.mktemp("list") / "classes.txt"
    path.write_text("\n".join(f"{wnid} some words" for wnid in CLASSES))
    return path


def run(source, root, *options, name="imagenet2012"):
    data_dir = str(root / "tfds")
    options = [str(option) for option in options]
    prepare.main([name, "--from", str(source), "--data_dir", data_dir, *options])
    return tfds.builder(name, data_dir=data_dir)


def read(builder, split):
    raw = {"image": tfds.decode.SkipDecoding()}
    examples = builder.as_data_source(split=split, decoders=raw)
    return {e["file_name"].decode(): (e["image"], e["label"]) for e in examples}


@pytest.fixture(scope="module")
def imported(folder, tmp_path_factory):
    return run(folder, tmp_path_factory.mktemp("all"))


def test_import_is_what_tfds_itself_would_make(imported, good, tmp_path):
    files, truth = good
    theirs = tfds.builder_cls("imagenet2012")(data_dir=str(tmp_path))
    assert imported.version == theirs.version
    assert imported.info.features.to_json() == theirs.info.features.to_json()
    assert imported.info.features["label"].names == WNIDS
    found = read(imported, "validation")
    assert found == {
        name: (data, WNIDS.index(truth[name]))
        for name, data in files["validation"].items()
    }
    archive = ((name, io.BytesIO(data)) for name, data in files["train"].items())
    theirs._fix_image = lambda name, image: image  # needs TensorFlow
    expected = {
        key: (example["image"].read(), WNIDS.index(example["label"]))
        for key, example in theirs._generate_examples(archive)
    }
    found = read(imported, "train")
    assert found.keys() == expected.keys()
    for name, example in expected.items():
        if name not in map(image_name, (PNG, CMYK)):
            assert found[name] == example


def test_every_image_is_a_jpeg_of_rgb(imported):
    found = read(imported, "train")
    png, cmyk = (Image.open(io.BytesIO(found[image_name(n)][0])) for n in (PNG, CMYK))
    assert (png.format, png.mode) == (cmyk.format, cmyk.mode) == ("JPEG", "RGB")
    original = Image.open(io.BytesIO(encode(3, kind="PNG")))
    # Noise in quality 100: rounding in YCbCr and of the transform, 1 or 2 each.
    np.testing.assert_allclose(np.int32(png), np.int32(original), atol=6)


def test_some_classes_are_a_data_set_in_the_order_of_their_ids(
    folder, class_list, good, tmp_path, capsys
):
    builder = run(folder, tmp_path, "--class_list", class_list, name="imagenet16")
    assert builder.info.features["label"].names == sorted(CLASSES)
    line = capsys.readouterr().out.splitlines()[-1]
    assert "configs/imagenet100.py" in line
    assert line.endswith("dataset.name=imagenet16 --config.dataset.num_classes=16")
    assert len(read(builder, "train")) == 16
    for name, (data, label) in read(builder, "validation").items():
        assert data == good[0]["validation"][name]
        assert sorted(CLASSES)[label] == good[1][name]


def test_a_run_from_archives_to_evaluation(folder, class_list, tmp_path):
    run(folder, tmp_path, "--class_list", class_list, name="imagenet100")
    config, data_dir = "configs/imagenet100.py", tmp_path / "tfds"
    accuracy = train_once(config, tmp_path / "run", data_dir, num_classes=16)
    assert 0 <= accuracy[-1] <= 1


def test_a_run_of_some_classes_of_all(imported, class_list, tmp_path):
    chosen = {"name": "imagenet2012", "class_list": class_list, "num_classes": 16}
    config, data_dir = "configs/imagenet100.py", imported.data_dir_root
    accuracy = train_once(config, tmp_path / "run", data_dir, **chosen)
    assert 0 <= accuracy[-1] <= 1


def inner(files, *content):
    return files | {PNG: pack_inner(content)}


def change_meta(files, **changes):
    """The devkit with another value for the first synset."""
    synsets = scipy.io.loadmat(io.BytesIO(files[META]), squeeze_me=True)["synsets"]
    for key, value in changes.items():
        synsets[0][key] = value
    meta = io.BytesIO()
    scipy.io.savemat(meta, {"synsets": synsets})
    return files | {META: meta.getvalue()}


def without(files, name):
    return {key: data for key, data in files.items() if key != name}


IMAGE = (image_name(PNG), encode(5))


@pytest.mark.parametrize(
    ("key", "change", "message"),
    [
        (
            "train",
            lambda f: without(f, PNG),
            f"has 0 images of {CLASSES[0]}, expected 1",
        ),
        ("train", lambda f: f | {PNG: b"hello"}, "cannot read .*no tar archive"),
        ("train", lambda f: inner(f, IMAGE, IMAGE), f"{IMAGE[0]} comes twice"),
        (
            "train",
            lambda f: inner(f, IMAGE, ("x.JPEG", b"")),
            "x.JPEG is no image of n",
        ),
        (
            "train",
            lambda f: inner(f, IMAGE, (IMAGE[0].replace("_7", "_8"), IMAGE[1])),
            f"has 2 images of {CLASSES[0]}, expected 1",
        ),
        (
            "train",
            lambda f: f | {PNG: f[PNG][:700]},
            f"cannot read .*{PNG}: unexpected",
        ),
        ("validation", lambda f: without(f, FIRST), f"{FIRST} is not there"),
        ("validation", lambda f: f | {"x.JPEG": b""}, "x.JPEG is there, unlike in the"),
        ("devkit", lambda f: without(f, TRUTH), "has no data/ILSVRC2012_validation_gr"),
        (
            "devkit",
            lambda f: without(f, META),
            "has no data/meta.mat; it is damaged or an",
        ),
        ("devkit", lambda f: f | {META: b"hello"}, r"cannot read data/meta\.mat"),
        ("devkit", lambda f: f | {META: f[META][:999]}, r"cannot read data/meta\.mat"),
        ("devkit", lambda f: f | {TRUTH: b"1\n1001\n"}, "line 2: 1001 is no class"),
        ("devkit", lambda f: f | {TRUTH: b"1\nx\n"}, "line 2: x is no class"),
        ("devkit", lambda f: f | {TRUTH: b"1\n"}, "is there, unlike in the devkit's"),
        (
            "devkit",
            lambda f: change_meta(f, WNID="n00000001"),
            "which are not the 1,000",
        ),
        ("devkit", lambda f: change_meta(f, num_children=1), "has 999 classes"),
    ],
)
def test_wrong_archives_are_one_line(good, folder, tmp_path, key, change, message):
    source = tmp_path / "files"
    source.mkdir()
    for name in ARCHIVES.values():
        (source / name).symlink_to(folder / name)
    path = source / ARCHIVES[key]
    path.unlink()
    write(path, change(good[0][key]), "w:gz" if key == "devkit" else "w")
    with pytest.raises(SystemExit, match=message) as exit_:
        run(source, tmp_path)
    assert "\n" not in str(exit_.value)
    assert not (tmp_path / "tfds/imagenet2012").exists()


@pytest.mark.parametrize("key", ARCHIVES)
def test_a_truncated_or_missing_archive_is_one_line(folder, tmp_path, key):
    source = tmp_path / "files"
    source.mkdir()
    for name in ARCHIVES.values():
        (source / name).write_bytes((folder / name).read_bytes())
    path = source / ARCHIVES[key]
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(SystemExit, match=f"cannot read {path}"):
        run(source, tmp_path)
    path.unlink()
    with pytest.raises(SystemExit, match=f"is not {path.name}, nor a folder with it"):
        run(source, tmp_path)


def test_names_and_class_lists_that_do_not_fit_are_one_line(
    folder, class_list, tmp_path
):
    cases = [
        (("--class_list", class_list), "imagenet2012", "has all its classes; choose"),
        ((), "imagenet100", "--class_list FILE says which classes imagenet100 has"),
        (
            ("--class_list", tmp_path / "no"),
            "imagenet100",
            "no cannot be read: .*No su",
        ),
        (("--class_list", class_list), "cifar10", "cifar10 has all its classes"),
        (("--class_list", ""), "imagenet100", "a path is empty"),
        (("--class_list", "/dev/null"), "imagenet100", "/dev/null names no class"),
    ]
    for options, name, message in cases:
        with pytest.raises(SystemExit, match=message):
            run(folder, tmp_path, *options, name=name)
    (tmp_path / "list").write_text("n00000001\n")
    with pytest.raises(SystemExit, match="line 1: n00000001 is no class of ImageNet"):
        run(folder, tmp_path, "--class_list", tmp_path / "list", name="imagenet100")
    with pytest.raises(SystemExit, match="is no folder with ILSVRC2012_img_train"):
        run(tmp_path, tmp_path)
    with pytest.raises(SystemExit, match="is downloaded by hand, from https://image-n"):
        prepare.main(["imagenet2012", "--data_dir", str(tmp_path / "tfds")])
    with pytest.raises(SystemExit, match="--class_list goes with --from DIR"):
        prepare.main(["cifar10", "--class_list", str(class_list)])
    assert not list(tmp_path.glob("tfds/imagenet*"))
