"""Bad input as one table: every case is a command line, what makes its input bad, and the one line it must answer.

A module `cases_<area>.py` per area holds `CASES`, a list of `Case`; its docstring's first line is the heading of the
area in docs/bad-input.md. After adding a case or changing a message, write the table anew and read the difference:

    WRITE_BAD_INPUT=1 python -m pytest -q tests/bad_input
"""
