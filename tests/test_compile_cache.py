"""Where compiled programs are kept."""

import jax
import pytest

from svda_jax.devices.compile_cache import use_compile_cache


@pytest.fixture
def no_cache():
    """JAX without a cache folder, as in a program that was just started."""
    names = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")
    before = {name: getattr(jax.config, name) for name in names}
    jax.config.update("jax_compilation_cache_dir", None)
    yield
    for name, value in before.items():
        jax.config.update(name, value)


def test_it_is_in_the_users_cache_folder(no_cache, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    use_compile_cache()
    assert jax.config.jax_compilation_cache_dir == str(tmp_path / "svda_jax")
    assert (tmp_path / "svda_jax").is_dir()


def test_by_default_under_home(no_cache, tmp_path, monkeypatch):
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    use_compile_cache()
    assert jax.config.jax_compilation_cache_dir == str(tmp_path / ".cache/svda_jax")


def test_a_folder_that_jax_was_given_stays(no_cache, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    jax.config.update("jax_compilation_cache_dir", "given")
    use_compile_cache()
    assert jax.config.jax_compilation_cache_dir == "given"
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_written_is_said(
    no_cache, tmp_path, monkeypatch, capsys
):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    use_compile_cache()
    assert capsys.readouterr().out == (
        f"compiled programs are not kept: {tmp_path}/file/svda_jax: Not a directory\n"
    )
    assert jax.config.jax_compilation_cache_dir is None
