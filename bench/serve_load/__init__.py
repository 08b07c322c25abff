"""Many clients ask the rerank server for a while, and a third of them hang up in the middle."""
