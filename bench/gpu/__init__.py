"""What a GPU must show about speed, in one command of some minutes that needs no network.

    python -m bench.gpu --device cuda --out bench/results/gpu
    python -m bench.gpu --device cpu --quick --out build/gpu     (the rehearsal)

The parts run in a process of their own, each in its share of the time; what a part has measured is
written at once, so that a kill loses what was running and no more.
"""
