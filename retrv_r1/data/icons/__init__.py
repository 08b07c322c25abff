"""The icon corpus: openly licensed icons of many sets, named, split by hand and by concept.

`build` makes it from npm packages, `load_corpus` reads it. Files of a built corpus:

- `pictures.npy` uint8 [c, size, size, 4], RGBA with straight alpha, of icons with colours of their
  own, and `glyphs.npy` uint8 [g, size, size], the alpha of icons in one colour
- `pictures.jsonl`, one line per picture, first the rows of `pictures.npy`, then those of
  `glyphs.npy`; fields as in `corpus.IconRow`
- `concepts.json`: aliases and categories of concepts, what is held out
- `manifest.json`: packages with their hashes, sets with licences, counts, hashes of the files

The hashes of the files hold for one release of resvg and Pillow.
"""

from retrv_r1.data.icons.build import Built, build
from retrv_r1.data.icons.corpus import IconCorpus, IconRow, load_corpus

__all__ = ["Built", "IconCorpus", "IconRow", "build", "load_corpus"]
