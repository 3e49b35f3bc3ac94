"""Build upstream's modules in their full size, or as small ones of the same make. Knows nothing of weights.

The tiny configuration is for tests: the same classes, a few narrow layers, and every code path of the full size.
"""

from dataclasses import dataclass
from typing import Any, Literal

from gpu_server.engines.chatterbox import upstream

Kind = Literal["turbo", "original"]
Size = Literal["tiny", "full"]

KINDS: tuple[Kind, ...] = ("turbo", "original")
TURBO_TEXT_TOKENS = 50276
TOKENS_OF_SPEECH = 6561  # those from here on are marks

_TINY_DIM = 64
_TINY_S3GEN_DIM = 32
_TINY_T3 = {
    "turbo": ("GPT2_tiny", "GPT2_medium", {"n_embd": _TINY_DIM, "hidden_size": _TINY_DIM, "n_head": 2, "n_layer": 2}),
    "original": (
        "Llama_tiny",
        "Llama_520M",
        {
            "hidden_size": _TINY_DIM,
            "intermediate_size": 128,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_key_value_heads": 2,
            "head_dim": 32,
        },
    ),
}


@dataclass(frozen=True, slots=True)
class VoiceSize:
    """Lengths of what a voice is made of, tokens."""

    t3_prompt: int
    s3gen_prompt: int


VOICE_SIZES: dict[tuple[Kind, Size], VoiceSize] = {
    ("turbo", "full"): VoiceSize(375, 250),
    ("original", "full"): VoiceSize(150, 250),
    ("turbo", "tiny"): VoiceSize(24, 10),
    ("original", "tiny"): VoiceSize(24, 10),
}


@upstream.quiet()
def build_t3(kind: Kind, size: Size) -> Any:
    """A T3 without weights worth the name, as upstream's loader makes it."""
    hp = upstream.module("models.t3.modules.t3_config").T3Config()
    if kind == "turbo":
        hp = type(hp)(text_tokens_dict_size=TURBO_TEXT_TOKENS)
        hp.llama_config_name = "GPT2_medium"
        hp.speech_tokens_dict_size = 6563
        hp.input_pos_emb = None
        hp.use_perceiver_resampler = False
        hp.emotion_adv = False
    hp.speech_cond_prompt_len = VOICE_SIZES[kind, size].t3_prompt
    t3_class = upstream.module("models.t3").T3
    if size == "full":
        t3 = t3_class(hp)
    else:
        name, like, smaller = _TINY_T3[kind]
        known = upstream.module("models.t3.llama_configs").LLAMA_CONFIGS
        known.setdefault(name, known[like] | smaller)
        hp.llama_config_name = name
        has_perceiver, hp.use_perceiver_resampler = hp.use_perceiver_resampler, False  # upstream's has one size
        t3 = t3_class(hp)
        if has_perceiver:
            hp.use_perceiver_resampler = True
            t3.cond_enc.perceiver = upstream.module("models.t3.modules.perceiver").Perceiver(
                8, _TINY_DIM, _TINY_DIM, num_attn_heads=2
            )
    if kind == "turbo":
        del t3.tfmr.wte  # upstream takes it away too: tokens come as embeddings
    return t3.eval()


@upstream.quiet()
def build_s3gen(kind: Kind, size: Size) -> Any:
    """S3Gen with HiFT, and with what makes a voice of a recording."""
    meanflow = kind == "turbo"
    if size == "full":
        return upstream.module("models.s3gen").S3Gen(meanflow=meanflow).eval()
    return _tiny_s3gen(meanflow).eval()


def _tiny_s3gen(meanflow: bool) -> Any:
    import torch

    made = upstream.module("models.s3gen.s3gen")
    encoders = upstream.module("models.s3gen.transformer.upsample_encoder")
    encoder = encoders.UpsampleConformerEncoder(
        input_size=_TINY_S3GEN_DIM,
        output_size=_TINY_S3GEN_DIM,
        attention_heads=2,
        linear_units=_TINY_S3GEN_DIM,
        num_blocks=1,
        input_layer="linear",
        pos_enc_layer_type="rel_pos_espnet",
        selfattention_layer_type="rel_selfattn",
        macaron_style=False,
    )
    encoder.pre_lookahead_layer = encoders.PreLookaheadLayer(channels=_TINY_S3GEN_DIM, pre_lookahead_len=3)
    encoder.up_layer = encoders.Upsample1D(channels=_TINY_S3GEN_DIM, out_channels=_TINY_S3GEN_DIM, stride=2)
    del encoder.up_encoders[1:]
    estimator = made.ConditionalDecoder(
        channels=[16], attention_head_dim=8, n_blocks=1, num_mid_blocks=1, num_heads=2, meanflow=meanflow
    )
    tiny = made.S3Token2Wav.__new__(made.S3Token2Wav)
    torch.nn.Module.__init__(tiny)
    tiny.meanflow, tiny.resamplers, tiny.estimator_dtype = meanflow, {}, "fp32"
    tiny.mel_extractor = made.mel_spectrogram
    tiny.tokenizer = _tiny_s3tokenizer()
    tiny.speaker_encoder = made.CAMPPlus(growth_rate=4, init_channels=16, memory_efficient=False)
    tiny.flow = made.CausalMaskedDiffWithXvec(
        input_size=_TINY_S3GEN_DIM,
        encoder=encoder,
        decoder=made.CausalConditionalCFM(spk_emb_dim=80, cfm_params=made.CFM_PARAMS, estimator=estimator),
    )
    tiny.mel2wav = made.HiFTGenerator(
        base_channels=8,
        nb_harmonics=1,
        sampling_rate=made.S3GEN_SR,
        upsample_rates=[8, 5, 3],
        upsample_kernel_sizes=[16, 11, 7],
        resblock_kernel_sizes=[3, 7],
        resblock_dilation_sizes=[[1], [3]],
        source_resblock_kernel_sizes=[7, 7, 11],
        source_resblock_dilation_sizes=[[1], [1], [1]],
        f0_predictor=made.ConvRNNF0Predictor(cond_channels=16),
    )
    fade = torch.zeros(960)
    fade[480:] = (torch.cos(torch.linspace(torch.pi, 0, 480)) + 1) / 2  # as upstream's
    tiny.register_buffer("trim_fade", fade, persistent=False)
    return tiny


def _tiny_s3tokenizer() -> Any:
    import librosa
    import torch

    module = upstream.module("models.s3tokenizer.s3tokenizer")
    tiny = module.S3Tokenizer.__new__(module.S3Tokenizer)
    config = module.ModelConfig(n_audio_state=128, n_audio_head=2, n_audio_layer=1)  # rotary embeddings of 64
    module.S3TokenizerV2.__init__(tiny, "speech_tokenizer_v2_25hz", config)
    tiny.n_fft = 400
    tiny.register_buffer("_mel_filters", torch.FloatTensor(librosa.filters.mel(sr=16_000, n_fft=400, n_mels=128)))
    tiny.register_buffer("window", torch.hann_window(400))
    return tiny


def build_voice_encoder() -> Any:
    return upstream.module("models.voice_encoder").VoiceEncoder().eval()
