# SPDX-License-Identifier: GPL-2.0-or-later
"""What is done in each kind of instance and measured."""
