"""The command line: run notebooks, sweep them, keep score."""
