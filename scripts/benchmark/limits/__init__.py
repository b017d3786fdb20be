# SPDX-License-Identifier: GPL-2.0-or-later
"""How exactly limits, weights and guarantees hold: `scripts/bench-limits`."""
