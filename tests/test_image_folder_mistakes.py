"""Import of folders of images: what can be wrong with them, in one line."""

import shutil
import subprocess
import sys

import pytest
from folders import run, write_images

from svda_jax import UserError
from svda_jax.__main__ import main as program
from svda_jax.data import prepare
from svda_jax.data.image_folder import find_images


def empty_class(folder):
    for path in (folder / "val/bee").iterdir():
        path.unlink()


def missing_class(folder):
    shutil.rmtree(folder / "val/cat")


def extra_class(folder):
    write_images(folder / "val", ["dog"])


def truncate_class(folder):
    path = folder / "val/bee/bee_10.png"
    path.write_bytes(path.read_bytes()[:-60])


def no_train(folder):
    shutil.rmtree(folder / "train")


def no_folders(folder):
    shutil.rmtree(folder)
    folder.mkdir()


def no_images(folder):
    no_folders(folder)
    (folder / "a/b/c").mkdir(parents=True)


def bad_words(folder):
    (folder / "Labels.json").write_text("[1]")


def bad_word(folder):
    (folder / "Labels.json").write_text('{"ant": 1}')


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (empty_class, r"class bee has no images in validation \(.*val/bee\)"),
        (missing_class, r"class cat has no images in validation \(.*val/cat\)"),
        (extra_class, "class dog is in validation but not in train"),
        (truncate_class, "class bee has no image in validation that decodes"),
        (no_train, "has val/ but no train/"),
        (no_folders, "no folders of images, one for each class"),
        (no_images, "class a has no images in train"),
        (shutil.rmtree, "there is no"),
        (bad_words, "Labels.json is no table of class names: it has no name for"),
        (bad_word, "Labels.json is no table of class names: it has no name for"),
    ],
)
def test_bad_folders_leave_nothing(folder, tmp_path, damage, message):
    damage(folder)
    with pytest.raises(SystemExit, match=message) as exit_:
        run(folder, tmp_path)
    assert "\n" not in str(exit_.value)
    assert not list(tmp_path.glob("tfds/insects"))


@pytest.mark.parametrize("name", ["cat ", "c\nat"])
def test_class_names_that_a_file_of_names_cannot_hold(tmp_path, name):
    write_images(tmp_path, ["cat", name], num_images=1)
    with pytest.raises(UserError, match=r"rename the class folder 'c.*at ?' in"):
        find_images(tmp_path)


def test_one_of_two_imports_at_once_is_refused_and_leftovers_go(folder, tmp_path):
    left = tmp_path / "tfds/insects/incomplete.ABC123_1.0.0"
    left.mkdir(parents=True)
    command = [sys.executable, "-m", "svda_jax", "prepare", "insects", "--from"]
    command += [str(folder), "--data_dir", str(tmp_path / "tfds")]
    both = [
        subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE)
        for _ in range(2)
    ]
    said = [process.communicate()[1].decode().strip() for process in both]
    assert sorted(process.returncode for process in both) == [0, 1]
    error = said[both[0].returncode == 0]
    assert "is there already; remove it to import anew" in error
    assert "\n" not in error
    assert not left.exists()


def test_ctrl_c_is_one_line(folder, tmp_path, monkeypatch, capsys):
    def interrupt(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(prepare.ImageFolder, "_generate_examples", interrupt)
    with pytest.raises(SystemExit) as exit_:
        program(
            ["prepare", "insects", "--from", str(folder), "--data_dir", str(tmp_path)]
        )
    assert exit_.value.code == 130
    assert capsys.readouterr().err.strip() == "interrupted"
    assert not list(tmp_path.glob("insects/*"))


def test_a_folder_around_the_folder_is_no_class(folder):
    with pytest.raises(UserError, match="one class alone, images"):
        find_images(folder.parent)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("My-Set", "My-Set: a name has lower-case letters, digits, underscores"),
        ("stl10", "stl10 is a data set of TFDS; choose another name"),
    ],
)
def test_bad_names(folder, tmp_path, name, message):
    with pytest.raises(SystemExit, match=message):
        run(folder, tmp_path, name=name)


def test_a_data_set_that_is_there_is_not_overwritten(folder, tmp_path):
    run(folder, tmp_path)
    with pytest.raises(SystemExit, match="is there already"):
        run(folder, tmp_path)


def test_unwritable_data_dir(folder, tmp_path):
    (tmp_path / "tfds").touch()
    with pytest.raises(UserError, match="cannot write"):
        prepare.import_files("insects", str(folder), str(tmp_path / "tfds"))
