"""What Catalyst's last release needs on today's stack: an engine, a step, saving and resuming."""
