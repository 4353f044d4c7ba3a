"""Damaged and hostile files and command lines, fed to everything that reads them.

``inputs`` draws them, ``readers`` feeds each to its reader, ``guard`` holds what must not happen: another error than
`SDPError`, code that runs, a write outside of the folder, memory without bounds. ``python -m tools.fuzz_files --help``
runs it.
"""
