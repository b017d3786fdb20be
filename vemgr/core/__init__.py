# SPDX-License-Identifier: GPL-2.0-or-later
"""What a VE is: values and rules. No I/O, no clock, no logging."""
