"""Questions with answers, from files and from the hub: loaded whole or not at all, counted, hashed, compared.

Light: nothing is imported here. ``pyarrow`` and ``datasets`` are loaded where a file or the hub is read.
"""
