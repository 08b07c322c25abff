"""The pictograph set: emoji in up to eleven styles, asked in M-BEIR's eight task shapes.

`build` makes it from packages, `check` proves that nothing held out is in training, and
`retrv_r1.data.mbeir` reads it like any M-BEIR directory.

Eight datasets `pictographs_{t2i,t2t,t2it,i2t,i2i,it2t,it2i,it2it}` (ids 100 to 107, M-BEIR tasks
0, 1, 2, 3, 4, 6, 7, 8) have a train, a val and a test split: known concepts, drawn in styles that
training shows (train), in fxemoji (val) and in the emojione family (test). Two more families have
a test split alone, in a style that training shows, so that only the concept is new:
`pictographs_composition_*` (110 to 117) asks for combinations of skin tone, gender and role that
training never shows together, `pictographs_unseen_*` (120 to 127) for things of which training
shows and names no variant. Without npm the styles are fewer and the manifest says what stands in.

All candidates share dataset id 100: one picture or text is one did in every pool. Beside the files
of M-BEIR:

- `pictures.npy` uint8 [N, size, size, 4], RGBA with straight alpha; `pictures.jsonl` row by row
- `metadata.jsonl`, a line a candidate, and `query_metadata.jsonl`, a line a query: concept, base,
  tone, gender, group, style, split, and for queries target, source, change, language, keywords
- `held_out.json`, `manifest.json` (sources, counts, hash), `SHA256SUMS`, `ATTRIBUTION.md`

The hash covers the PNG files, so another release of Pillow or resvg may change it.
"""

from retrv_r1.data.pictographs.build import build
from retrv_r1.data.pictographs.check import LeakError, check
from retrv_r1.data.pictographs.manifest import Manifest

__all__ = ["LeakError", "Manifest", "build", "check"]
