"""Figures on public data, computed with the serving classes: one module a data set form, each a subcommand of
`hindcast evaluate` where it offers `register(group)`."""
