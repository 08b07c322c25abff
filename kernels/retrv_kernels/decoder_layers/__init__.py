"""Runs few rows, as in decoding, through all layers of a decoder in one call."""

from __future__ import annotations

from retrv_kernels.decoder_layers.native import AttentionPart, DecoderLayers, LayerWeights

__all__ = ["AttentionPart", "DecoderLayers", "LayerWeights"]
