"""The commands of `python -m videomae_jax`, a module each."""
