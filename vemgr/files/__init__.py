# SPDX-License-Identifier: GPL-2.0-or-later
"""What is done with the files of VEs: by processes of their own, that the daemon starts and that end with it."""
