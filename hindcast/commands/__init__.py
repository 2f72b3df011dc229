"""One module a command group. Each has `register(app)` and imports heavy parts inside its functions, so that
`hindcast --help` stays quick."""
