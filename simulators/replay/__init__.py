"""Last week under tomorrow's policy: the serving core run over the log, user by user, in ledger order.

`opportunities` reads what was asked and what was known then; `course` runs a policy over it in waves; `parity` compares a
course with what was logged.
"""
