"""Ranks texts, pictures and pictures with a text, for several queries in one batch.

Run it: ``python examples/rank_batch.py``
"""

from pathlib import Path

from retrv_r1 import Item, ItemLike, RankRequest, Reranker

demo = Path(__file__).parent / "demo"
candidates: list[ItemLike] = [
    "a bus",
    "a lion",
    demo / "police-car.png",
    demo / "red-apple.png",
    Item(text="green apple", image=demo / "green-apple.png"),
    Item(text="pizza", image=demo / "pizza.png", id="dinner"),
]
requests = [
    RankRequest("police car", candidates),
    RankRequest("something with cheese", candidates),
    RankRequest(demo / "taxi.png", candidates, instruction="Find another vehicle."),
]

with Reranker.from_pretrained("tiny") as reranker:
    batch = reranker.rank_batch(requests, mode="fast", top_k=3)

for results in batch:
    ranking = ", ".join(f"{item.name} {item.score:.2f}" for item in results)
    print(f"{results.query.text or 'a picture of a taxi'}: {ranking}")
