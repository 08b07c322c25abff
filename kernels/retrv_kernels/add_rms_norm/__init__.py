"""Adds a block's output to the residual stream and takes the RMSNorm of the sum."""
