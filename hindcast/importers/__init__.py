"""Real data in: each module turns one public data set into a catalogue and a log, and says what it kept, mended, refused."""
