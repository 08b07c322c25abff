"""What Retrv-R1 would need on GPUs: estimates from shapes and datasheets; nothing is measured."""
