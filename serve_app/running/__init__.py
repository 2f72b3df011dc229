"""Starting and stopping a server on this machine: checks before, Ray's switches, the private Ray, the run file."""
