"""The benchmark of a GPU: one command of some minutes that needs no network.

    python -m bench.gpu --device cuda --out bench/results/gpu
    python -m bench.gpu --device cpu --quick --out build/gpu     (a rehearsal)

The parts run in a separate process, each within its share of the time. Each measurement is saved at
once, so a kill loses only the one that was running.
"""
