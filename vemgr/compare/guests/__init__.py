# SPDX-License-Identifier: GPL-2.0-or-later
"""Guests with kernels of their own, through libvirt, made of the same tree as everything else."""
