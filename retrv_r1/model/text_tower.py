"""A text tower: the rows of a text that the compressor reads, made by a small encoder.

A picture's rows come from a tower that has learned what it shows. In a model from scratch the rows
of a text would be bare token embeddings, and its content token little more than a bag of words;
from a first stage's text encoder it says what the first stage knows. Prompts show token embeddings
in either case.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers import BertConfig, BertModel

WINDOW = 24
"""Tokens of a piece, if the config has no ``window``; a longer text is read in pieces."""


class TextTower(nn.Module):
    """Token ids of texts to rows, ``[n]`` → ``[n, d]``; each piece of a text alone.

    Args:
        config: shape of the encoder; ``window`` is the number of tokens of a piece.
        hidden_size: width ``d`` of the rows.
    """

    def __init__(self, config: BertConfig, hidden_size: int) -> None:
        super().__init__()
        self.window = int(getattr(config, "window", WINDOW))
        if self.window > config.max_position_embeddings:
            raise ValueError(
                f"a window of {self.window} tokens needs as many positions, not "
                f"{config.max_position_embeddings}"
            )
        self.encoder = BertModel(config, add_pooling_layer=False)
        self.out = nn.Linear(config.hidden_size, hidden_size)

    def forward(self, ids: Tensor, lengths: Tensor) -> Tensor:
        """Rows of packed texts, ``[n, d]``.

        Args:
            ids: token ids of all texts, ``[n]``.
            lengths: number of tokens of each text, ``[t]``, on the CPU; zeros are allowed.
        """
        return self.out(self.states(ids, lengths))

    def states(self, ids: Tensor, lengths: Tensor) -> Tensor:
        """The encoder's last states, ``[n, hidden_size of the encoder]``."""
        if not len(ids):
            return self.out.weight.new_empty(0, self.out.in_features)
        starts = lengths.cumsum(0) - lengths
        place = torch.arange(int(lengths.sum())) - starts.repeat_interleave(lengths)
        column = place % self.window
        row = (column == 0).cumsum(0) - 1
        shape = (int(row[-1]) + 1, int(column.max()) + 1)
        flat = (row * shape[1] + column).to(ids.device, non_blocking=True)
        padded = ids.new_zeros(shape[0] * shape[1]).index_copy(0, flat, ids)
        shown = torch.zeros_like(padded).index_fill(0, flat, 1)
        states = self.encoder(input_ids=padded.view(shape), attention_mask=shown.view(shape))
        return states.last_hidden_state.flatten(0, 1).index_select(0, flat)
