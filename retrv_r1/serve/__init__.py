"""The rerank server: calls, queue and deadlines around one reranker, and HTTP on top."""
