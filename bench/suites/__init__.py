"""What is measured: a suite makes the trials of a device."""
