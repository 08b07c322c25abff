"""The sum of a residual stream and what a block adds to it, and the sum's RMSNorm."""
