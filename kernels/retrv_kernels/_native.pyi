"""The compiled module (bindings.cpp). Internal: use `retrv_kernels.ops`.

A tensor is passed as the address of its first element; 0 stands for None.
"""

LANES: list[int]
PANEL: int

def isas() -> list[int]: ...
def pool_tokens(
    isa: int,
    features: int,
    dtype: int,
    scales: int,
    offsets: int,
    items: int,
    width: int,
    queries: int,
    heads: int,
    eps: float,
    out: int,
    threads: int,
    /,
) -> None: ...
def relate_tokens(
    isa: int,
    keys: int,
    dtype: int,
    scales: int,
    width: int,
    heads: int,
    pool_heads: int,
    queries: int,
    pairs: int,
    count: int,
    eps: float,
    out: int,
    threads: int,
    /,
) -> None: ...
def splice_features(
    isa: int,
    stores: int,
    spans: int,
    count: int,
    width: int,
    page_table: int,
    pages: int,
    page_size: int,
    rows: int,
    dtype: int,
    embeds: int,
    positions: int,
    slots: int,
    threads: int,
    /,
) -> None: ...
def paged_attention(
    isa: int,
    query: int,
    heads: int,
    cache: int,
    offsets: int,
    lengths: int,
    sequences: int,
    scale: float,
    out: int,
    threads: int,
    /,
) -> None: ...
def shared_prefix_attention(
    isa: int,
    query: int,
    rows: int,
    heads: int,
    cache: int,
    lengths: int,
    node_rows: int,
    nodes: int,
    scale: float,
    out: int,
    threads: int,
    /,
) -> None: ...
def linear(
    isa: int,
    x: int,
    ldx: int,
    rows: int,
    weight: int,
    dtype: int,
    ldw: int,
    scales: int,
    bias: int,
    width: int,
    depth: int,
    out: int,
    ldo: int,
    threads: int,
    /,
) -> None: ...
def decoder_layers(
    isa: int,
    layers: int,
    shape: int,
    eps: float,
    x: int,
    rows: int,
    cos: int,
    sin: int,
    paged: int,
    pages: int,
    slots: int,
    parts: int,
    count: int,
    scale: float,
    threads: int,
    /,
) -> None: ...
