"""Looking at what was decided: one decision explained, and ledger, log and outbox checked against each other."""
