"""Last week under tomorrow's policy: the serving core run over the log, user by user, in ledger order.

`opportunities` reads what was asked and what was known then; `course` runs the policies that logged over it in waves, and
`parity` compares the result with what was logged; `stream` runs targets.
"""
