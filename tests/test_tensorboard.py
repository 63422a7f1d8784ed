"""TensorBoard as a user sees it: on loopback, in a browser, by its names."""

import re
import subprocess
import sys
import time

import pytest

from svda_jax.train.loop import train_and_evaluate

pytestmark = pytest.mark.usefixtures("two_devices")


@pytest.fixture(scope="module")
def keep():
    """What one test made, for the next."""
    return {}


@pytest.fixture
def no_pictures():
    """Overridden: here they are drawn and looked at."""


@pytest.fixture
def address(keep, make_config, tmp_path_factory):
    """Of TensorBoard on a run of each attention, all made once for this module."""
    if "address" not in keep:
        folder = tmp_path_factory.mktemp("tensorboard")
        for attention in ("svda", "softmax"):
            config = make_config(num_epochs=2, model__attention=attention)
            train_and_evaluate(config, folder / "runs" / attention)
        command = [sys.executable, "-m", "tensorboard.main"]
        command += ["--logdir", "runs", "--host", "127.0.0.1", "--port", "0"]
        server = subprocess.Popen(
            command,
            cwd=folder,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        keep["server"] = server
        for line in server.stderr:
            if found := re.search(r"http://127.0.0.1:\d+/", line):
                keep["address"] = found[0]
                break
        assert "address" in keep, "TensorBoard did not start"
    return keep["address"]


@pytest.fixture(scope="module", autouse=True)
def stop_server(keep):
    yield
    if "server" in keep:
        keep["server"].kill()
        keep["server"].communicate()


# All text of a page, that of its web components too.
ALL_TEXT = """
const texts = [];
const walk = (node) => {
  if (node.nodeType === Node.TEXT_NODE) texts.push(node.textContent);
  if (node.shadowRoot) walk(node.shadowRoot);
  for (const child of node.childNodes) walk(child);
};
walk(document.body);
return texts.join("\\n");
"""


def wait_for(browser, names, seconds=60):
    """Waits until all names stand on the page."""
    missing = names
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        text = browser.execute_script(ALL_TEXT)
        missing = [name for name in names if name not in text]
        if not missing:
            return
        time.sleep(0.3)
    raise AssertionError(f"{missing} are not on {browser.current_url}")


@pytest.mark.parametrize(
    ("tab", "names"),
    [
        ("scalars", ["train", "eval", "indicators"]),
        ("timeseries", ["svda", "softmax", "eval"]),
        ("custom_scalars", ["runs", "layers", "eval/loss", "score/effective_rank"]),
        ("images", ["attention", "indicators", "spectrum"]),
        ("histograms", ["spectrum/layer_1", "spectrum/layer_2"]),
        ("hparams", ["model.attention", "learning_rate", "score/effective_rank"]),
    ],
)
def test_a_browser_finds_what_a_run_wrote(address, browser, output_dir, tab, names):
    browser.get(f"{address}#{tab}")
    wait_for(browser, names)
    browser.save_screenshot(str(output_dir / f"tensorboard_{tab}.png"))
