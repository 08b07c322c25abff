"""Ranks the pictures of examples/demo for a query in words.

Run it: ``python examples/rank_pictures.py a police officer with dark skin tone``
"""

import sys
from pathlib import Path

from retrv_r1 import Reranker

query = " ".join(sys.argv[1:]) or "a police officer with dark skin tone"
pictures = sorted(Path(__file__).parent.glob("demo/*.png"))

with Reranker.from_pretrained("tiny") as reranker:
    results = reranker.rank(query, pictures)

print(f"query: {query}\nreasoning: {results.reasoning}")
for rank, item in enumerate(results.top(5), start=1):
    print(f"{rank}. {item.score:.3f}  {item.name}{'  (inspected)' if item.inspected else ''}")
