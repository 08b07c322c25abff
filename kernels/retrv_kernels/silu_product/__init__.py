"""The gated activation between the linear layers of a feed-forward block."""
