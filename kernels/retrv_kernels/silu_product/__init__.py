"""The gated activation between the products of a feed-forward block."""
