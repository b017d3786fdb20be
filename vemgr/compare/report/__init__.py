# SPDX-License-Identifier: GPL-2.0-or-later
"""From samples to tables, plots and verdicts. Pure, as `schema`, `statistics`, `schedule` and `noise` are."""
