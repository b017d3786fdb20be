# SPDX-License-Identifier: GPL-2.0-or-later
"""The fuzzers by name."""

from tests.fuzz.api import Api
from tests.fuzz.archive import Archives
from tests.fuzz.config import Configuration
from tests.fuzz.keeper import Keepers

TARGETS = {"archive": Archives, "config": Configuration, "api": Api, "keeper": Keepers}
