"""The pictograph set: emoji in up to eleven styles, asked in M-BEIR's eight task shapes.

`build` makes it from packages, `check` verifies that training shows nothing that is held out, and
`retrv_r1.data.mbeir` reads it like any M-BEIR directory.

Eight datasets `pictographs_{t2i,t2t,t2it,i2t,i2i,it2t,it2i,it2it}` (ids 100 to 107, M-BEIR tasks
0, 1, 2, 3, 4, 6, 7, 8) have a train, a val and a test split. Their concepts are known; they are
drawn in the training styles (train), in fxemoji (val) and in the emojione family (test). Two more
families have only a test split, in a training style, so that only the concept is new:
`pictographs_composition_*` (110 to 117) asks for combinations of skin tone, gender and role that
training never shows together, `pictographs_unseen_*` (120 to 127) for things of which training
neither shows nor names a variant. Without npm there are fewer styles; the manifest lists which
ones take the place of those that are missing.

All candidates share dataset id 100: a picture or text has the same did in every pool. Files beside
those of M-BEIR:

- `pictures.npy` uint8 [N, size, size, 4], RGBA with straight alpha; `pictures.jsonl` row by row
- `metadata.jsonl`, one line per candidate, and `query_metadata.jsonl`, one line per query: concept,
  base, tone, gender, group, style, split; a query's target, source, change, language, keywords
- `held_out.json`, `manifest.json` (sources, counts, hash), `SHA256SUMS`, `ATTRIBUTION.md`

The hash covers the PNG files, so another release of Pillow or resvg may change it.
"""

from retrv_r1.data.pictographs.build import build
from retrv_r1.data.pictographs.check import LeakError, check
from retrv_r1.data.pictographs.manifest import Manifest

__all__ = ["LeakError", "Manifest", "build", "check"]
