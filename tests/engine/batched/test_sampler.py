from dataclasses import replace

import pytest
import torch
from transformers import RepetitionPenaltyLogitsProcessor

from app.engine.base import Sampling
from app.engine.batched.sampler import FEW, MOST, SamplingRows, _gumbel, sample

VOCABULARY = 500
DRAWN = Sampling(temperature=0.8, top_p=0.9, top_k=20, min_p=0.02)


def logits_of(rows: int, seed: int = 0) -> torch.Tensor:
    return 4 * torch.randn(rows, VOCABULARY, generator=torch.Generator().manual_seed(seed))


def rows_of(*samplings: Sampling, masks: torch.Tensor | None = None) -> SamplingRows:
    rows = SamplingRows.on(torch.device("cpu"), len(samplings), VOCABULARY, masks)
    for row, sampling in enumerate(samplings):
        rows.put(row, sampling, row)
    return rows


def positions(rows: int, at: int = 0) -> torch.Tensor:
    return torch.full((rows,), at, dtype=torch.int32)


def expected(logits: torch.Tensor, sampling: Sampling) -> torch.Tensor:
    """The distribution by the book: sort everything, cut, draw."""
    scaled = logits / sampling.temperature
    values, ids = scaled.sort(descending=True)
    values[sampling.top_k :] = float("-inf")
    probabilities = values.softmax(-1)
    before = probabilities.cumsum(-1) - probabilities
    is_out = (before >= sampling.top_p) | (probabilities < sampling.min_p * probabilities[0])
    is_out[0] = False
    kept = values.masked_fill(is_out, float("-inf")).softmax(-1)
    return torch.zeros_like(logits).scatter(0, ids, kept)


@pytest.mark.parametrize(
    "sampling",
    [DRAWN, Sampling(1.0, 1.0, 500), Sampling(0.6, 0.95, 40), Sampling(1.5, 1.0, 3), Sampling(1.0, 0.5, 100, 0.3)],
)
def test_tokens_come_as_often_as_their_probability_says(sampling: Sampling) -> None:
    logits = logits_of(1)
    wanted = expected(logits[0], sampling)
    draws = 4000
    rows = rows_of(*[sampling] * draws)
    tokens, _, _ = sample(logits.expand(draws, -1), rows, positions(draws), MOST)
    found = torch.bincount(tokens, minlength=VOCABULARY) / draws
    assert (found[wanted == 0] == 0).all()
    assert float((found - wanted).abs().sum()) < 0.25


def test_noise_is_a_number_where_its_bits_are_all_ones() -> None:
    """Seed, position and token that once gave infinity: what was cut away was drawn then."""
    noise = _gumbel(torch.tensor([1]), torch.tensor([1]), torch.tensor([[38878, 1]]))
    assert torch.isfinite(noise).all()
    assert noise[0, 0] == noise.max()


def test_greedy_takes_the_likeliest_whatever_else_is_set() -> None:
    logits = logits_of(3)
    rows = rows_of(*[replace(DRAWN, temperature=0.0)] * 3)
    tokens, logprobs, _ = sample(logits, rows, positions(3), FEW)
    assert tokens.tolist() == logits.argmax(-1).tolist()
    torch.testing.assert_close(logprobs, logits.log_softmax(-1).amax(-1))


def test_a_draw_depends_on_its_own_seed_and_position_alone() -> None:
    logits = logits_of(8)
    rows = rows_of(*[DRAWN] * 8)
    tokens, _, _ = sample(logits, rows, positions(8, 5), FEW)
    alone = rows_of(DRAWN)
    alone.put(0, DRAWN, 6)
    again, _, _ = sample(logits[6:7], alone, positions(1, 5), MOST)
    assert again[0] == tokens[6]
    elsewhere = {int(sample(logits[6:7], alone, positions(1, at), MOST)[0][0]) for at in range(30)}
    assert len(elsewhere) > 1


def test_a_repetition_penalty_does_what_transformers_does_and_leaves_log_probabilities_alone() -> None:
    sampling = Sampling(temperature=0.0, repetition_penalty=1.3)
    logits = logits_of(1)
    rows = rows_of(sampling)
    seen = [int(logits.argmax()), 7, 7, 9]
    rows.put(0, sampling, 0, seen)
    processor = RepetitionPenaltyLogitsProcessor(1.3)
    for at in range(20):
        told = torch.tensor([seen])
        token, logprob, _ = sample(logits, rows, positions(1, at), FEW)
        assert int(token) == int(processor(told, logits.clone()).argmax())
        torch.testing.assert_close(logprob, logits.log_softmax(-1)[:, int(token)])
        seen.append(int(token))


def test_who_has_no_penalty_is_not_touched_by_who_had_the_row_before() -> None:
    logits = logits_of(2)
    rows = rows_of(replace(DRAWN, repetition_penalty=2.0), DRAWN)
    rows.put(0, replace(DRAWN, repetition_penalty=2.0), 0, range(VOCABULARY))
    plain = Sampling(temperature=0.0)
    rows.put(0, plain, 0)
    assert int(sample(logits, rows, positions(2), FEW)[0][0]) == int(logits[0].argmax())
    rows.put(0, replace(plain, repetition_penalty=2.0), 0)
    assert not rows.seen[0].any()


def test_a_row_is_kept_to_its_vocabulary() -> None:
    masks = torch.ones((3, VOCABULARY), dtype=torch.bool)
    masks[1] = torch.arange(VOCABULARY) % 2 == 0
    masks[2] = torch.arange(VOCABULARY) == 11
    rows = SamplingRows.on(torch.device("cpu"), 300, VOCABULARY, masks)
    for row in range(300):
        rows.put(row, Sampling(1.0, 1.0, 60), row, mask=row % 3)
    logits = logits_of(1).expand(300, -1)
    tokens, logprobs, is_sound = sample(logits, rows, positions(300), FEW)
    assert set(tokens[2::3].tolist()) == {11}
    assert not (tokens[1::3] % 2).any()
    assert (tokens[0::3] % 2).any()
    torch.testing.assert_close(logprobs, logits.log_softmax(-1).gather(-1, tokens[:, None])[:, 0])
    assert is_sound.all()


@pytest.mark.parametrize("mask", [-1, 1, 5])
def test_a_vocabulary_that_is_not_there_is_refused(mask: int) -> None:
    with pytest.raises(ValueError, match="no vocabulary mask"):
        rows_of(DRAWN).put(0, DRAWN, 0, mask=mask)


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_numbers_that_are_none_are_told_for_their_row_alone(number: float) -> None:
    logits = logits_of(3)
    logits[1, 17] = number
    _, _, is_sound = sample(logits, rows_of(DRAWN, DRAWN, DRAWN), positions(3), FEW)
    assert is_sound.tolist() == [True, False, True]


def test_a_row_moves_with_all_it_has() -> None:
    sampling = replace(DRAWN, repetition_penalty=1.5)
    rows = rows_of(Sampling(), sampling)
    rows.put(1, sampling, 99, [3, 4])
    logits = logits_of(1).expand(2, -1)
    rows.move(1, 0)
    tokens, _, _ = sample(logits, rows, positions(2, 9), FEW)
    assert tokens[0] == tokens[1]
    assert rows.seen[0].equal(rows.seen[1])
