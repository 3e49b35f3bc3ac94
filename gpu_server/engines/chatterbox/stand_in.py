"""What random weights have in the place of a tokenizer and a voice. Knows nothing of modules.

The tokenizer is trained on the spot, on a few sentences: it cuts texts about as finely as the real one does.
"""

from typing import Any

import torch

from gpu_server.engines.chatterbox import upstream
from gpu_server.engines.chatterbox.build import TOKENS_OF_SPEECH, VOICE_SIZES, Kind, Size

_SENTENCES = (
    "Hello, how can I help you today?",
    "Thank you for calling. Your order has been shipped and will arrive on Monday morning.",
    "I understand your concern, and I would be happy to look into that for you right now.",
    "Please hold for a moment while I check the status of your account.",
    "The quick brown fox jumps over the lazy dog, and then it sleeps until 7:30 in the evening.",
    "Is there anything else that you would like to know about our services?",
    "Your appointment is confirmed for three in the afternoon; we look forward to seeing you!",
)


def tokenizer(kind: Kind) -> Any:
    """As upstream's loader gives it: a GPT-2-like one for Turbo, an EnTokenizer for the original."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    if kind == "turbo":
        from transformers import PreTrainedTokenizerFast

        trained = Tokenizer(models.BPE())
        trained.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        trained.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        end = "<|endoftext|>"
        trainer = trainers.BpeTrainer(
            vocab_size=600, initial_alphabet=alphabet, special_tokens=[end], show_progress=False
        )
        trained.train_from_iterator(_SENTENCES, trainer)
        return PreTrainedTokenizerFast(
            tokenizer_object=trained, eos_token=end, bos_token=end, unk_token=end, pad_token=end, model_max_length=8192
        )
    special = upstream.module("models.tokenizers.tokenizer").SPECIAL_TOKENS
    trained = Tokenizer(models.BPE(unk_token="[UNK]"))
    trained.pre_tokenizer = pre_tokenizers.Whitespace()
    trainer = trainers.BpeTrainer(vocab_size=250, special_tokens=special, show_progress=False)
    trained.train_from_iterator(_SENTENCES, trainer)
    made = upstream.module("models.tokenizers").EnTokenizer
    empty = made.__new__(made)
    empty.tokenizer = trained
    return empty


def conds(kind: Kind, size: Size) -> Any:
    """A random voice, of the shapes that a real one has."""
    lengths = VOICE_SIZES[kind, size]
    cond = upstream.module("models.t3.modules.cond_enc").T3Cond(
        speaker_emb=torch.rand(1, 256),
        cond_prompt_speech_tokens=torch.randint(0, TOKENS_OF_SPEECH, (1, lengths.t3_prompt)),
        emotion_adv=0.5 * torch.ones(1, 1, 1),
    )
    prompt = {
        "prompt_token": torch.randint(0, TOKENS_OF_SPEECH, (1, lengths.s3gen_prompt)),
        "prompt_token_len": torch.tensor([lengths.s3gen_prompt]),
        "prompt_feat": torch.rand(1, 2 * lengths.s3gen_prompt, 80) * 4 - 8,
        "prompt_feat_len": None,
        "embedding": torch.randn(1, 192),
    }
    return upstream.module("tts_turbo" if kind == "turbo" else "tts").Conditionals(cond, prompt)
