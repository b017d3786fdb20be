# SPDX-License-Identifier: GPL-2.0-or-later
"""The use cases: lifecycle of VEs, the keeper that is their parent, stores and templates."""
