"""Ranks with an SGLang server, which is started here and ends with the program.

Run it: ``make sglang-cpu``, then ``python examples/sglang_server.py``
"""

import sys
from pathlib import Path

from retrv_r1 import EngineMissing, Reranker, SGLangConfig

config = SGLangConfig(max_requests=8)  # or url="http://…", the address of a server that runs
pictures = sorted(Path(__file__).parent.glob("demo/*.png"))

try:
    reranker = Reranker.from_pretrained("tiny", engine="sglang", config=config)
except EngineMissing as error:
    sys.exit(str(error))

with reranker:
    results = reranker.rank("violin", pictures)

print(f"reasoning: {results.reasoning}")
for rank, item in enumerate(results.top(3), start=1):
    print(f"{rank}. {item.score:.3f}  {item.name}")
