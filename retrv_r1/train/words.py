"""Stage ``words``: the first stage's text encoder learns on, against a tower at rest.

Pictures then cost nothing, because the tower's rows are computed once for this stage and the
following, so a step compares several times the texts.
"""

from __future__ import annotations

from dataclasses import dataclass

from retrv_r1.train.embed import EmbedConfig, EmbedStage
from retrv_r1.train.stage import Setup


@dataclass(frozen=True)
class WordsConfig(EmbedConfig):
    """Options of the stage: those of ``embed``, with more of everything.

    Those about the tower (``small_side``, ``small_share``, ``row_size``) do nothing here.

    Args:
        views: views of a picture that are kept, all but the first augmented.
    """

    batch: int = 256
    cells_per_batch: int = 4
    named: int = 768
    texts: int = 512
    names: int = 8192
    views: int = 2


class WordsStage(EmbedStage):
    """The losses of ``embed``; the tower's rows come from a bank."""

    Config = WordsConfig
    config: WordsConfig

    def __init__(self, setup: Setup) -> None:
        setup.result("embed")  # there is nothing to rest without it
        super().__init__(setup)
        self.model.visual.requires_grad_(False)
        self.bank = self.train.rows = setup.rows(
            self.model.visual, self.processor, self.config.views
        )
