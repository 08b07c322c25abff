"""Trains the shipped checkpoint with rewards for a few steps, on a plain list of tasks.

Run it: ``pip install 'retrv-r1[rl]'``, then ``python examples/train_grpo.py``
"""

import tempfile
from pathlib import Path

from trl import GRPOConfig

from retrv_r1 import Reranker, Sampling
from retrv_r1.rollout import FormatReward, ResultReward, RetrvGRPOTrainer, RetrvRollout, Task

pictures = sorted(Path(__file__).parent.glob("demo/*.png"))[:12]
names = [picture.stem.replace("-", " ") for picture in pictures]
tasks = [Task(name, pictures, answer) for answer, name in enumerate(names)]

with (
    Reranker.from_pretrained("tiny", device="cpu") as reranker,
    tempfile.TemporaryDirectory() as out,
):
    rollout = RetrvRollout(
        engine=reranker,
        dataset=tasks,
        sampling=Sampling(temperature=1.0, top_p=0.9, max_reasoning_tokens=64, max_inspections=2),
    )
    arguments = GRPOConfig(
        out,
        max_steps=3,
        num_generations=4,
        per_device_train_batch_size=8,  # two tasks a step, four rollouts each
        learning_rate=2e-5,
        logging_steps=1,
        gradient_checkpointing=False,
        bf16=False,
        use_cpu=True,
        report_to="none",
        disable_tqdm=True,
    )
    trainer = RetrvGRPOTrainer(rollout, [FormatReward(), ResultReward()], arguments)
    trainer.train()

for row in trainer.state.log_history:
    if "reward" in row:
        print(
            f"step {row['step']}: reward {row['reward']:.2f}, λ {row['lambda']:.2f}, "
            f"{row['inspections']:.2f} inspections a rollout, "
            f"engine and trainer differ by {row['engine_difference/max']:.0e} at most"
        )
