# SPDX-License-Identifier: GPL-2.0-or-later
"""What `vemgr compare` keeps, reads back and prints."""

import itertools
import re
from html.parser import HTMLParser

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.compare_stand_in import QUIET, Counting, header, report
from vemgr.compare import schema
from vemgr.compare.report import page, plots, summary, table
from vemgr.compare.report.literature import FELTER
from vemgr.compare.report.style import STYLE
from vemgr.compare.schema import Absent, Column, Sample
from vemgr.compare.statistics import Estimate
from vemgr.compare.workloads.catalogue import ALL, chosen
from vemgr.core.errors import BadValue

COST, RATE = Counting("cost", better="lower", rounds=4), Counting("rate", unit="/s", better="higher", rounds=4)
NASTY = '</svg><script>alert("x")</script>&'


def sample(**changes):
    return Sample(**{"round": 1, "workload": "cost", "driver": "ve", "seconds": 0.1, "noise": QUIET,
                     "values": {"cost": 2.0}, **changes})


def full(**options):
    """A report with a figure of each work, in four columns, one of which is not there."""
    columns = ["host", "ve", Column(name="kvm-virtio", label="QEMU, TCG", emulated=True),
               Column(name="crun", label="crun", why="crun is not installed")]
    values = {}
    for number, work in enumerate(ALL):
        for place, driver in enumerate(("host", "ve", "kvm-virtio")):
            if not (driver == "host" and work.name in ("start", "density")) and work.name != "pgbench":
                values[work.name, driver] = [
                    {figure.name: (number + 1) * (1 + 3.0 * place) * (1 + run / 50) for figure in work.figures}
                    for run in range(work.rounds)]
    absent = [("pgbench", driver, f"the template has no {NASTY}") for driver in ("host", "ve", "kvm-virtio")]
    return report(ALL, columns, values, [*absent, ("start", "host", "no instance"), ("density", "host", "no instance")],
                  **{"environment": {"kernel": NASTY}, **options})


# keeping

def test_a_report_is_read_as_it_was_written():
    found = full()
    assert schema.decode(schema.encode(found), "x") == found


def test_lines_are_read_as_they_were_written_and_a_torn_one_is_left_out():
    head, lines = header([COST], ["ve"]), [sample(), Absent(workload="cost", driver="ve", why="so")]
    data = b"".join(map(schema.line_of, [head, *lines]))
    assert schema.parse_lines(data, "x") == (head, lines, len(data))
    for cut in range(1, len(schema.line_of(lines[1]))):
        found = schema.parse_lines(data[:-cut], "x")
        assert found[1] == lines[:1] and found[2] == len(data) - len(schema.line_of(lines[1]))


@pytest.mark.parametrize("data", [b"", b"{}\n", b"\xff\n", b"[]\n", schema.line_of(sample())])
def test_other_files_are_no_samples(data):
    with pytest.raises(BadValue, match="samples"):
        schema.parse_lines(data, "x")


@given(st.binary(max_size=40))
def test_anything_else_is_no_report(data):
    with pytest.raises(BadValue, match="report"):
        schema.decode(data, "x")


def changed(change):
    document = msgspec.json.decode(schema.encode(report([COST], ["ve"], {("cost", "ve"): [1.0]})))
    change(document)
    return msgspec.json.encode(document)


@pytest.mark.parametrize(("change", "says"), [
    (lambda d: d.update(format=2), "its format is 2, this vemgr knows 1"),
    (lambda d: d.update(surplus=1), "surplus"),
    (lambda d: d["samples"][0].update(driver="other"), "cost by other"),
    (lambda d: d["samples"][0].update(workload="other"), "other by ve"),
    (lambda d: d["samples"][0]["values"].update(more=1), "figures that this work has not"),
    (lambda d: d["samples"][0].update(values={"cost": "fast"}), "float"),
    (lambda d: d["header"].pop("seed"), "seed"),
    (lambda d: d["header"]["works"][0]["figures"][0].update(better="blue"), "blue"),
])
def test_a_report_that_says_what_it_cannot_is_refused(change, says):
    with pytest.raises(BadValue, match=re.escape(says)):
        schema.decode(changed(change), "x")


def test_only_valid_runs_after_the_warm_up_count():
    lines = [sample(round=0, values={"cost": 9.0}), sample(), sample(invalid="noise", values={"cost": 8.0}),
             sample(round=2, error="broken", values={}), sample(round=3, values={"cost": 3.0})]
    found = schema.assemble(header([COST], ["ve"]), lines, complete=True)
    assert found.values("cost", "ve") == [2.0, 3.0]
    (row,) = summary.rows(found)
    cell = row.cells["ve"]
    assert (cell.estimate.value, cell.estimate.count, cell.invalid, cell.failed) == (2.5, 2, 1, 1)
    assert "n=2" in table.render(found)


# cells and losses

def test_a_ratio_above_one_is_faster_whatever_the_unit():
    found = report([COST, RATE], ["host", "ve"], {("cost", "host"): [2.0] * 5, ("cost", "ve"): [4.0] * 5,
                                                  ("rate", "host"): [2.0] * 5, ("rate", "ve"): [4.0] * 5})
    cost, rate = summary.rows(found)
    assert cost.cells["ve"].speed.value == 0.5 and rate.cells["ve"].speed.value == 2
    assert cost.cells["host"].speed is None
    assert [(loss.row.figure.name, loss.to) for loss in summary.losses(found, [cost, rate])] == [("cost", "host")]


def test_a_loss_within_chance_is_none():
    noisy = [1.0, 2.0, 3.0, 4.0, 5.0]
    found = report([COST], ["host", "ve"], {("cost", "host"): noisy, ("cost", "ve"): [value * 1.1 for value in noisy]})
    assert list(summary.losses(found, summary.rows(found))) == []


def test_few_runs_are_not_judged():
    for count, judged in ((4, False), (5, True)):
        found = report([COST], ["host", "ve"], {("cost", "host"): [2.0] * count, ("cost", "ve"): [4.0] * count})
        assert bool([*summary.losses(found, summary.rows(found))]) == judged


@pytest.mark.parametrize(("lines", "why"), [
    ([], "not measured yet"),
    ([sample(invalid="steal"), sample(invalid="steal", attempt=2)], "too noisy: none of 2 runs is valid"),
    ([sample(error="bad", values={})], "all of 1 runs have failed, the last one so: bad"),
    ([sample(values={})], "none of its runs could tell"),
    ([Absent(workload="cost", driver="ve", why="no luck")], "no luck"),
])
def test_why_a_cell_is_empty(lines, why):
    (row,) = summary.rows(schema.assemble(header([COST], ["ve"]), lines, complete=False))
    assert row.cells["ve"].estimate is None and row.cells["ve"].why == why
    assert why in table.render(schema.assemble(header([COST], ["ve"]), lines, complete=False))


def test_the_table():
    text = table.render(report([COST, RATE], ["host", "ve", Column(name="crun", label="crun", why="not there")],
                               {("cost", "host"): [100.0] * 5, ("cost", "ve"): [125.0] * 5,
                                ("rate", "ve"): [3.0] * 5}, complete=False))
    assert text.startswith("vemgr             0\nstarted           2026-11-23T00:00:00+00:00\nkernel            6\n")
    assert "\nCOST           host    ve\ntitle of cost  100 ns  125 ns (0.800)\n" in text
    assert "\nRATE           host  ve\ntitle of rate  -     3.00 /s\n" in text
    assert "NOT COMPLETE" in text and "\ncrun: not there\n" in text
    lost = "WHERE A VE LOSES, beyond chance (5 runs and more)\ncost, title of cost: 0.80 of host (0.80 to 0.80)\n"
    assert lost in text


def test_software_emulation_is_said_wherever_figures_are():
    said = "TCG: software emulation, not hardware virtualization"
    text, html = table.render(full()), page.render(full())
    groups = text.partition("WHERE A VE LOSES")[0].count("kvm-virtio (TCG)")
    assert groups == text.count(said) == len({work.group for work in ALL})
    assert html.count(f'class="warning">{said}') == 1 + html.count("<figure>") + 1  # head, each plot, the tables


def test_warm_starts_are_never_beside_cold_ones_without_a_word():
    """In the table, in both lists of losses, in the page's tables, and in its plots; other works have nothing of it."""
    (start,) = chosen(["start"], quick=False)
    inside = Column(name="ves-in-guest", label="VEs in one guest", warm="a guest that runs already")
    runs = {("start", name): [{figure.name: value for figure in start.figures}] * 5
            for name, value in (("ve", 2.0), ("ves-in-guest", 1.0))}
    found = report([start, COST], ["ve", inside], {**runs, ("cost", "ve"): [1.0], ("cost", "ves-in-guest"): [1.0]})
    word, note = "ves-in-guest (warm)", "warm, ves-in-guest: started in a guest that runs already; all others are cold"
    text, html = table.render(found), page.render(found)
    lines = [line.split() for line in text.splitlines()]
    assert f"START AND STOP ve {word}".split() in lines and text.count(note) == 1
    assert f"to first instruction: 0.50 of {word} (" in text and f"0.500 of {word} <small>" in html
    plots_, tables = html[html.index("<h2>Start and stop"):].split("<h2>All figures", 1)
    assert note in plots_ and plots_.count(word) >= 3  # in each of its three plots
    assert f"<th>{word}</th>" in tables and tables.count(note) == 1
    assert "<th>ves-in-guest</th>" in tables and ["COST", "ve", "ves-in-guest"] in lines
    assert "warm" not in table.render(full())


# the page

class Checked(HTMLParser):
    """That elements are closed in their order, and what they refer to."""

    EMPTY = frozenset({"meta", "line", "circle", "path", "polyline", "br"})

    def __init__(self):
        super().__init__()
        self.open, self.names, self.links, self.numbers = [], [], [], []

    def handle_starttag(self, tag, attributes):
        self.names.append(tag)
        if tag not in self.EMPTY:
            self.open.append(tag)
        for name, value in attributes:
            if name in ("href", "src", "xlink:href", "action", "data") or name.startswith("on"):
                self.links.append((name, value))
            elif name in ("x", "y", "x1", "x2", "y1", "y2", "cx", "cy"):
                self.numbers.append(float(value))

    def handle_startendtag(self, tag, attributes):
        assert tag in self.EMPTY
        self.handle_starttag(tag, attributes)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


@pytest.fixture(scope="module")
def html():
    return page.render(full())


def test_the_page_is_whole_and_needs_nothing_else(html):
    checked = Checked()
    checked.feed(html)
    checked.close()
    assert checked.open == [] and checked.links == []
    assert not {"script", "link", "img", "iframe", "object"} & set(checked.names)
    assert not re.search(r"https?:|url\(|@import|//\w", html)
    assert NASTY not in html and "&lt;script&gt;" in html
    assert "prefers-color-scheme: dark" in html


def test_the_page_has_all_plots_and_nothing_lies_outside_of_them(html):
    for title in ("Performance beside the host", "Start and stop", "Density", "Consolidation", "Isolation",
                  "All figures", "Not measured", "Published figures", "Method", "Where a VE loses"):
        assert f"<h2>{title}</h2>" in html
    for svg in re.findall(r"<svg viewBox=\"0 0 (\d+) (\d+)\" role.*?</svg>", html, re.DOTALL):
        assert float(svg[0]) > 0 and float(svg[1]) > 0
    checked = Checked()
    checked.feed(html)
    assert min(checked.numbers) >= 0
    assert "nan" not in re.sub(r"<(style|p|td|li)[^>]*>[^<]*", "", html).lower()


def test_pages_of_little_or_nothing():
    for found in (report([COST], ["ve"], {}), report([COST], ["host"], {("cost", "host"): [1.0]}),
                  report(ALL, ["ve"], {}, complete=False),
                  report([RATE], ["host", "ve"], {("rate", "host"): [0.0], ("rate", "ve"): [0.0]})):
        Checked().feed(page.render(found))
        assert table.render(found)


def luminance(colour):
    parts = [int(colour[place:place + 2], 16) / 255 for place in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055)**2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one, other):
    light, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("mode", ["light", "dark"])
def test_marks_and_texts_can_be_told_from_their_ground(mode):
    light, dark = STYLE.split("@media (prefers-color-scheme: dark)")
    colours = dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", light if mode == "light" else dark.split("body {")[0]))
    assert len([name for name in colours if re.fullmatch(r"c\d", name)]) == plots.COLOURS
    for ground in ("ground", "panel"):
        for name in ("text", "dim"):
            assert contrast(colours[name], colours[ground]) >= 4.5, name
        for number in range(plots.COLOURS):
            assert contrast(colours[f"c{number}"], colours[ground]) >= 3, number
    assert contrast(colours["warn"], colours["warn-ground"]) >= 4.5


@given(st.lists(st.floats(1e-4, 1e7), min_size=1, max_size=8))
def test_an_axis_holds_its_values_and_has_ticks(values):
    for axis in (plots.logarithmic(values), plots.linear(values)):
        assert axis.low <= min(values) and max(values) <= axis.high
        assert 2 <= len(axis.ticks()) <= 14
        assert all(axis.left <= axis.at(tick) <= axis.right for tick in axis.ticks())
        places = [axis.at(value) for value in sorted(values)]
        assert places == sorted(places)


def test_labels_of_a_plot_do_not_cover_each_other():
    marks = [plots.Mark(0, Estimate(1.0, 0.9, 1.1, 3), "x")]
    svg = plots.lanes([plots.Line(str(number), marks) for number in range(9)], plots.logarithmic([0.9, 1.1]), "c", "u")
    labels = [float(y) for y in re.findall(r'class="label" x="[\d.]+" y="([\d.]+)"', svg)]
    assert all(after - before >= 13 for before, after in itertools.pairwise(labels))


# the catalogue

def test_names_of_works_and_figures_are_unique_and_published_ones_exist():
    figures = [figure.name for work in ALL for figure in work.figures]
    assert len(figures) == len(set(figures)) and len({work.name for work in ALL}) == len(ALL)
    assert set(FELTER) <= set(figures)
    assert all(name == work.name or name.startswith(f"{work.name}.") for work in ALL
               for name in (figure.name for figure in work.figures))


def test_choosing_works():
    assert [work.name for work in chosen(["fork", "start"], quick=False)] == ["start", "fork"]
    assert {work.name for work in chosen([], quick=True)} < {work.name for work in chosen([], quick=False)}
    with pytest.raises(BadValue, match=r"quake.*there are: start, "):
        chosen(["quake"], quick=True)


def test_titles_fit_beside_a_plot():
    titles = {figure.title: len(figure.title) for work in ALL for figure in work.figures}
    assert max(titles.values()) <= 42, titles
