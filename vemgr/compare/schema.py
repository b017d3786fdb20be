# SPDX-License-Identifier: GPL-2.0-or-later
"""What a comparison has found, as it is kept: lines of JSON while it goes on, one JSON document when it has ended.

Another program may go by `FORMAT`: within one format no field goes or changes its meaning.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import Final, Literal

import msgspec

from vemgr.compare.noise import Noise
from vemgr.core.errors import BadValue

FORMAT: Final = 1
#: The unit of what is so (1) or not (0): no performance, and so not compared.
FACT: Final = "yes or no"

Better = Literal["higher", "lower"]


class Figure(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """Something that a work measures. `name` is unique in a report: the work's, or that and a word after a dot."""

    name: str
    title: str
    unit: str
    better: Better


class Work(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """`rounds`: how often it was to be counted. `group`: under which heading it stands."""

    name: str
    title: str
    group: str
    rounds: int
    figures: list[Figure]


class Column(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """A driver. `why` it is not available, or nothing. `emulated`: its CPUs are software (TCG). `warm`: in what that
    runs already its instances are started; nothing where starts are cold."""

    name: str
    label: str
    why: str = ""
    emulated: bool = False
    warm: str = ""


class Header(msgspec.Struct, tag="header", tag_field="kind", kw_only=True, frozen=True, forbid_unknown_fields=True):
    """`started`: ISO 8601, UTC. `environment`: facts on the host, for readers. `cpus`, `memory` (bytes): what each
    instance had. `noise`: the share of time above which a run is invalid."""

    format: Literal[1] = FORMAT
    started: str
    vemgr: str
    seed: int
    template: str
    cpus: int
    memory: int
    noise: float
    quick: bool
    environment: dict[str, str]
    works: list[Work]
    columns: list[Column]


class Sample(msgspec.Struct, tag="sample", tag_field="kind", kw_only=True, frozen=True, forbid_unknown_fields=True):
    """One run. `values` by figure, empty when it has failed (`error`). `invalid`: why it does not count, although it
    has ended; then `attempt` + 1 follows. `seconds`: what it took in all."""

    round: int
    workload: str
    driver: str
    attempt: int = 1
    seconds: float
    values: dict[str, float]
    noise: Noise
    invalid: str = ""
    error: str = ""

    @property
    def counts(self) -> bool:
        return self.round > 0 and not self.invalid and not self.error


class Absent(msgspec.Struct, tag="absent", tag_field="kind", kw_only=True, frozen=True, forbid_unknown_fields=True):
    """A driver cannot do this work, and why."""

    workload: str
    driver: str
    why: str


Line = Header | Sample | Absent


class Report(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """All of it. `complete`: nothing that was planned is missing, other than for want of time in a quick run."""

    format: Literal[1] = FORMAT
    complete: bool
    header: Header
    samples: list[Sample]
    absent: list[Absent]

    def figures(self) -> Iterator[tuple[Work, Figure]]:
        for work in self.header.works:
            for figure in work.figures:
                yield work, figure

    def values(self, figure: str, driver: str) -> list[float]:
        """What counts, in the order of time."""
        return [sample.values[figure] for sample in self.samples
                if sample.driver == driver and sample.counts and figure in sample.values]

    def why_absent(self, workload: str, driver: str) -> str:
        for column in self.header.columns:
            if column.name == driver and column.why:
                return column.why
        return next((each.why for each in self.absent if (each.workload, each.driver) == (workload, driver)), "")


_LINES = msgspec.json.Decoder(Line)
_REPORTS = msgspec.json.Decoder(Report)


def line_of(value: Line) -> bytes:
    return msgspec.json.encode(value) + b"\n"


def parse_lines(data: bytes, path: str) -> tuple[Header, list[Sample | Absent], int]:
    """The header, what came after it, and how many bytes of `data` that was: a last line without its end was cut off
    by a crash and is left out. Raises `BadValue`."""
    whole = data[: data.rfind(b"\n") + 1]
    try:
        lines = [_LINES.decode(line) for line in whole.splitlines()]
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise BadValue("samples", path, f"not what 'vemgr compare' writes: {error}") from error
    if not lines or not isinstance(lines[0], Header):
        raise BadValue("samples", path, "it does not begin with a header")
    rest = [line for line in lines[1:] if not isinstance(line, Header)]
    _check(lines[0], rest, path)
    return lines[0], rest, len(whole)


def assemble(header: Header, lines: Iterable[Sample | Absent], *, complete: bool) -> Report:
    kept = list(lines)
    return Report(complete=complete, header=header, samples=[line for line in kept if isinstance(line, Sample)],
                  absent=[line for line in kept if isinstance(line, Absent)])


def encode(report: Report) -> bytes:
    return msgspec.json.format(msgspec.json.encode(report), indent=1) + b"\n"


def decode(data: bytes, path: str) -> Report:
    """Raises `BadValue`, for a newer format, too."""
    try:
        report = _REPORTS.decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise BadValue("report", path, _why(data, error)) from error
    _check(report.header, [*report.samples, *report.absent], path)
    return report


def _why(data: bytes, error: Exception) -> str:
    try:
        found = msgspec.json.decode(data, type=dict)["format"]
    except (msgspec.MsgspecError, KeyError, UnicodeDecodeError):
        found = FORMAT
    if found != FORMAT:
        return f"its format is {found}, this vemgr knows {FORMAT}"
    return f"not a report of 'vemgr compare': {error}"


def _check(header: Header, lines: Iterable[Sample | Absent], path: str) -> None:
    """What types cannot say: names that lead nowhere, figures that are no numbers."""
    works = {work.name: {figure.name for figure in work.figures} for work in header.works}
    drivers = {column.name for column in header.columns}
    for line in lines:
        if line.workload not in works or line.driver not in drivers:
            raise BadValue("report", path, f"its head does not know {line.workload} by {line.driver}")
        if isinstance(line, Sample) and (
                not line.values.keys() <= works[line.workload] or not all(map(math.isfinite, line.values.values()))):
            raise BadValue("report", path, f"a sample of {line.workload} has figures that this work has not")
