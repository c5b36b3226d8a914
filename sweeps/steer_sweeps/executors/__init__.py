"""Where trials run: one interface (:mod:`.base`), and a place to run for each file."""
