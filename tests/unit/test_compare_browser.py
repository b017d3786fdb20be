# SPDX-License-Identifier: GPL-2.0-or-later
"""The page of `vemgr compare` in a real browser: it complains of nothing, and nothing lies over anything else."""

import json
import re
import shutil
import subprocess

import pytest

from tests.unit.test_compare_report import full
from vemgr.compare.report import page

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(BROWSER is None, reason="no chromium is installed")

# What lies outside of its plot, and labels that cover another, found out by the browser that has set them.
LOOK = """
const found = {svgs: 0, shapes: 0, outside: [], covered: [], colours: new Set(), ground: ''};
for (const svg of document.querySelectorAll('svg[role=img]')) {
  found.svgs += 1;
  const whole = svg.getBoundingClientRect();
  for (const shape of svg.querySelectorAll('circle, path, text, line')) {
    const box = shape.getBoundingClientRect();
    found.shapes += 1;
    if (box.left < whole.left - 1 || box.right > whole.right + 1 || box.top < whole.top - 1 ||
        box.bottom > whole.bottom + 1)
      found.outside.push(shape.outerHTML.slice(0, 200));
  }
  const texts = [...svg.querySelectorAll('.label, .tick, .axis, .heading')].map(t => [t, t.getBoundingClientRect()]);
  texts.forEach(([one, a], number) => texts.slice(number + 1).forEach(([other, b]) => {
    if (a.left < b.right - 1 && b.left < a.right - 1 && a.top < b.bottom - 2 && b.top < a.bottom - 2)
      found.covered.push(one.textContent + ' / ' + other.textContent);
  }));
  for (const dot of svg.querySelectorAll('.dot, .sample')) found.colours.add(getComputedStyle(dot).fill);
}
found.colours = [...found.colours];
found.ground = getComputedStyle(document.body).backgroundColor;
found.wide = document.documentElement.scrollWidth > document.documentElement.clientWidth;
document.body.innerHTML = '';
document.body.textContent = 'FOUND' + JSON.stringify(found) + 'END';
"""


@pytest.fixture(scope="module")
def look(tmp_path_factory):
    """What the browser has found on the page, in a window so wide, and what it complains of."""
    def do(scheme, width):
        directory = tmp_path_factory.mktemp("browser")
        file = directory / "page.html"
        script = f"<script>addEventListener('load', () => {{{LOOK}}})</script>"
        html = page.render(full()).replace("</body>", f"{script}</body>")
        if scheme == "dark":
            html = html.replace("@media (prefers-color-scheme: dark)", "@media all")
        file.write_text(html)
        done = subprocess.run(
            [BROWSER, "--headless=new", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--v=0",
             f"--user-data-dir={directory}/profile", f"--window-size={width},900", "--dump-dom", f"file://{file}"],
            capture_output=True, text=True, timeout=120)
        found = re.search(r"FOUND(.*)END", done.stdout)
        assert found, done.stderr[-3000:]
        return json.loads(found[1].replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&")), done.stderr
    return do


@pytest.mark.parametrize(("scheme", "width", "ground"), [("light", 1200, "rgb(255, 255, 255)"),
                                                         ("dark", 1200, "rgb(20, 23, 28)"),
                                                         ("light", 700, "rgb(255, 255, 255)")])
def test_the_page_in_a_browser(look, scheme, width, ground):
    found, complaints = look(scheme, width)
    assert "CONSOLE" not in complaints
    assert found["svgs"] >= 10 and found["shapes"] > 200
    assert found["outside"] == [] and found["covered"] == []
    assert len(found["colours"]) == 3 and found["ground"] == ground
    assert not found["wide"]
