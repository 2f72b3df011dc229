"""What `hindcast replay` does beside asking: run, and say what came out, of send decisions and of lists."""
