"""What runs inside the SGLang server: its launcher, the model, the processor, the sampler."""
