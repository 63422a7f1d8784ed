"""What browser tests ask of the pages that users open."""

import importlib.resources
import json


def show(browser, address, *, width=1200, scheme="light"):
    """Opens a page in a window of that width, in that colour scheme."""
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    browser.get(address)


def find_violations(browser):
    """What axe-core has against the page: rules, and what breaks them."""
    axe = importlib.resources.files("axe_core_python").joinpath("axe.min.js")
    browser.execute_script(axe.read_text())
    browser.set_script_timeout(180)  # on a machine that others use too
    return browser.execute_async_script(
        "axe.run().then(found => arguments[0](found.violations.map("
        "v => [v.id, v.nodes.map(n => n.html.slice(0, 200))])))"
    )


def overflow(browser):
    """Pixels by which the page is wider than its window."""
    width = "return document.documentElement.scrollWidth - window.innerWidth"
    return max(0, browser.execute_script(width))


def find_requests(browser):
    """The addresses that the page asked for, and those that left the machine."""
    messages = [
        json.loads(entry["message"])["message"]
        for entry in browser.get_log("performance")
    ]
    asked = {
        message["params"]["request"]["url"]
        for message in messages
        if message["method"] == "Network.requestWillBeSent"
    }
    return asked, [url for url in asked if url.startswith(("http", "ws", "ftp"))]
