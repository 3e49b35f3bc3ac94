"""T3 in slots against upstream's own T3: the same tokens, alone and among neighbours; and the draws against its own."""

import functools
import importlib
import itertools
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import pytest
from chatterbox_fixtures import KINDS, SENTENCES, cond, ours, text_tokens, theirs, torch, upstream

graphs: Any = importlib.import_module("gpu_server.engines.chatterbox.graphs")
sampling: Any = importlib.import_module("gpu_server.engines.chatterbox.sampling")
t3: Any = importlib.import_module("gpu_server.engines.chatterbox.t3")
processors: Any = importlib.import_module("transformers.generation.logits_process")

Sampling = sampling.Sampling
SLOTS = 6
TOKENS = 40
VOICES = (None, 3)  # the built-in one, and a random one
GREEDY = {
    "turbo": Sampling(top_k=1),
    "original": Sampling(top_k=0, top_p=1.0, min_p=1.0, cfg_weight=0.5),
}
DRAWN = {
    "turbo": Sampling(temperature=0.7, top_k=300, top_p=0.9, repetition_penalty=1.4),
    "original": Sampling(top_k=0, top_p=1.0, min_p=0.02, temperature=0.9, repetition_penalty=1.4, cfg_weight=0.7),
}


@pytest.fixture(autouse=True)
def inference() -> Iterator[None]:
    with torch.inference_mode(), upstream.quiet():
        yield


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


# ---- upstream's own


def upstream_says(kind: str, words: str, how: Any, voice: int | None = None, tokens: int = TOKENS) -> list[int]:
    """As many tokens as asked, or fewer where it ends; without the end token."""
    model, text, said = theirs(kind), text_tokens(kind, words), cond(kind, voice)
    given = {"temperature": how.temperature, "top_p": how.top_p, "repetition_penalty": how.repetition_penalty}
    if kind == "turbo":
        found = model.t3.inference_turbo(said, text[None], top_k=how.top_k, max_gen_len=tokens - 1, **given)
    else:
        given |= {"min_p": how.min_p, "cfg_weight": how.cfg_weight}
        pair = torch.stack([text, text])
        found = model.t3.inference(t3_cond=said, text_tokens=pair, max_new_tokens=tokens, **given)
    return without_end(kind, found[0].tolist())


@functools.cache
def greedily(kind: str, words: str, voice: int | None = None, tokens: int = TOKENS) -> list[int]:
    return upstream_says(kind, words, GREEDY[kind], voice, tokens)


def without_end(kind: str, tokens: list[int]) -> list[int]:
    end = theirs(kind).t3.hp.stop_speech_token
    return list(itertools.takewhile(lambda token: token != end, tokens))


# ---- ours


class Batch:
    """Slots of T3, and what each drew since it began."""

    def __init__(self, kind: str, **changed: Any) -> None:
        self.kind = kind
        given = {"slots": SLOTS, "positions": 600, "most_tokens": 320, "never_ends": False} | changed
        self.t3 = t3.T3Slots(kind, ours(kind).t3, graphs=graphs.Graphs(False), **given)
        self._prefixes: dict[int | None, Any] = {}
        self.drew: dict[int, list[int]] = {}

    def prefix(self, voice: int | None) -> Any:
        if voice not in self._prefixes:
            self._prefixes[voice] = self.t3.prefix(cond(self.kind, voice))
        return self._prefixes[voice]

    def begin(self, *what: tuple[Any, ...]) -> None:
        """What: slot, words, voice, sampling, seed; all but the first two may be left out."""
        starts = []
        for slot, words, voice, how, seed in ((*one, *(None, GREEDY[self.kind], 1)[len(one) - 2 :]) for one in what):
            starts.append(t3.Start(slot, self.prefix(voice), text_tokens(self.kind, words), how, seed))
        self.t3.begin(starts)
        slots = [start.slot for start in starts]
        for slot, token in zip(slots, self.t3.first_drawn(slots).tolist(), strict=True):
            self.drew[slot] = [token]

    def step(self, times: int) -> None:
        for _ in range(times):
            drawn = self.t3.step(max(self.drew) + 1).tolist()
            for slot, tokens in self.drew.items():
                tokens.append(drawn[slot])

    def end(self, slot: int) -> list[int]:
        """Free it; the first tokens that it drew, up to an end."""
        self.t3.free(slot)
        return without_end(self.kind, self.drew.pop(slot)[:TOKENS])


@pytest.fixture
def batch(kind: str) -> Batch:
    return Batch(kind)


def alone(kind: str, *what: Any) -> list[int]:
    batch = Batch(kind)
    batch.begin((0, *what))
    batch.step(TOKENS - 1)
    return batch.end(0)


# ---- tokens


def test_what_upstream_says_hangs_on_text_and_voice(kind: str) -> None:
    """Or the tests below would show nothing."""
    found = {tuple(greedily(kind, words, voice)) for words in SENTENCES for voice in VOICES}
    assert len(found) == len(SENTENCES) * len(VOICES)
    assert all(len(set(tokens)) > TOKENS / 2 for tokens in found)


@pytest.mark.parametrize("voice", VOICES)
@pytest.mark.parametrize("words", SENTENCES)
def test_tokens_are_upstreams(kind: str, words: str, voice: int | None) -> None:
    assert alone(kind, words, voice) == greedily(kind, words, voice)


def test_tokens_are_upstreams_beyond_what_is_attended_to_at_first(batch: Batch, kind: str) -> None:
    """Attended positions are rounded up to a multiple of 256: an answer that crosses one, and grows past it."""
    batch.begin((2, SENTENCES[1], 3))
    batch.step(269)
    expected = greedily(kind, SENTENCES[1], 3, tokens=270)
    assert without_end(kind, batch.drew[2]) == expected
    assert len(expected) > 256


@pytest.mark.parametrize("count", range(1, SLOTS + 1))
def test_tokens_are_upstreams_in_a_batch_of_mixed_texts_and_voices(batch: Batch, kind: str, count: int) -> None:
    """Those that begin together are padded to 1, 4 or 16 rows, and to one length; those that step to 1, 2, 4, 8."""
    who = {SLOTS - 1 - number: (SENTENCES[number % 4], VOICES[number % 2]) for number in range(count)}
    batch.begin(*((slot, *what) for slot, what in who.items()))
    batch.step(TOKENS - 1)
    for slot, what in who.items():
        assert batch.end(slot) == greedily(kind, *what)


def test_tokens_are_upstreams_begun_at_different_times_among_neighbours_that_leave(batch: Batch, kind: str) -> None:
    """A slot that somebody left is taken over by others; one is never used."""
    batch.begin((5, SENTENCES[0]))
    batch.step(7)
    batch.begin((2, SENTENCES[1], 3), (0, SENTENCES[2]), (4, SENTENCES[3], 3))
    batch.step(11)
    batch.end(4)
    batch.step(1)
    batch.begin((4, SENTENCES[2], 3))
    batch.step(3)
    batch.end(0)
    batch.step(TOKENS - 1)
    assert batch.end(5) == greedily(kind, SENTENCES[0])
    assert batch.end(2) == greedily(kind, SENTENCES[1], 3)
    assert batch.end(4) == greedily(kind, SENTENCES[2], 3)


def test_a_slot_remembers_nothing_of_whom_it_had_before(batch: Batch, kind: str) -> None:
    batch.begin((1, SENTENCES[2], 3, DRAWN[kind], 5))
    batch.step(200)
    batch.end(1)
    batch.t3.step(2)
    batch.begin((1, SENTENCES[1], None, DRAWN[kind], 6))
    batch.step(TOKENS - 1)
    assert batch.end(1) == alone(kind, SENTENCES[1], None, DRAWN[kind], 6)


def test_a_slot_that_is_full_harms_no_neighbour(kind: str) -> None:
    batch = Batch(kind, positions=256, most_tokens=40)
    batch.begin((0, SENTENCES[2]))
    batch.step(300)  # beyond its positions and its uniform numbers
    batch.begin((1, SENTENCES[0], 3))
    batch.step(TOKENS - 1)
    assert batch.end(1) == greedily(kind, SENTENCES[0], 3)


@pytest.mark.parametrize("weight", [0.0, 1.5])
def test_guidance_is_upstreams(weight: float) -> None:
    how = Sampling(top_k=0, top_p=1.0, min_p=1.0, cfg_weight=weight)
    expected = upstream_says("original", SENTENCES[0], how)
    assert alone("original", SENTENCES[0], None, how) == expected
    assert expected != greedily("original", SENTENCES[0])


def test_each_row_of_a_batch_has_guidance_of_its_own() -> None:
    batch = Batch("original")
    hows = [Sampling(top_k=0, top_p=1.0, min_p=1.0, cfg_weight=weight) for weight in (0.0, 0.5, 1.5)]
    batch.begin(*((slot, SENTENCES[0], None, how) for slot, how in enumerate(hows)))
    batch.step(TOKENS - 1)
    for slot, how in enumerate(hows):
        assert batch.end(slot) == upstream_says("original", SENTENCES[0], how)


def test_no_temperature_is_the_likeliest(kind: str) -> None:
    how = Sampling(temperature=0.0, top_k=GREEDY[kind].top_k or 0, top_p=1.0, cfg_weight=0.5, repetition_penalty=1.2)
    assert alone(kind, SENTENCES[0], None, how) == greedily(kind, SENTENCES[0])


# ---- a voice


def test_a_voices_keys_and_values_are_upstreams(batch: Batch, kind: str) -> None:
    model = theirs(kind).t3
    for voice in VOICES:
        prefix = batch.prefix(voice)
        embedded = model.prepare_conditioning(cond(kind, voice))
        past = model.tfmr(inputs_embeds=embedded, use_cache=True).past_key_values
        assert prefix.length == embedded.shape[1]
        for layer in range(len(past)):
            torch.testing.assert_close(prefix.keys[layer], past.layers[layer].keys, atol=1e-5, rtol=1e-5)
            torch.testing.assert_close(prefix.values[layer], past.layers[layer].values, atol=1e-5, rtol=1e-5)


def test_a_voice_is_read_once_and_not_changed_by_its_use(batch: Batch, kind: str) -> None:
    prefix = batch.prefix(3)
    before = prefix.keys.clone(), prefix.values.clone()
    batch.begin((0, SENTENCES[0], 3), (1, SENTENCES[1], 3))
    batch.step(20)
    assert torch.equal(prefix.keys, before[0])
    assert torch.equal(prefix.values, before[1])


# ---- draws


def upstream_draws(kind: str, words: str, how: Any, uniform: Any) -> list[int]:
    """Upstream's own loop, its draws made by the numbers given, as ours: of the original by token, of Turbo from the
    likeliest on, as it is before what was drawn already is penalized."""
    numbers = iter(uniform.tolist())
    order = torch.arange(theirs(kind).t3.speech_head.out_features)[None]
    penalize = processors.RepetitionPenaltyLogitsProcessor.__call__

    def penalized(self: Any, ids: Any, scores: Any) -> Any:
        nonlocal order
        if kind == "turbo":
            order = scores.argsort(descending=True)
        return penalize(self, ids, scores)

    def multinomial(chances: Any, num_samples: int) -> Any:
        assert num_samples == 1
        cumulated = chances.gather(-1, order).double().cumsum(-1)
        return order.gather(-1, (cumulated <= next(numbers)).sum(-1, keepdim=True))

    with (
        mock.patch.object(torch, "multinomial", multinomial),
        mock.patch.object(processors.RepetitionPenaltyLogitsProcessor, "__call__", penalized),
    ):
        return upstream_says(kind, words, how)


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_with_the_same_random_numbers_the_draws_are_upstreams(batch: Batch, kind: str, seed: int) -> None:
    """All of it together: the order of the steps, what has been drawn before, the start token."""
    batch.begin((3, SENTENCES[0], None, DRAWN[kind], seed))
    uniform = batch.t3._uniform[3].clone()
    batch.step(TOKENS - 1)
    expected = upstream_draws(kind, SENTENCES[0], DRAWN[kind], uniform)
    assert batch.end(3) == expected
    assert expected != greedily(kind, SENTENCES[0])


@pytest.mark.parametrize(
    ("kind", "first"),
    [
        ("original", None),
        ("turbo", False),
        ("turbo", True),
    ],
)
def test_the_start_token_counts_as_drawn_where_upstream_has_it_so(kind: str, first: bool | None) -> None:
    """Always in the original; in Turbo at the first draw alone, or once it is drawn. The head is made to like it.

    first: of the answers that begin with it, or with another."""
    start, liked = theirs(kind).t3.hp.start_speech_token, 0
    batch = Batch(kind)
    for seed in range(6):
        with liking(kind, 6.0 if kind == "turbo" else 10.0):
            batch.begin((3, SENTENCES[0], None, DRAWN[kind], seed))
            uniform = batch.t3._uniform[3].clone()
            batch.step(TOKENS - 1)
            expected = upstream_draws(kind, SENTENCES[0], DRAWN[kind], uniform)
        drew = batch.end(3)
        if first is None or (expected[0] == start) == first:
            liked += start in expected
            assert drew == expected
    assert liked


def test_a_draw_hangs_on_its_seed_and_on_no_neighbour(batch: Batch, kind: str) -> None:
    batch.begin(*((slot, SENTENCES[slot % 4], VOICES[slot % 2], DRAWN[kind], slot % 5) for slot in range(SLOTS)))
    batch.step(TOKENS - 1)
    found = [batch.end(slot) for slot in range(SLOTS)]
    for slot, tokens in enumerate(found):
        assert tokens == alone(kind, SENTENCES[slot % 4], VOICES[slot % 2], DRAWN[kind], slot % 5)
    assert alone(kind, SENTENCES[0], None, DRAWN[kind], 0) != alone(kind, SENTENCES[0], None, DRAWN[kind], 1)


def test_each_row_of_a_batch_is_drawn_in_its_own_way(batch: Batch, kind: str) -> None:
    changed = [{"temperature": 0.0}, {"temperature": 2.0}, {"repetition_penalty": 1.0}, {"cfg_weight": 0.1}]
    if kind == "turbo":
        changed = [*changed[:3], {"top_k": 2}, {"top_p": 0.3}]
    as_given = {name: getattr(DRAWN[kind], name) for name in Sampling.__dataclass_fields__}
    hows = [Sampling(**(as_given | change)) for change in changed]
    batch.begin(*((slot, SENTENCES[0], None, how, 1) for slot, how in enumerate(hows)))
    batch.step(TOKENS - 1)
    for slot, how in enumerate(hows):
        assert batch.end(slot) == alone(kind, SENTENCES[0], None, how, 1)


def test_random_weights_never_draw_an_end_or_a_mark(kind: str) -> None:
    model, hot = ours(kind).t3, Sampling(temperature=50.0, top_k=DRAWN[kind].top_k, top_p=1.0, repetition_penalty=1.0)
    marks = model.hp.start_speech_token
    drew = {}
    for never_ends in (False, True):
        batch = Batch(kind, never_ends=never_ends)
        with liking(kind, 100.0, marks):
            batch.begin(*((slot, SENTENCES[0], None, hot, slot) for slot in range(4)))
            batch.step(50)
        drew[never_ends] = [token for slot in range(4) for token in batch.drew[slot]]
    assert max(drew[False]) >= marks
    assert max(drew[True]) < marks


@contextmanager
def liking(kind: str, bias: float, marks: int | None = None) -> Iterator[None]:
    """Heads that like all tokens from `marks` on, or the start token alone."""
    with ExitStack() as patched:
        for model in (ours(kind).t3, theirs(kind).t3):
            head = model.speech_head
            likes = torch.nn.Linear(head.in_features, head.out_features)
            likes.weight.copy_(head.weight)
            likes.bias.zero_()
            start = model.hp.start_speech_token
            likes.bias[slice(start, start + 1) if marks is None else slice(marks, None)] = bias
            patched.enter_context(mock.patch.object(model, "speech_head", likes))
        yield


@pytest.mark.parametrize(
    ("kind", "how"),
    [
        ("turbo", Sampling(top_k=0)),
        ("turbo", Sampling(top_k=sampling.CANDIDATES + 1)),
        ("original", Sampling(top_k=5, top_p=1.0)),
        ("original", Sampling(top_k=0, top_p=0.9)),
    ],
)
def test_a_way_of_drawing_that_a_kind_has_not_is_refused(kind: str, how: Any) -> None:
    with pytest.raises(ValueError, match="top_"):
        Batch(kind).begin((0, SENTENCES[1], None, how, 1))


# ---- the distribution of a draw


def chances(kind: str, logits: Any, how: Any, seen: list[int]) -> Any:
    """Of every token, by transformers' processors in upstream's order (T3.inference_turbo, T3.inference)."""
    made = [processors.TemperatureLogitsWarper(how.temperature)]
    penalty = processors.RepetitionPenaltyLogitsProcessor(how.repetition_penalty)
    if kind == "turbo":
        made += [processors.TopKLogitsWarper(how.top_k), processors.TopPLogitsWarper(how.top_p), penalty]
    else:
        made = [penalty, *made, processors.MinPLogitsWarper(how.min_p)]
    found = logits.double()[None]
    for processor in made:
        found = processor(torch.tensor([seen]), found)
    return found.softmax(-1)[0]


def frequencies(kind: str, logits: Any, how: Any, seen: list[int], draws: int) -> Any:
    """How often each token is drawn with numbers that are spread evenly over [0, 1)."""
    parameters = sampling.Parameters(kind, 3, len(logits), torch.device("cpu"))
    parameters.set(torch.tensor([1]), [how], seen[0])
    parameters.seen[1, seen] = True
    uniform = (torch.arange(draws) + 0.5) / draws
    rows = torch.full((draws,), 1)
    drawn = sampling.draw(logits.expand(draws, -1), parameters, rows, uniform)
    return drawn.bincount(minlength=len(logits))


TURBO = [
    Sampling(temperature=1.0, top_k=60, top_p=1.0, repetition_penalty=1.0),
    Sampling(temperature=0.5, top_k=60, top_p=1.0, repetition_penalty=1.0),
    Sampling(temperature=1.0, top_k=7, top_p=1.0, repetition_penalty=1.0),
    Sampling(temperature=1.0, top_k=60, top_p=0.6, repetition_penalty=1.0),
    Sampling(temperature=1.3, top_k=60, top_p=1e-6, repetition_penalty=1.5),
    Sampling(temperature=1.0, top_k=60, top_p=1.0, repetition_penalty=1.5),
    Sampling(temperature=0.8, top_k=20, top_p=0.9, repetition_penalty=1.2),
]
ORIGINAL = [
    Sampling(temperature=1.0, top_k=0, top_p=1.0, min_p=0.0, repetition_penalty=1.0),
    Sampling(temperature=0.5, top_k=0, top_p=1.0, min_p=0.0, repetition_penalty=1.0),
    Sampling(temperature=1.0, top_k=0, top_p=1.0, min_p=0.2, repetition_penalty=1.0),
    Sampling(temperature=1.0, top_k=0, top_p=1.0, min_p=1.0, repetition_penalty=1.5),
    Sampling(temperature=1.0, top_k=0, top_p=1.0, min_p=0.0, repetition_penalty=1.5),
    Sampling(temperature=0.8, top_k=0, top_p=1.0, min_p=0.05, repetition_penalty=1.2),
]


@pytest.mark.parametrize(
    ("kind", "how"),
    [*(("turbo", how) for how in TURBO), *(("original", how) for how in ORIGINAL)],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_tokens_are_drawn_as_often_as_upstreams_processors_say(kind: str, how: Any) -> None:
    """Of numbers spread evenly, each token has its share but for one; what is left out is never drawn."""
    draws = 20_000
    for seed in range(5):
        generator = torch.Generator().manual_seed(seed)
        logits = torch.randn(60, generator=generator) * 2
        seen = torch.randperm(60, generator=generator)[:15].tolist()
        expected = chances(kind, logits, how, seen)
        found = frequencies(kind, logits, how, seen, draws)
        assert found.sum() == draws
        assert found[expected == 0].sum() == 0
        assert (found[expected * draws > 2] > 0).all()
        assert (found - expected * draws).abs().max() <= 1.1


def test_of_a_vocabulary_of_the_full_size_the_kept_tokens_are_upstreams() -> None:
    logits = torch.randn(6563, generator=torch.Generator().manual_seed(1)) * 3
    how, draws, seen = Sampling(), 2000, [6561]
    expected = chances("turbo", logits, how, seen)
    found = frequencies("turbo", logits, how, seen, draws)
    assert found[expected == 0].sum() == 0
    assert (found - expected * draws).abs().max() <= 1.1


@pytest.mark.parametrize("kind", KINDS)
def test_the_ends_of_the_random_numbers_draw_what_is_kept(kind: str) -> None:
    """0, and the largest float below 1: neither may fall on a token that was left out."""
    how = TURBO[3] if kind == "turbo" else ORIGINAL[2]
    parameters = sampling.Parameters(kind, 1, 60, torch.device("cpu"))
    parameters.set(torch.tensor([0]), [how], 59)
    logits = torch.randn(500, 60, generator=torch.Generator().manual_seed(2)) * 2
    rows = torch.zeros(len(logits), dtype=torch.int64)
    for number in (0.0, 1 - 2.0**-24):
        drawn = sampling.draw(logits, parameters, rows, torch.full((len(logits),), number))
        left_out = [row for row in range(len(logits)) if chances(kind, logits[row], how, [59])[drawn[row]] == 0]
        assert left_out == []
