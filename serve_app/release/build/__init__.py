"""The jobs that turn a catalogue and a log into a release."""
