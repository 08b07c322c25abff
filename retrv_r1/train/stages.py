"""The registry of the stages."""

STAGES = {
    "embed": "retrv_r1.train.embed:EmbedStage",
    "words": "retrv_r1.train.words:WordsStage",
    "read": "retrv_r1.train.read:ReadStage",
    "align": "retrv_r1.train.align:AlignStage",
    "lists": "retrv_r1.train.sft:SFTStage",
    "sft": "retrv_r1.train.sft:SFTStage",
    "grpo": "retrv_r1.train.grpo:GRPOStage",
}
"""Stages by name, in the order of training; a class is imported when its stage is used."""
