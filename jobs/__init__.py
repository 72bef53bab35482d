"""The command line: one module a command, wiring only.

`jobs.cli` is the entry point. A command's module imports click alone; what is heavy
loads inside the command, so that `prescreen --help` answers at once.
"""
