# SPDX-License-Identifier: GPL-2.0-or-later
"""`vemgr limits verify`, which runs this: a process of its own, since it forks into the VE's cgroup."""

from __future__ import annotations

import argparse
import json
import sys

from vemgr.api.client import Client, exit_code_of
from vemgr.api.location import load_config
from vemgr.core.config import parse_settings
from vemgr.core.errors import NotRunning, VemgrError
from vemgr.core.resources import chosen_cpus
from vemgr.verify.finding import Finding, exit_code
from vemgr.verify.measure import RESOURCES, Subject, verify


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="vemgr limits verify")
    parser.add_argument("--config", required=True)
    parser.add_argument("--resource", action="append", choices=[*RESOURCES], default=[])
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--json", action="store_true", dest="as_json")
    parser.add_argument("name")
    options = parser.parse_args(argv)
    findings: list[Finding] = []
    try:
        for finding in verify(_subject(options), tuple(options.resource)):
            findings.append(finding)
            if not options.as_json:
                print(finding, flush=True)
    except VemgrError as error:
        print(f"vemgr: {error}", file=sys.stderr)
        return exit_code_of(error)
    if options.as_json:
        print(json.dumps([finding.as_dict() for finding in findings], indent=2, sort_keys=True))
    elif not findings:
        print(f"{options.name}: no limit is set")
    return exit_code(findings)


def _subject(options: argparse.Namespace) -> Subject:
    client = Client(f"{load_config(options.config).run_dir}/vemgr.sock")
    try:
        found, host = client.call("Show", {"name": options.name}), client.call("GetHost")
    finally:
        client.close()
    if found["state"] != "running":
        raise NotRunning(options.name)
    texts = {key: text for key, text in found["settings"].items() if key in _LIMITS}
    if chosen_cpus(texts["cpu-mask"]):
        texts["cpu-mask"] = found["inForce"]["cpu-mask"]
    settings = parse_settings(texts)
    return Subject(options.name, settings, found["cgroup"], frozenset(host["controllers"]),
                   f"{host['stateDir']}/ve/{options.name}", options.seconds, found["pid"], found["address"])


_LIMITS = ("cpus", "cpu-guarantee", "cpu-mask", "memory", "memory-guarantee", "swap", "pids", "io-read", "io-write",
           "iops-read", "iops-write", "network-rate")

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
