"""The factor by which RMSNorm scales each row."""
