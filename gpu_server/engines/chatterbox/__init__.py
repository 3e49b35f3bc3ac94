"""Chatterbox, streaming and batched: text tokens → T3 (speech tokens) → S3Gen (mel) → HiFT (samples).

Needs torch and what Chatterbox itself needs; nothing here knows of HTTP.
"""
