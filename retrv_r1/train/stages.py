"""The registry of the stages."""

STAGES = {
    "embed": "retrv_r1.train.embed:EmbedStage",
    "pretrain": "retrv_r1.train.pretrain:PretrainStage",
    "align": "retrv_r1.train.align:AlignStage",
    "sft": "retrv_r1.train.sft:SFTStage",
}
"""Stages by name, in the order of training; a class is imported when its stage is used."""
