"""What kproxy tells about itself: logs, status pages, metrics. Nothing here decides anything."""
