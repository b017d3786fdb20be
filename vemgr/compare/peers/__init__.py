# SPDX-License-Identifier: GPL-2.0-or-later
"""Other runtimes, each as it is used without a manager above it: the same tree, the same process 1."""
