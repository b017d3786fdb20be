# SPDX-License-Identifier: GPL-2.0-or-later
"""The page of `vemgr compare` in a real browser: it complains of nothing, and nothing lies over anything else."""

import json
import re
import shutil
import struct
import subprocess
import zlib
from collections import Counter

import pytest

from tests.unit.test_compare_report import full
from vemgr.compare.report import page, style

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


def pixels(png):
    """How often each colour is in a picture of 8 bits a channel (PNG, third edition, sections 7 and 9)."""
    chunks, at = {}, 8
    while at < len(png):
        length, kind = struct.unpack_from(">I4s", png, at)
        chunks[kind] = chunks.get(kind, b"") + png[at + 8:at + 8 + length]
        at += 12 + length
    width, _, depth, colours, *_ = struct.unpack(">IIBBBBB", chunks[b"IHDR"])
    size = {2: 3, 6: 4}[colours]
    assert depth == 8
    data, above, found = zlib.decompress(chunks[b"IDAT"]), bytes(width * size), Counter()
    for start in range(0, len(data), width * size + 1):
        above = unfiltered(data[start], bytearray(data[start + 1:start + 1 + width * size]), above, size)
        found.update(zip(above[0::size], above[1::size], above[2::size], strict=True))
    return found


def unfiltered(kind, line, above, size):
    for i in range(len(line) if kind else 0):
        left, up, corner = (line[i - size], above[i], above[i - size]) if i >= size else (0, above[i], 0)
        near = left + up - corner
        paeth = min((abs(near - left), 0, left), (abs(near - up), 1, up), (abs(near - corner), 2, corner))[2]
        line[i] = (line[i] + (left, up, (left + up) // 2, paeth)[kind - 1]) & 255
    return bytes(line)


def test_a_picture_of_the_page(tmp_path):
    """What somebody sees: the marks of both columns beside the host are painted, and not only defined."""
    html = page.render(full())
    assert html.count("</head>") == 1
    # The plots are further below, and what explains them has their colours.
    lists = "<style>main ul, details, .keys { display: none }</style>"
    (tmp_path / "page.html").write_text(html.replace("</head>", f"{lists}</head>"))
    done = subprocess.run(
        [BROWSER, "--headless=new", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--v=0",
         f"--user-data-dir={tmp_path}/profile", "--window-size=800,1600", "--hide-scrollbars",
         f"--screenshot={tmp_path}/page.png", f"file://{tmp_path}/page.html"],
        capture_output=True, text=True, timeout=120)
    assert "CONSOLE" not in done.stderr
    found = pixels((tmp_path / "page.png").read_bytes())
    assert sum(found.values()) == 800 * 1600
    for name in ("c1", "c2"):
        colour = re.search(rf"--{name}: #(\w{{6}})", style.STYLE)[1]
        assert found[tuple(bytes.fromhex(colour))] > 50, (name, colour, found.most_common(20))
