"""Other engines, each in a separate environment that ``make bench-peers`` builds."""
