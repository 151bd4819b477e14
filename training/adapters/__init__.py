"""Adapters of many text tasks: what is trained, prepared, learned from and measured for LoRA on demand."""
